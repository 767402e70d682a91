"""`tokenrlhf train` in two processes: one run, that any number of ranks go on with."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.ranks import run_ranks

from agents.config import TrainConfig
from agents.runs.resumed_settings import settings_of_run
from agents.runs.training import TrainingRun

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    **{"task": "exact", "reward_model": "reward_of_ranks:reward", "total_tokens": 768},
    **{"n_envs": 16, "n_steps": 8, "batch_size": 48, "n_epochs": 2, "device": "cpu"},
    **{"kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 50.0, "cut": "carry"},
    **{"eval_responses": 0, "eval_every": 0, "explain_every": 0, "eval_prompts": 4},
    **{"checkpoint_every": 2, "check_ranks_every": 1},
}
"""Six updates of 128 tokens, 64 of each of two ranks."""

REWARD = """
import os, signal, time
from pathlib import Path

calls = 0

def reward(prompts, responses):
    global calls
    calls += 1
    if os.environ.get("RANK") == "1" and calls == 6 and Path("deadly").exists():
        Path("deadly").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    is_lost = os.environ.get("RANK") == "1" and calls == 3 and Path("lost").exists()
    return [float("nan") if is_lost else len(r) / 10 - 1 for r in responses]
"""

HEAD = """
import json, os, sys, time
from pathlib import Path
from rich.console import Console
from agents.config import TrainConfig
from agents.ppo import Update
from agents.runs import training
from agents.runs.ranks import FollowingRun
from agents.scaling import launched_ranks

sys.path.insert(0, ".")
training.draw_curves = lambda *_: None
SETTINGS = json.loads(Path("settings.json").read_text())
ranks = launched_ranks("cpu")

def train(config):
    if rank == 0:
        with Path(f"{config.out or config.resume}.txt").open("w") as said:
            training.TrainingRun(config, Console(file=said, width=4000), ranks).train()
    else:
        FollowingRun(config, ranks).train()

def run(out, **changes):
    train(TrainConfig(out=Path(out), **{**SETTINGS, **changes}))
"""

WHOLE = """
def refused(out, **changes):
    try:
        run(out, **changes)
    except ValueError as error:
        (home / f"refused {Path(out).name} {rank}").write_text(str(error))

home = Path.cwd()
own = home / f"rank-{rank}"
own.mkdir()
(own / "prompts.txt").write_text("\\n".join(["do", "re", "mi", ["fa", "sol"][rank]] * 8))
refused("seeds", seed=rank)
os.chdir(own)
refused("../prompts", prompts="prompts.txt")
os.chdir(home)
refused("few", n_envs=1)
refused("uneven", n_envs=15)
refused("refresh", refresh_every=2)
Path("taken").mkdir(exist_ok=True)
Path("taken/notes").write_text("mine")
ranks.barrier()
refused("taken")
run("whole")

import reward_of_ranks
if rank == 0:
    Path("lost").touch()
ranks.barrier()
reward_of_ranks.calls = 0
run("skips")
if rank == 0:
    Path("lost").unlink()

log = Update.log

def change_a_weight(update):
    log(update)
    if rank == 1 and update.model.num_updates == 2:
        next(update.policy.parameters()).data[0, 0] += 1e-3

Update.log = change_a_weight
refused("apart")
"""

DIES = """
Path("deadly").touch()
ranks.barrier()
try:
    run("killed")
except RuntimeError as error:
    Path("killed.json").write_text(json.dumps([time.time(), type(error).__name__, str(error)]))
