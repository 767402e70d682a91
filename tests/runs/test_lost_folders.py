"""A folder that can't be written, or is gone: a clear error, the last checkpoint intact."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from agents.checkpoints import newest_checkpoint
from agents.cli import main
from agents.ppo import TokenPPO
from agents.runs.resumed_settings import settings_of_run
from agents.runs.training import TrainingRun

SETTINGS = {
    **{"task": "exact", "total_tokens": 512, "n_envs": 16, "n_steps": 8, "batch_size": 64},
    **{"reward_model": "reward_of_lost_folders:length", "device": "cpu", "checkpoint_every": 1},
    **{"eval_prompts": 4, "eval_responses": 4, "eval_every": 0, "explain_every": 0},
}
FLAGS = [
    word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(autouse=True)
def reward(tmp_path, monkeypatch):
    """A reward that is a function, so that nothing is enumerated."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "reward_of_lost_folders.py").write_text(
        "def length(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("agents.runs.training.draw_curves", lambda *_: None)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Lays a file system that is empty and read-only over a folder; it ends with the test."""
    places: list[Path] = []

    def mount(place: Path) -> None:
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a file system needs root")
        places.append(place)

    yield mount
    for place in places:
        if place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def after_rollouts(monkeypatch, count: int, what) -> None:
    """Let something happen while a rollout is collected."""
    collect, calls = TokenPPO.collect_rollouts, []

    def collect_rollouts(model, *args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            what()
        return collect(model, *args, **kwargs)

    monkeypatch.setattr(TokenPPO, "collect_rollouts", collect_rollouts)


def goes_on(out: Path) -> None:
    """The newest checkpoint is whole, of two updates, and the run is finished from there."""
    said: list[str] = []
    checkpoint = newest_checkpoint(out / "checkpoints", said.append)
    assert checkpoint is not None and checkpoint.updates == 2 and not said
    config = dataclasses.replace(settings_of_run(out), resume=out, trust_code=True)
    summary = TrainingRun(config, Console(file=io.StringIO(), width=1000)).train()
    assert summary["finished"] is True and summary["tokens"] == 512


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_keeps_its_last_checkpoint(
    tmp_path, read_only, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_rollouts(patch, 3, lambda: read_only(out))
        assert main(["train", "--out", str(out), *FLAGS]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err + captured.out
    assert "Read-only file system" in captured.err and str(out) in captured.err
    subprocess.run(["umount", str(out)], check=True)
    goes_on(out)


def test_a_read_only_place_is_refused_before_anything_is_trained(tmp_path, read_only, capsys):
    read_only(tmp_path / "disk")
    out = tmp_path / "disk" / "run"
    assert main(["train", "--out", str(out), *FLAGS]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Read-only file system" in error and str(out) in error


@pytest.mark.slow
def test_a_folder_that_is_moved_away_is_named_and_goes_on_from_its_new_place(
    tmp_path, monkeypatch, capsys
):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with monkeypatch.context() as patch:
        after_rollouts(patch, 3, lambda: out.rename(elsewhere))
        assert main(["train", "--out", str(out), *FLAGS]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err + captured.out
    assert str(out) in captured.err
    goes_on(elsewhere)


@pytest.mark.slow
def test_a_folder_that_is_removed_is_named(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_rollouts(patch, 3, lambda: shutil.rmtree(out))
        assert main(["train", "--out", str(out), *FLAGS]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err + captured.out
    assert "No such file or directory" in captured.err and str(out) in captured.err
    assert "Kept in" in captured.out and (out / "policy" / "config.json").is_file()
