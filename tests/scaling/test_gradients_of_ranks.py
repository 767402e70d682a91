"""Ranks with unequal numbers of tokens take the steps that one process with all of them takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from support.shared_update import CASES, alone
from support.tiny_task import task_kwargs

pytestmark = pytest.mark.slow

PROGRAM = """
import torch
from agents.scaling import launched_ranks
from support.shared_update import CASES, together

task = torch.load("task.pt")
ranks = launched_ranks("cpu")
for case in CASES:
    for shard in (False, True)[: 1 if case == "a warm-up" else 2]:
        result, model = together(task, case, ranks, shard)
        if shard:
            from torch.distributed.tensor import DTensor
            weights = list(model.trained.module.parameters())
            assert all(isinstance(weight, DTensor) for weight in weights)
            assert sum(weight.to_local().numel() for weight in weights) < 0.6 * sum(
                weight.numel() for weight in weights
            )
        torch.save(result, f"{case} {shard} {rank}.pt")
ranks.leave()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder of what two ranks came to, in every case, in DDP and sharded."""
    folder = tmp_path_factory.mktemp("ranks")
    task = task_kwargs(folder / "models", "gpt2")
    torch.save(task, folder / "task.pt")
    done = run_ranks(PROGRAM, folder=folder)
    assert done.stdout.splitlines()[-1] == "statuses 0 0", done.stdout + done.stderr
    return folder


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float((a[name] - b[name]).abs().max()) for name in a.keys() & b.keys()}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one_process_with_all_episodes(results, case):
    expected = alone(torch.load(results / "task.pt"), case, 2)
    first, second = (torch.load(results / f"{case} False {rank}.pt") for rank in (0, 1))
    assert expected.keys() == first.keys() == second.keys()
    assert max(differences(expected, first).values()) <= 1e-6
    assert max(differences(first, second).values()) == 0.0
    moved = {name for name in expected if name.startswith("gradient of ")}
    assert moved and max(float(expected[name].abs().max()) for name in moved) > 1e-3


@pytest.mark.parametrize("case", [case for case in CASES if case != "a warm-up"])
def test_sharded_training_is_ddp(results, case):
    ddp, sharded = (torch.load(results / f"{case} {shard} 0.pt") for shard in (False, True))
    other = torch.load(results / f"{case} True 1.pt")
    assert max(differences(ddp, sharded).values()) <= 1e-6
    assert max(differences(sharded, other).values()) == 0.0
