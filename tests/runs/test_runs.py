"""A run's folder: nothing that was computed is lost, and nothing of the user's is removed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agents import LMActorCriticPolicy
from agents.atomic_files import whole_folder
from agents.config import TrainConfig
from agents.runs import curves
from agents.runs.curves import read_metrics
from agents.runs.folder import RunFolder
from agents.runs.training import TrainingRun
from tokenenv.user_code import UserCodeError

TINY = {
    **{"total_tokens": 512, "n_envs": 16, "n_steps": 16, "batch_size": 128, "device": "cpu"},
    **{"eval_prompts": 4, "eval_responses": 8, "eval_every": 0, "explain_every": 0},
}


def train(out: Path, **given) -> tuple[TrainingRun, dict]:
    run = TrainingRun(TrainConfig(out=out, **{**TINY, **given}), Console(quiet=True))
    return run, run.train()


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    train(out)
    (out / "notes.txt").write_text("mine")
    (out / "audit.json").write_text("{}")  # of the reward that the old run was trained against
    RunFolder.create(TrainConfig(out=out, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine" and not (out / "audit.json").exists()
    assert not (out / "policy").exists() and not (out / "summary.json").exists()


def test_overwrite_refuses_what_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="not of a run: nothing was removed"):
        RunFolder.create(TrainConfig(out=tmp_path, overwrite=True))
    assert (tmp_path / "policy").is_dir() and (tmp_path / "config.json").is_file()


def test_overwrite_refuses_to_remove_what_the_run_reads(tmp_path):
    out = tmp_path / "run"
    train(out)
    config = TrainConfig(out=out, overwrite=True, actor=str(out / "policy"))
    with pytest.raises(ValueError, match="lies in out="):
        RunFolder.create(config)
    assert (out / "policy" / "model.safetensors").is_file()


@pytest.mark.slow
def test_j_of_the_untrained_actor_is_measured_where_it_is_not_the_reference(tmp_path):
    """An actor that learns nothing has gained nothing, however good it was to begin with."""
    first = {"n_envs": 32, "total_tokens": 8192, "learning_rate": 1e-3, "eval_responses": 64}
    _, summary = train(tmp_path / "first", **first)
    assert summary["objective"] - summary["objective_reference"] > 0.3
    _, again = train(
        tmp_path / "again",
        actor=str(tmp_path / "first" / "policy"),
        learning_rate=0.0,
        eval_responses=64,
    )
    assert again["objective"] == pytest.approx(again["objective_reference"], abs=1e-6)
    assert again["objective_fraction"] == pytest.approx(0.0, abs=1e-5)
    assert again["score_reference"] < again["score"]


def test_a_reward_that_fails_in_the_middle_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "flaky.py").write_text(
        "calls = []\n"
        "def reward(prompts, responses):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3:\n"
        "        raise RuntimeError('the server is gone')\n"
        "    return [1.0] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    with pytest.raises(UserCodeError, match=r"the server is gone \(at .*flaky.py:5\)"):
        train(out, reward_model="flaky:reward", total_tokens=4096)
    assert (out / "checkpoints" / "failed.zip").is_file()
    assert (out / "policy" / "model.safetensors").is_file()
    assert read_metrics(out / "metrics.jsonl")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    place = tmp_path / "policy"
    with whole_folder(place) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(place) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (place / "a").read_text() == "old"
    with whole_folder(place) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in place.iterdir()] == ["b"]


@pytest.mark.slow
def test_under_a_moving_beta_a_run_is_drawn_and_judged_at_the_one_it_was_given(
    tmp_path, monkeypatch
):
    drawn = {}
    panel = curves._panel
    monkeypatch.setattr(
        curves,
        "_panel",
        lambda axis, rows, *given: drawn.update(rows=rows) or panel(axis, rows, *given),
    )
    given = {"kl_controller": "dual", "kl_target": 3.0, "kl_dual_rate": 0.5}
    run, summary = train(tmp_path / "moved", **given)
    rows = read_metrics(tmp_path / "moved" / "metrics.jsonl")
    used = [row["rlhf/kl_coef"] for row in rows if "rlhf/kl_coef" in row]
    assert len(set(used)) == len(used) >= 2, "β moved"
    for row, judged in zip(rows, drawn["rows"], strict=True):
        if "rlhf/score" in row:
            score, kl, own = (row[f"rlhf/{name}"] for name in ("score", "kl", "kl_coef"))
            assert judged["rlhf/objective"] == score - summary["kl_coef"] * kl
            assert row["rlhf/objective"] == pytest.approx(score - own * kl, abs=1e-6)
    assert used[0] == summary["kl_coef"] == run.held_out.settings.kl_coef
    assert summary["kl_coef_final"] == run.env.env.kl_coef < used[-1]
    written = json.loads((tmp_path / "moved" / "summary.json").read_text())
    assert written["kl_coef_final"] == summary["kl_coef_final"]
    assert "kl_coef_final" not in train(tmp_path / "fixed")[1]


@pytest.mark.slow
def test_the_summary_is_json_that_anyone_reads(tmp_path):
    train(tmp_path / "run")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert "NaN" not in text and json.loads(text)["tokens"] == 512


# Replacing, failing, stopping --------------------------------------------------------------------


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


FAILING = (
    "import sys; calls = []\n"
    "def reward(prompts, responses):\n"
    "    calls.append(1)\n"
    "    if len(calls) > {after}:\n"
    "        {what}\n"
    "    return [1.0] * len(responses)\n"
)


def failing_reward(folder: Path, monkeypatch, after: int, what: str) -> str:
    """A reward function, named as code, that fails in a later call."""
    name = f"failing_{folder.name}_{after}".replace("-", "_")
    (folder / f"{name}.py").write_text(FAILING.format(after=after, what=what))
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:reward"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_reward_function_raises_what_was_learned_is_kept(
    tmp_path, monkeypatch, what, said
):
    out = tmp_path / "run"
    name = failing_reward(tmp_path, monkeypatch, 3, what)
    with pytest.raises(UserCodeError, match=rf"{name}' failed with {said}.*\(at .*:5\)\."):
        train(out, reward_model=name, total_tokens=4096)
    assert (out / "policy" / "model.safetensors").is_file()
    assert (out / "checkpoints" / "failed.zip").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] is False and said in summary["ended_by"]
    assert read_metrics(out / "metrics.jsonl")
    assert not (out / ".lock").exists()


@pytest.mark.slow
def test_overwrite_gives_the_old_run_up_only_for_a_checkpoint(tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(out)
    before = files_of(out)
    # It fails before there has been an update: the old run is back.
    name = failing_reward(tmp_path, monkeypatch, 1, "raise RuntimeError('gone')")
    with pytest.raises(UserCodeError):
        train(out, overwrite=True, reward_model=name)
    assert files_of(out) == before
    # It fails after one: what it has learned is there, and all of the old run is gone.
    name = failing_reward(tmp_path, monkeypatch, 3, "raise RuntimeError('gone')")
    with pytest.raises(UserCodeError):
        train(out, overwrite=True, reward_model=name, total_tokens=4096)
    after = files_of(out)
    assert "checkpoints/failed.zip" in after and "summary.json" in after
    assert not after.keys() & {"checkpoints/tokens-512.zip", "curves.png"}
    assert not [name for name in after if name.startswith(".")]


def test_two_runs_on_one_folder_are_refused_and_a_dead_one_blocks_nobody(tmp_path):
    out = tmp_path / "run"
    first = TrainingRun(TrainConfig(out=out, **TINY), Console(quiet=True))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="/run' is being written by process"):
            RunFolder.create(TrainConfig(out=out, overwrite=overwrite))
    assert first.run.output is not None
    first.run.output.close()
    again = RunFolder.create(TrainConfig(out=out, overwrite=True))
    assert again.output is not None
    again.output.close()


def test_runs_without_a_name_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create(TrainConfig()) for _ in range(3)]
    assert len({run.root for run in made}) == 3
    for run in made:
        assert run.output is not None
        run.output.close()


@pytest.mark.slow
def test_linked_parts_of_a_run_are_unlinked_and_a_linked_run_is_refused(tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    train(out)
    (out / "policy").rename(other)
    (out / "policy").symlink_to(other)
    kept = files_of(other)
    train(out, overwrite=True)
    assert not (out / "policy").is_symlink() and (out / "policy" / "config.json").is_file()
    assert files_of(other) == kept
    (tmp_path / "latest").symlink_to(out)
    with pytest.raises(ValueError, match=r"latest' is a link to .*/run': nothing is removed"):
        RunFolder.create(TrainConfig(out=tmp_path / "latest", overwrite=True))
    assert (out / "policy" / "config.json").is_file()


@pytest.mark.parametrize("name", ["actor", "reference", "reward_model", "critic", "prompts"])
@pytest.mark.parametrize("through_link", [False, True])
def test_overwrite_refuses_to_remove_any_source_of_the_run(tmp_path, name, through_link):
    out = tmp_path / "run"
    made = RunFolder.create(TrainConfig(out=out))
    assert made.output is not None
    made.begin(TrainConfig(out=out))
    made.output.close()
    (out / "policy").mkdir()
    source = out / "policy"
    if through_link:
        source = tmp_path / "link"
        source.symlink_to(out / "policy")
    given = {name: str(source)}
    if name == "critic":
        given["value_head"] = "separate"
    with pytest.raises(ValueError, match="lies in out="):
        RunFolder.create(TrainConfig(out=out, overwrite=True, **given))
    assert (out / "policy").is_dir() and (out / "config.json").is_file()


def test_a_full_disk_keeps_the_policy_names_the_path_and_leaves_no_temporary(tmp_path, monkeypatch):
    """Room for the policy, and none for what is written after it."""
    out = tmp_path / "run"
    console = Console(file=io.StringIO(), width=1000)
    run = TrainingRun(TrainConfig(out=out, **TINY), console)

    def no_room(place, *_, **__):
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.model, "save", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints/tokens-512.zip'"):
        run.train()
    assert (out / "policy" / "model.safetensors").is_file()
    assert (out / "reward_model" / "model.safetensors").is_file()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["tokens-512"]
    said = " ".join(console.file.getvalue().split())
    assert "Kept in" in said and ": policy/, reward_model/, summary.json, metrics.jsonl" in said
    assert "Not kept: checkpoints/failed.zip (No space left on device)." in said
    assert not [path for path in out.rglob(".*")]
    assert json.loads((out / "summary.json").read_text())["finished"] is False


@pytest.mark.slow
def test_a_disk_that_is_really_full_leaves_room_for_the_policy(tmp_path):
    """2 MB: the first checkpoint does not fit; what it had taken is enough for the policy."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        command = [sys.executable, "-m", "agents.cli", "train", "--out", str(disk / "run")]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
        done = subprocess.run(
            [*command, "--eval-every", "1", "--checkpoint-every", "1", "--total-tokens", "1024"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "1000"},
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
        assert done.stderr.count("\n") == 1 and "tokens-256' can't be" in done.stderr
        assert "No space left on device" in done.stderr
        LMActorCriticPolicy.from_pretrained(disk / "run" / "policy")
        assert "policy/" in done.stdout.split("Not kept")[0]
        assert not [path for path in disk.rglob(".*")]
    finally:
        # Lazily: weights that were read may be mapped still.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
