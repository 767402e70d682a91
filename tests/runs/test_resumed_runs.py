"""A run that was stopped goes on from its newest checkpoint to what it would have come to."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.atomic_files import write_json
from agents.checkpoints import BrokenCheckpoint, OtherVersion, read_checkpoint
from agents.cli import main
from agents.config import TrainConfig
from agents.evaluation import EvaluationCallback
from agents.ppo import TokenPPO
from agents.runs.folder import RunFolder
from agents.runs.keeping import RunKeeper
from agents.runs.output_folder import OutputFolder
from agents.runs.resumed_settings import resumed, settings_of_run
from agents.runs.saving import CheckpointCallback
from agents.runs.training import TrainingRun

SETTINGS: dict[str, Any] = {
    **{
        "task": "exact",
        "total_tokens": 768,
        "n_envs": 16,
        "n_steps": 8,
        "batch_size": 64,
        "n_epochs": 1,
    },
    **{"reward_model": "reward_of_resumed_runs:drawn", "eval_prompts": 4, "eval_responses": 8},
    **{"eval_every": 2, "explain_every": 2, "explain_prompts": 2, "checkpoint_every": 1},
    **{"cut": "carry", "kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 50.0},
    **{"advantage_estimator": "rloo", "group_size": 3, "keep_checkpoints": 2, "device": "cpu"},
}
"""Six updates, with most of what has a state."""

CLOCKS = ("time/fps", "time/time_elapsed", "time/tokens_per_second")


CODE = """
import random
import numpy as np

def drawn(prompts, responses):
    return [random.random() + np.random.rand() - len(r) / 10 for r in responses]
