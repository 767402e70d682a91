"""`--launcher` and `--sweep`: every run once, none lost to another, the rest made up for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.cli import main
from agents.command_line import launchers
from agents.command_line.launchers import run_local
from agents.command_line.variants import variants
from agents.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--task", "exact", "--total-tokens", "128", "--n-envs", "8", "--n-steps", "8"]
SMALL += ["--eval-prompts", "1", "--eval-responses", "4", "--eval-every", "0"]
SMALL += ["--explain-every", "0", "--device", "cpu"]


def test_every_point_of_a_sweep_has_every_seed(tmp_path):
    sweep = ("learning_rate=1e-3,3e-4", "lora-rank=none,4")
    config = TrainConfig(seed=3, seeds=2, sweep=sweep, out=tmp_path)
    runs = variants(config, tmp_path)
    found = [(one.config.learning_rate, one.config.lora_rank, one.config.seed) for one in runs]
    assert found == [(r, k, s) for r in (1e-3, 3e-4) for k in (None, 4) for s in (3, 4)]
    assert runs[0].folder == tmp_path / "learning_rate=1e-3,lora_rank=none" / "seed-3"
    assert len({one.folder for one in runs}) == 8
    assert all(not one.config.sweep and one.config.seeds is None for one in runs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sweep": ("gamma",)}, "NAME=VALUE"),
        ({"sweep": ("gama=1",)}, "no setting that can be swept"),
        ({"sweep": ("seed=1,2",)}, "there is --seeds"),
        ({"sweep": ("gamma=1,1",)}, "twice"),
        ({"launcher": "local"}, "give --seeds or --sweep"),
        ({"workers": 2}, "give --launcher local"),
    ],
)
def test_calls_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**settings)


def test_a_value_that_its_setting_can_not_have_is_refused_before_anything_runs(tmp_path, capsys):
    out = tmp_path / "runs"
    command = ["train", *SMALL, "--sweep", "gamma=0.9,lots", "--out", str(out)]
    assert main(command) == 2 and not out.exists()
    assert "gamma='lots'" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Jobs that are Python scripts, in the place of trainings."""

    def start(job):
        arguments, log = job
        with log.open("ab") as file:
            return subprocess.Popen([sys.executable, "-c", *arguments], stdout=file, stderr=file)

    monkeypatch.setattr(launchers, "_start", start)
    return lambda *codes: [([code], tmp_path / f"{i}.log") for i, code in enumerate(codes)]


def test_a_job_that_fails_does_not_stop_the_others(scripts):
    jobs = scripts("print(1)", "raise SystemExit(3)", "print(2)")
    assert dict(run_local(jobs, 2)) == {0: 0, 1: 3, 2: 0}
    assert jobs[2][1].read_text() == "2\n"


def test_all_jobs_are_told_to_stop_where_one_is_left(scripts, tmp_path):
    told = (
        "import signal, sys, time, pathlib\n"
        "def end(*_): pathlib.Path('{0}').write_text('kept'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path('{0}').touch(); time.sleep(60)"
    )
    marks = [tmp_path / name for name in "ab"]
    jobs = scripts(*(told.format(mark) for mark in marks), "pass")
    running = run_local(jobs, 3)
    assert next(running) == (2, 0)
    while not all(mark.exists() for mark in marks):
        time.sleep(0.05)
    running.close()
    assert [mark.read_text() for mark in marks] == ["kept", "kept"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=pytest.mark.ecosystem)])
def test_seeds_are_trained_beside_each_other_and_only_once(tmp_path, capsys, launcher):
    if launcher == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'tokenrlhf[ray]'")
    out = tmp_path / "both"
    command = ["train", *SMALL, "--launcher", launcher, "--out", str(out), "--workers", "2"]
    assert main([*command, "--seeds", "1"]) == 0
    first = (out / "seed-0" / "summary.json").stat().st_mtime_ns
    assert main([*command, "--seeds", "2"]) == 0
    assert (out / "seed-0" / "summary.json").stat().st_mtime_ns == first
    objectives = [
        json.loads((out / f"seed-{i}" / "summary.json").read_text())["objective"] for i in (0, 1)
    ]
    numbers = json.loads((out / "seeds.json").read_text())["numbers"]["objective"]
    assert numbers["values"] == objectives
    assert numbers["mean"] == pytest.approx(sum(objectives) / 2)
    assert (out / "report.html").stat().st_size > 100_000
    said = capsys.readouterr().out
    assert "1 of 2 runs are finished already" in said
    assert main([*command, "--seeds", "2", "--learning-rate", "1e-5"]) == 2, "other settings"


@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
def test_one_signal_stops_all_runs_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "runs"
    long = ["--total-tokens", "10000000", "--seeds", "2", "--launcher", "local", "--workers", "2"]
    long += ["--checkpoint-every", "1"]
    command = [sys.executable, "-m", "agents.cli", "train", *SMALL, *long, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    folders = [out / f"seed-{i}" / "checkpoints" for i in (0, 1)]
    deadline = time.monotonic() + 180
    while not all(any(folder.glob("tokens-*")) for folder in folders):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(120) == 130
    finally:
        process.kill()
    for i in (0, 1):
        assert not json.loads((out / f"seed-{i}" / "summary.json").read_text())["finished"]
        assert "--resume" in (out / f"seed-{i}.log").read_text()
    config = TrainConfig.from_json(json.loads((out / "seed-0" / "config.json").read_text()))
    (one,) = variants(dataclasses.replace(config, overwrite=False), out)
    assert one.summary() is None
    assert one.arguments(out / "x.json")[:2] == ["train", "--resume"]


def test_two_points_of_a_sweep_never_share_a_folder(tmp_path):
    config = TrainConfig(task="exact", sweep=("reward_model=a/b,a_b",))
    with pytest.raises(ValueError, match="two of its values would have the folder"):
        variants(config, tmp_path)