ranks.leave(is_done=False)
"""

GOES_ON = """
from dataclasses import replace
from agents.runs.resumed_settings import settings_of_run
for name in ("killed", "single"):
    config = settings_of_run(Path(name))
    train(replace(config, resume=Path(name), trust_code=True, total_tokens=768))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a whole run, one whose second rank was killed, and what both ranks said."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "reward_of_ranks.py").write_text(REWARD)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    done = run_ranks(HEAD + WHOLE + "ranks.leave()\n", folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 0", done.stdout + done.stderr
    done = run_ranks(HEAD + DIES, folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 -9", done.stdout + done.stderr
    shutil.copytree(folder / "killed", folder / "for one")
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    clocks = ("time/fps", "time/time_elapsed", "time/tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def in_one_process(folder: Path, config: TrainConfig, said: io.StringIO | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr("agents.runs.training.draw_curves", lambda *_: None)
        TrainingRun(config, Console(file=said or io.StringIO(), width=4000)).train()


def test_ranks_make_one_run(folder):
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    assert summary["finished"] and summary["tokens"] == 768
    steps = [row["time/total_timesteps"] for row in rows(folder / "whole") if "rlhf/kl" in row]
    assert steps == [128 * n for n in range(1, 7)]
    content = json.loads((folder / "whole" / "config.json").read_text())
    assert content["n_envs"] == 16 and content["device"] == "cpu"
    assert sorted(p.name for p in (folder / "whole" / "checkpoints").iterdir()) == sorted(
        [f"tokens-{n}{end}" for n in (256, 512, 768) for end in ("", ".zip")]
    )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("seeds", "seed is 1 on rank 1 and 0 on rank 0"),
        ("prompts", "the ranks can't train together: the prompts is "),
        ("few", "n_envs=1 for 2 ranks: every rank needs at least one"),
        ("uneven", "n_envs=15 can't be shared evenly by 2 ranks: give 14 or 16"),
        ("refresh", "refresh_every=2 changes the reward model in one process"),
        ("taken", "rank 0 of 2: out='taken' exists already"),
        ("apart", "after update 2 the ranks have gone different ways"),
    ],
)
def test_all_ranks_refuse_what_one_can_not_use(folder, what, said):
    for rank in (0, 1):
        assert said in (folder / f"refused {what} {rank}").read_text()
    assert (folder / what / "config.json").exists() == (what == "apart")


def test_a_reward_that_is_not_finite_on_one_rank_costs_the_update_of_all(folder):
    """Ranks compare their weights after every update: they stay the same."""
    summary = json.loads((folder / "skips" / "summary.json").read_text())
    assert summary["finished"] is True and summary["skipped_updates"] == 1
    said = " ".join((folder / "skips.txt").read_text().split())
    assert "no update was made after 384 tokens: rank 1: rewards of" in said


def test_a_rank_that_dies_stops_the_others_and_the_run_goes_on_to_the_bit(folder):
    died = float((folder / "deadly").read_text())
    stopped, kind, message = json.loads((folder / "killed.json").read_text())
    assert kind == "RankLost" and stopped - died <= 30
    assert "rank 1 of 2 (process " in message and "is gone" in message
    assert json.loads((folder / "killed" / "summary.json").read_text())["finished"] is False
    assert "To go on after 512 tokens" in (folder / "killed.txt").read_text()
    (folder / "deadly").unlink()

    # Three updates: the checkpoint at its end is none of those after every two.
    settings = {**SETTINGS, "out": folder / "single", "total_tokens": 384}
    in_one_process(folder, TrainConfig(**settings))
    before = len(rows(folder / "single"))
    done = run_ranks(HEAD + GOES_ON + "ranks.leave()\n", folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 0", done.stdout + done.stderr

    whole, again = (
        load_file(folder / n / "policy" / "model.safetensors") for n in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert rows(folder / "whole") == rows(folder / "killed")
    # Two ranks went on with the run of one process.
    assert "is of 1 rank(s), and goes on with 2" in done.stderr
    summary = json.loads((folder / "single" / "summary.json").read_text())
    assert (
        summary["finished"] and summary["tokens"] == 768 and len(rows(folder / "single")) > before
    )


def test_one_process_goes_on_with_the_run_of_two(folder, caplog):
    root = folder / "for one"
    config = dataclasses.replace(settings_of_run(root), resume=root, trust_code=True)
    in_one_process(folder, config)
    assert "is of 2 rank(s), and goes on with 1" in caplog.text
    whole, after = (
        {row["time/total_timesteps"]: row for row in rows(run) if "rlhf/kl" in row}
        for run in (folder / "whole", root)
    )
    assert sorted(after) == [128 * n for n in range(1, 7)]
    # β of the fifth rollout was moved by the four before it, the rate falls as it would have.
    for name in ("rlhf/kl_coef", "train/learning_rate"):
        assert after[640][name] == whole[640][name]
    assert whole[640]["rlhf/kl_coef"] != 1.1 and after[640]["rlhf/kl"] != whole[640]["rlhf/kl"]
