"""SFT and reward-model training by two ranks take the steps of one process; commands write once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import run_ranks
from support.tiny_task import save_actor, save_reward_model

from agents.scaling.data_parallel import DataParallel
from agents.sft.config import SFTSettings
from agents.sft.training import train_sft
from tokenenv.data import Example, PreferencePair
from tokenenv.models import OneProcess, load_trainable
from tokenenv.rewards import RewardTrainingSettings, new_reward_model, train_reward_model

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, torch
from agents.cli import main
from agents.scaling import launched_ranks
from agents.scaling.data_parallel import data_parallel
import test_batches_of_ranks as tests

ranks = launched_ranks("cpu")
for name, train in (("sft", tests.sft), ("rm", tests.reward)):
    torch.save(train(data_parallel(ranks)), f"{name} {rank}.pt")
ranks.leave()
"""

COMMANDS = """
import sys
from agents.cli import main

sys.exit(main({arguments!r}))
"""


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    words = [[f"w{i}" for i in rng.integers(3, 30, size=rng.integers(2, 9))] for _ in range(23)]
    return [Example(f"w{n % 20 + 3}", " ".join(text)) for n, text in enumerate(words)]


def pairs() -> list[PreferencePair]:
    texts = [example.response for example in examples()]
    return [
        PreferencePair(f"w{n % 15 + 3}", *sorted(both, key=len), margin=0.1 * (n % 3))
        for n, both in enumerate(itertools.pairwise(texts))
    ]


def sft(together: OneProcess) -> dict[str, Any]:
    """Steps of one to six examples each, in float64."""
    language_model = load_trainable(save_actor(Path("models/gpt2"), "gpt2"))
    language_model.model.double()
    settings = SFTSettings(
        batch_tokens=16, micro_batch_tokens=24, epochs=2, eval_fraction=0.2, learning_rate=1e-3
    )
    report = train_sft(examples(), language_model, settings, together=together)
    return {**language_model.model.state_dict(), "loss": torch.tensor(report.train_loss)}


def reward(together: OneProcess) -> dict[str, Any]:
    """Steps of five pairs each, in float64."""
    model = new_reward_model(save_reward_model(Path("models/reward")), "cpu")
    model.model.double()
    settings = RewardTrainingSettings(
        batch_size=5, micro_batch_tokens=40, epochs=2, learning_rate=1e-3
    )
    report = train_reward_model(pairs(), model, settings, together=together)
    assert report.training.steps > 4
    return {**model.model.state_dict(), "loss": torch.tensor(report.training.train_loss)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    save_actor(folder / "models" / "gpt2", "gpt2")
    save_reward_model(folder / "models" / "reward")
    here = str(Path(__file__).parent)
    done = run_ranks(f"import sys; sys.path.append({here!r})\n{PROGRAM}", folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 0", done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(("name", "train"), [("sft", sft), ("rm", reward)])
def test_two_ranks_take_the_steps_of_one_process(folder, monkeypatch, name, train):
    monkeypatch.chdir(folder)
    alone, first, second = train(OneProcess()), *(torch.load(f"{name} {r}.pt") for r in (0, 1))
    start = load_trainable("models/gpt2").model.state_dict() if name == "sft" else {}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert max(float((alone[key] - first[key]).abs().max()) for key in alone) <= 1e-6
    assert not start or any((start[key] - alone[key]).abs().max() > 1e-3 for key in start)


class _Rank:
    """One of three ranks."""

    count = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_a_batch_is_dealt_out_by_size():
    sizes = np.array([3, 9, 1, 7, 5, 2, 8])
    shares = [DataParallel(_Rank(rank)).share(np.arange(10, 17), sizes) for rank in range(3)]
    assert sorted(np.concatenate([own for own, _ in shares]).tolist()) == list(range(10, 17))
    assert [sizes[own - 10].sum() for own, _ in shares] == [12, 11, 12]
    few = [DataParallel(_Rank(rank)).share(np.array([4, 6]), np.array([1, 2])) for rank in range(3)]
    assert [(own.tolist(), weight) for own, weight in few] == [([6], 1), ([4], 1), ([4], 0)]


def test_the_commands_write_one_model(folder):
    rows = [{"prompt": e.prompt, "completion": e.response} for e in examples()]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["sft", "--data", "texts.jsonl", "--model", "models/gpt2", "--out", "tuned"]
    arguments += ["--device", "cpu", "--epochs", "1"]
    done = run_ranks(COMMANDS.format(arguments=arguments), folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 0", done.stdout + done.stderr
    assert done.stdout.count("model in tuned") == 1
    assert json.loads((folder / "tuned" / "report.json").read_text())["finished"]
    done = run_ranks(COMMANDS.format(arguments=arguments), folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 2 2"
    assert done.stderr.count("exists already") == 1
