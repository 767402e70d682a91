"""Checkpoints and adapters that were damaged: as `test_hostile_files`.

An index that was edited has no checksum of its own: what it says is checked where it is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.mutations import HARM, Kind, check, failures, mutations, require
from support.tiny_task import make_agent, task_kwargs

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.checkpoints import read_checkpoint

LORA = {"rank": 2}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict:
    """The tiny task, deferred; its model is small, as each changed file builds it again."""
    return {**task_kwargs(tmp_path_factory.mktemp("task"), "llama"), "scoring": "deferred"}


@pytest.fixture(scope="module")
def kinds(task, tmp_path_factory) -> list[Kind]:
    """The kinds of files."""
    root = tmp_path_factory.mktemp("training")
    model = make_agent(task, n_envs=2, n_steps=8, n_epochs=1)
    model.learn(16)
    model.save_checkpoint(root / "checkpoint", {"run": {"logs": {"metrics.jsonl": 0}}})
    adapted = make_agent(task, n_envs=2, policy_kwargs={"lora": LORA})
    adapted.policy.save_pretrained(root / "adapted")

    def go_on(folder: Path) -> None:
        """The checkpoint, and the training that goes on from it, which makes one update."""
        loaded = TokenPPO.load(folder, make_vec_env(n_envs=2, **task))
        require(isinstance(loaded.num_timesteps, int), "no number of tokens")
        loaded.learn(16, reset_num_timesteps=False)
        finite = all(bool(torch.isfinite(weight).all()) for weight in loaded.policy.parameters())
        require(finite, "weights that are not finite")

    def read_adapted(folder: Path) -> None:
        policy = LMActorCriticPolicy.from_pretrained(folder)
        obs = np.full((1, policy.observation_space.shape[0]), -1)
        obs[0, 4] = 7
        value = policy.predict_values(torch.as_tensor(obs))
        require(bool(torch.isfinite(value).all()), "no value")

    tensors = sorted(path.name for path in (root / "checkpoint").glob("*.safetensors"))
    assert len(tensors) >= 4
    return [
        Kind(root / "checkpoint", "checkpoint.json", go_on, (40, 260)),
        *(
            Kind(root / "checkpoint", name, lambda f: read_checkpoint(f), (20, 0))
            for name in tensors
        ),
        Kind(root / "adapted", "adapter/adapter_config.json", read_adapted, (20, 80)),
        Kind(root / "adapted", "adapter/adapter_model.safetensors", read_adapted, (40, 0)),
    ]


def test_whole_ones_are_read(kinds, tmp_path):
    for kind in kinds:
        assert check(kind, lambda file: None, tmp_path / "copy") is None
        kind.read(tmp_path / "copy")


@pytest.mark.slow
def test_changed_ones_are_read_as_they_are_or_refused_by_name(kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [(kind, case) for kind in kinds for case in mutations(kind)]
    found = failures(cases, tmp_path / "copy")
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n".join(found)
    assert not list(tmp_path.rglob(HARM))