"""
"""A reward that draws from the global generators of Python and NumPy."""


@pytest.fixture(scope="module", autouse=True)
def reward(tmp_path_factory):
    """The reward's module; and no pictures, which take longer than the training."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "reward_of_resumed_runs.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr("agents.runs.training.draw_curves", lambda *_: None)
        yield


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up."""


def run_of(out: Path, said: io.StringIO | None = None, **changes: Any) -> TrainingRun:
    console = Console(file=said or io.StringIO(), width=4000)
    return TrainingRun(TrainConfig(out=out, **{**SETTINGS, **changes}), console)


def resume(out: Path, said: io.StringIO | None = None, **changes: Any) -> TrainingRun:
    config = settings_of_run(out)
    config = dataclasses.replace(config, resume=out, trust_code=True, **changes)
    return TrainingRun(config, Console(file=said or io.StringIO(), width=4000))


def killed_after(out: Path, updates: int, monkeypatch: Any, **changes: Any) -> None:
    """A run that dies in the rollout after some updates, and leaves its files as they are."""
    run = run_of(out, **changes)
    with monkeypatch.context() as patch:
        collect, calls = TokenPPO.collect_rollouts, []

        def dying(model: Any, *args: Any, **kwargs: Any) -> bool:
            calls.append(0)
            collected = collect(model, *args, **kwargs)
            if len(calls) > updates:
                raise Killed
            return collected

        patch.setattr(TokenPPO, "collect_rollouts", dying)
        patch.setattr(RunKeeper, "keep", lambda *_: "")
        with pytest.raises(Killed):
            run.train()


def logged(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
    return [{key: v for key, v in row.items() if key not in CLOCKS} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, reward) -> Path:
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    random.seed(0)
    run_of(out).train()
    return out


@pytest.mark.slow
def test_a_killed_run_comes_to_what_it_would_have_come_to(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    random.seed(0)
    killed_after(out, 4, monkeypatch)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"torn": ')
    (out / "checkpoints" / ".tokens-640.tmp").mkdir()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    said = io.StringIO()
    run = resume(out, said)
    run.train()
    assert "going on after 512 of 768 tokens" in said.getvalue()
    assert logged(out) == logged(whole)
    assert logged(out, "samples.jsonl") == logged(whole, "samples.jsonl")
    for table in sorted((whole / "tokens").iterdir()):
        assert (out / "tokens" / table.name).read_bytes() == table.read_bytes()
    assert len(list((out / "tokens").iterdir())) == len(list((whole / "tokens").iterdir()))
    same = weights(whole)
    assert all(torch.equal(weight, same[name]) for name, weight in weights(out).items())
    summary, before = (json.loads((r / "summary.json").read_text()) for r in (out, whole))
    for name in set(before) - {"tokens_per_second", "wall_seconds"}:
        assert summary[name] == before[name], name
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert kept == {f"tokens-{n}{end}" for n in (640, 768) for end in ("", ".zip")} | {"best"}
    assert summary["best_checkpoint"]["folder"] == "checkpoints/best"
    assert not list(out.rglob(".*"))


@pytest.mark.slow
def test_a_broken_checkpoint_is_said_and_an_older_one_taken(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "summary.json").unlink()
    newest = out / "checkpoints" / "tokens-768"
    file = newest / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BrokenCheckpoint, match=r"policy\.safetensors is changed or cut off"):
        read_checkpoint(newest)
    said = io.StringIO()
    resume(out, said).train()
    assert "An older one is taken" in said.getvalue()
    assert "going on after 640 of 768 tokens" in said.getvalue()
    assert logged(out) == logged(whole)
    assert read_checkpoint(newest).tokens == 768


def opened(out: Path, **changes: Any) -> None:
    """Begin to resume, and close the folder where that is possible."""
    run = resume(out, **changes)
    assert run.run.output is not None
    run.run.output.close()


@pytest.mark.slow
def test_what_can_not_be_resumed_is_refused_by_name(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with pytest.raises(ValueError, match=r"trained on 768 tokens and is done \(total_tokens=768\)"):
        opened(out)
    (out / "summary.json").unlink()
    index = out / "checkpoints" / "tokens-768" / "checkpoint.json"
    text = index.read_text()
    index.write_text(text.replace('"version": 2', '"version": 99', 1))
    with pytest.raises(OtherVersion, match=r"has version 99 of its format .* reads version 2"):
        opened(out)
    index.write_text(text)
    first = resume(out)
    with pytest.raises(ValueError, match="is being written by process"):
        opened(out)
    assert first.run.output is not None
    first.run.output.close()
    (out / ".lock").write_text("process 1 on elsewhere")  # of a process that is no more
    (out / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no checkpoint to go on from"):
        opened(out)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ValueError, match=r"no checkpoint to go on from: .*--overwrite"):
        opened(out)
    assert not (out / ".lock").exists()


def test_other_settings_are_each_named_and_refused(capsys, tmp_path):
    whole = tmp_path / "run"
    whole.mkdir()
    made = TrainConfig(out=whole, **SETTINGS)
    (whole / "config.json").write_text(json.dumps(made.as_json()))
    stored = settings_of_run(whole)
    for changes, said in (
        ({"learning_rate": 1e-5, "n_envs": 8}, r"n_envs=8 \(the run has 16\); learning_rate=1e-05"),
        ({"total_tokens": 700}, r"total_tokens=700 \(the run has 768, and can have more\)"),
        ({"out": tmp_path}, "out="),
        ({"overwrite": True}, "overwrite=True"),
        ({"seeds": 2}, r"seeds=2 \(the run has None\)"),
    ):
        with pytest.raises(ValueError, match=said):
            resumed(dataclasses.replace(stored, resume=whole, trust_code=True, **changes))
    with pytest.raises(ValueError, match="names code: using this run would import"):
        resumed(dataclasses.replace(stored, resume=whole))
    more = {"total_tokens": 1024, "checkpoint_every": 3}
    config = resumed(dataclasses.replace(stored, resume=whole, trust_code=True, **more))
    assert config.out == whole and config.total_tokens == 1024 and config.n_envs == 16
    call = ["train", "--resume", str(whole), "--trust-code"]
    for arguments, said in (
        (["--max-grad-norm", "0.5"], "max_grad_norm=0.5 (the run has 1.0)"),
        (["--config", "zoo:reviews"], "both bring settings"),
        ([], "has no checkpoint to go on from"),
    ):
        assert main([*call, *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(tmp_path / "nothing")]) == 2
    assert "holds no run, config.json is missing" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_tokens(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    summary = resume(out, total_tokens=1024, keep_checkpoints=None).train()
    assert summary["tokens"] == 1024 and summary["finished"]
    rows = logged(out)
    assert [row["time/iterations"] for row in rows if "time/iterations" in row] == [*range(1, 9)]
    assert rows[:6] == logged(whole)[:6]
    assert settings_of_run(out).total_tokens == 1024


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    from agents.checkpoints import files

    out, save, calls = tmp_path / "run", files.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        save(tensors, path)
        if "tokens-256" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints/tokens-256'"):
        run_of(out).train()
    assert read_checkpoint(out / "checkpoints" / "tokens-128").updates == 1
    assert not list(out.rglob(".*")) and not (out / "checkpoints" / "tokens-256").exists()
    monkeypatch.setattr(files, "save_file", save)
    assert resume(out).train()["tokens"] == 768


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again():
    """The soak in small; `python benchmarks/soak_kills.py --kills 20` is the whole of it."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "soak_kills.py"
    command = [sys.executable, str(script), "--kills", "2", "--tokens", "1024"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: as it was" in done.stdout


@pytest.mark.slow
def test_a_reward_model_that_is_refreshed_goes_on_as_well(tmp_path, monkeypatch):
    """Killed between two rounds: its weights and scale, and the pairs that it has learned."""
    changes = {
        **{"reward_model": "exact", "max_new_tokens": 3, "eval_prompts": 2},
        **{"refresh_every": 2, "refresh_pairs": 8, "refresh_learning_rate": 1e-2},
    }
    run_of(tmp_path / "whole", **changes).train()
    killed_after(tmp_path / "run", 3, monkeypatch, **changes)
    resume(tmp_path / "run").train()
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert sum("rlhf/rm_scale" in row for row in logged(tmp_path / "run")) == 2
    for part in ("policy", "reward_model"):
        one, other = (
            load_file(tmp_path / name / part / "model.safetensors") for name in ("run", "whole")
        )
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    rounds = [sorted((tmp_path / name / "refresh").iterdir()) for name in ("run", "whole")]
    assert [[file.read_text() for file in files] for files in rounds[:1]] == [
        [file.read_text() for file in rounds[1]]
    ]


def test_the_settings_are_those_of_the_run_that_comes_back(tmp_path):
    """A run that was to be replaced, by one that was killed before it had anything."""
    run = RunFolder(tmp_path)
    write_json(run.config, TrainConfig(learning_rate=1e-4).as_json())
    output = OutputFolder(tmp_path, ["config.json"])
    output.set_aside(["config.json"])
    write_json(run.config, TrainConfig(learning_rate=5e-2).as_json())
    assert output._lock is not None
    os.close(output._lock)  # as the system does when a process is killed
    output._lock = None
    found = settings_of_run(tmp_path)
    assert found.learning_rate == 1e-4


def test_a_prompt_that_no_checkpoint_holds_leaves_the_archives(tmp_path, caplog):
    class Model:
        num_timesteps = 64
        policy = torch.nn.Linear(1, 1)

        def save_checkpoint(self, folder: Path, parts: Any) -> None:
            raise TypeError("environment.origins.0.columns.created is a datetime")

    callback = CheckpointCallback(tmp_path, 1)
    callback.model = Model()  # type: ignore[assignment]
    with caplog.at_level("WARNING"):
        assert callback.save_state() and callback.save_state()
    assert callback.saved is None and len(caplog.records) == 1
    assert "columns.created is a datetime" in caplog.text


def test_the_best_policy_is_looked_for_anew_where_another_stands_in_its_place(tmp_path):
    def goes_on(tokens: int | None) -> EvaluationCallback:
        callback = EvaluationCallback(None, 1, tmp_path)  # type: ignore[arg-type]
        if tokens is not None:
            write_json(tmp_path / "best.json", {"tokens": tokens, "objective": 2.0})
        callback.load_state_dict({"best_objective": 1.5, "best_tokens": 64, "rollouts": 3})
        return callback

    assert goes_on(None).best_objective == -np.inf
    assert (goes_on(64).best_objective, goes_on(64).best_tokens) == (1.5, 64)
    assert (goes_on(96).best_objective, goes_on(96).best_tokens) == (-np.inf, 0)
