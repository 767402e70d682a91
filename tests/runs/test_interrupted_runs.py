"""Runs that are stopped at random moments: every file is whole, and what can be kept is kept.

The slow test stops ten, `make test-long` fifty others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import LMActorCriticPolicy
from agents.cli import main
from agents.runs.folder import RunFolder

TINY = [
    *("--total-tokens", "100000000", "--n-envs", "16", "--n-steps", "16", "--batch-size", "128"),
    *("--eval-prompts", "4", "--eval-responses", "8", "--eval-every", "1"),
    *("--checkpoint-every", "2", "--device", "cpu"),
]
pytestmark = pytest.mark.usefixtures("usual_signals")

DEADLINE = 240.0
"""Seconds after which a run that has not come as far as wanted is taken to hang."""


@dataclass(frozen=True)
class Stop:
    """How a run is started and stopped.

    Attributes:
        number: the signal.
        in_background: by a script, as `command &`, where SIGINT is ignored.
        rows: lines of metrics to wait for first; 0: the folder alone; None: nothing.
        delay: seconds after that.
        overwrite: whether it replaces a finished run.
    """

    number: signal.Signals
    in_background: bool
    rows: int | None
    delay: float
    overwrite: bool


def stops(count: int, seed: int) -> list[Stop]:
    """`count` ways to stop a run, half of them in the background of a script."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        in_background = index % 2 == 1
        kinds = [signal.SIGTERM, signal.SIGKILL] if in_background else list(_SIGNALS)
        number = kinds[index // 2 % len(kinds)]
        rows = [None, 0, 1, 1, 2, 4][rng.integers(6)]
        if number == signal.SIGINT and rows is None:
            rows = 0  # before `main`, it is the interpreter that answers
        delay = float(rng.uniform(0, 5.0 if rows is None else 1.0))
        found.append(Stop(number, in_background, rows, delay, bool(rng.integers(3) == 0)))
    return found


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def rows_of(folder: Path) -> int:
    """Whole lines of metrics of the new run, which has no summary yet."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def started(folder: Path, stop: Stop) -> tuple[subprocess.Popen, int]:
    """The process to wait for, and the id of the run's own."""
    command = [sys.executable, "-m", "agents.cli", "train", "--out", str(folder), *TINY]
    command += ["--overwrite"] if stop.overwrite else []
    said = folder.with_suffix(".txt").open("w")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "500",
        "PYTHONFAULTHANDLER": "1",
    }
    if not stop.in_background:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        return process, process.pid
    script = '"$@" & echo $! > "$PIDFILE"; wait $!'
    file = folder.with_suffix(".pid")
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *command],
        stdout=said,
        stderr=said,
        env={**environment, "PIDFILE": str(file)},
    )
    while not (file.is_file() and file.read_text().strip()):
        time.sleep(0.01)
    return process, int(file.read_text())


def wait_for(folder: Path, process: subprocess.Popen, stop: Stop) -> int:
    """Come to the moment; the lines of metrics that were there."""
    end = time.monotonic() + DEADLINE
    while stop.rows is not None:
        is_new = (folder / "config.json").is_file() and not (folder / "summary.json").is_file()
        if is_new and rows_of(folder) >= stop.rows:
            break
        assert process.poll() is None, folder.with_suffix(".txt").read_text()
        assert time.monotonic() < end, f"no progress: {folder.with_suffix('.txt').read_text()}"
        time.sleep(0.02)
    time.sleep(stop.delay)
    return 0 if stop.rows is None else rows_of(folder)


def interrupt(folder: Path, stop: Stop, old: Path) -> None:
    """One run, its end, and what must be left."""
    if stop.overwrite:
        shutil.copytree(old, folder)
    process, pid = started(folder, stop)
    try:
        before = wait_for(folder, process, stop)
        if stop.in_background:
            os.kill(pid, signal.SIGINT)  # ignored, as a shell asks for
        os.kill(pid, stop.number)
        try:
            status = process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            os.kill(pid, signal.SIGABRT)  # for which the stacks of its threads are printed
            process.wait(timeout=DEADLINE)
            pytest.fail(f"hangs: {folder.with_suffix('.txt').read_text()}")
    finally:
        process.kill()
    said = folder.with_suffix(".txt").read_text()
    assert "Traceback" not in said, said
    if stop.in_background:  # the shell's word for it
        assert status == 128 + stop.number, said
    else:
        assert status in (-stop.number, 128 + stop.number), said
    check_files(folder)
    if stop.rows is not None and stop.number != signal.SIGKILL:
        check_kept(folder, stop, before, said)
    if folder.is_dir():
        next_run_may_begin(folder)


def check_files(folder: Path) -> None:
    """Every file that is not marked as unfinished is whole."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        unfinished = [part for part in parts if part.startswith(".") and part != ".replaced"]
        if unfinished or not path.is_file():
            continue
        text = "" if path.suffix not in (".json", ".jsonl") else path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".jsonl":
            assert text == "" or text.endswith("\n"), path
            for line in text.splitlines():
                json.loads(line)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".zip":
            assert zipfile.ZipFile(path).testzip() is None, path


def check_kept(folder: Path, stop: Stop, before: int, said: str) -> None:
    """A run that was asked to end has kept everything, or the run that it was to replace."""
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")], said
    if not before and not stop.overwrite and said.strip() == "stopped.":
        # Still before its first step: there was nothing to keep, and nothing says otherwise.
        assert {path.name for path in folder.iterdir()} <= {"config.json", "checkpoints"}
        return
    summary = json.loads((folder / "summary.json").read_text())
    LMActorCriticPolicy.from_pretrained(RunFolder.open(folder).policy)
    if stop.overwrite and summary["finished"]:
        assert "is back there" in said and before <= 1, said
        return
    assert summary["finished"] is False and summary["ended_by"] == f"StopSignal: {stop.number.name}"
    assert rows_of(folder) >= before
    assert (folder / "checkpoints" / "interrupted.zip").is_file()


def next_run_may_begin(folder: Path) -> None:
    """Whatever was left, the folder can be used again without help."""
    from agents.config import TrainConfig

    held = set(os.listdir(folder))
    run = RunFolder.create(TrainConfig(out=folder, overwrite=bool(held)))
    assert run.output is not None
    run.output.close()
    left = [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert not left or not folder.is_dir(), left


@pytest.fixture(scope="module")
def old_run(tmp_path_factory) -> Path:
    """A finished run, to be replaced."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    assert main(["train", "--out", str(folder), *TINY[2:], "--total-tokens", "256"]) == 0
    return folder


def do(tmp_path: Path, chosen: list[Stop], old: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        places = [tmp_path / f"run-{index}" for index in range(len(chosen))]
        done = [pool.submit(interrupt, p, s, old) for p, s in zip(places, chosen, strict=True)]
    errors = [f"{s}: {d.exception()!r}" for s, d in zip(chosen, done, strict=True) if d.exception()]
    assert not errors, "\n".join(errors)


@pytest.mark.slow
def test_a_run_in_the_background_of_a_script_ends_by_sigterm_and_keeps_everything(tmp_path):
    interrupt(tmp_path / "run", Stop(signal.SIGTERM, True, 1, 0.1, overwrite=False), tmp_path)


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_had_anything_has_replaced_nothing(tmp_path, old_run):
    do(tmp_path, [Stop(signal.SIGKILL, True, 0, 0.1, overwrite=True)], old_run)
    assert json.loads((tmp_path / "run-0" / "summary.json").read_text())["finished"] is True


@pytest.mark.slow
def test_runs_stopped_at_random_moments(tmp_path, old_run):
    do(tmp_path, stops(4, seed=0), old_run)


@pytest.mark.long
def test_many_runs_stopped_at_random_moments(tmp_path, old_run):
    do(tmp_path, stops(50, seed=1), old_run)
