"""A training that goes on from a checkpoint gives what it would have given, to the bit."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from support.tiny_task import make_agent, task_kwargs

from agents import TokenPPO, make_vec_env

CLOCKS = ("time/fps", "time/time_elapsed", "time/tokens_per_second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


class Rows(KVWriter):
    """Keeps what is logged, but for what a clock says."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], *_: Any) -> None:
        self.rows.append({k: v for k, v in key_values.items() if k not in CLOCKS})

    def close(self) -> None:
        pass


class Rollouts(BaseCallback):
    """Keeps every rollout as the update sees it, and saves a checkpoint after the first update.

    Args:
        folder: of the checkpoint; None: none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder, self.rollouts = folder, []

    def _on_training_start(self) -> None:
        if self.folder is not None:
            self.model.between_rollouts.append(self.save)

    def save(self) -> None:
        if len(self.rollouts) == 1:
            self.model.save_checkpoint(self.folder)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        names = ("actions", "rewards", "values", "log_probs", "old_log_probs", "advantages")
        buffer = self.model.rollout_buffer
        self.rollouts.append({name: np.array(getattr(buffer, name)) for name in names})


def watched(model: Any, folder: Path | None = None) -> tuple[Rows, Rollouts]:
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    return rows, Rollouts(folder)


def assert_same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for mine, other in zip(a, b, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_same_state(a: Any, b: Any) -> None:
    """Two nested states of arrays, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert_same_state(value, b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same_state(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        np.testing.assert_array_equal(a, b)


def buffer(**settings: Any) -> dict[str, Any]:
    return {"rollout_buffer_kwargs": settings}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "carry": ("gpt2", {}, buffer(cut="carry")),
    "groups, deferred": (
        "gpt2",
        {"group_size": 3, "scoring": "deferred"},
        buffer(cut="carry", advantage_estimator="group", group_size=3),
    ),
    "adaptive": (
        "gpt2",
        {"scoring": "deferred"},
        {"kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 50},
    ),
    "step, dual": ("llama", {}, {"kl_controller": "dual", "kl_target": 0.5}),
    "carry, deferred": ("gpt2", {"scoring": "deferred"}, buffer(cut="carry")),
    "groups, step": (
        "gpt2",
        {"group_size": 3},
        buffer(cut="carry", advantage_estimator="rloo", group_size=3),
    ),
    "lora": ("gpt2", {"scoring": "deferred"}, {"policy_kwargs": {"lora": {"rank": 2}}}),
    "separate critic, warm-up": (
        "gpt2",
        {"scoring": "deferred"},
        {"policy_kwargs": {"value_head": "separate"}, "critic_warmup": 2, **buffer(cut="carry")},
    ),
    "bfloat16": ("gpt2", {}, {"precision": "bfloat16", **buffer(cut="carry")}),
    "k3 as loss": (
        "gpt2",
        {"kl_shaping": "none"},
        {"kl_estimator": "k3", "use_kl_loss": True, **buffer(cut="carry")},
    ),
    "vine": ("gpt2", {}, buffer(cut="carry", advantage_estimator="vine", vine_samples=2)),
}


FAST = ("carry", "groups, deferred", "adaptive")

UPDATES = 3
N, STEPS = 4, 10


def agent_of(kwargs: dict[str, Any], **settings: Any) -> Any:
    return make_agent(kwargs, n_envs=N, n_steps=STEPS, batch_size=24, n_epochs=2, **settings)


def assert_goes_on(folder: Path, tmp_path: Path, case: str) -> tuple[Any, Rollouts]:
    """Train, save on the way, go on from there with new objects: both give the same."""
    name, env_settings, settings = CASES[case]
    kwargs = {**task_kwargs(folder, name), **env_settings}
    random.seed(1)
    whole = agent_of(kwargs, **settings)
    rows, rollouts = watched(whole, tmp_path / "checkpoint")
    whole.learn(UPDATES * N * STEPS, callback=rollouts)
    drawn = random.random(), np.random.rand(), float(torch.rand(()))

    np.random.seed(99), torch.manual_seed(99), random.seed(99)
    env = make_vec_env(n_envs=N, seed=123, **kwargs)
    second = TokenPPO.load(tmp_path / "checkpoint", env, device="cpu")
    rows_after, after = watched(second)
    second.learn((UPDATES - 1) * N * STEPS, callback=after, reset_num_timesteps=False)

    assert_same(rollouts.rollouts[1:], after.rollouts)
    assert_same(rows.rows[1:], rows_after.rows)
    assert_same_state(dict(whole.policy.state_dict()), dict(second.policy.state_dict()))
    assert_same_state(whole.policy.optimizer.state_dict(), second.policy.optimizer.state_dict())
    assert second.env.inner.kl_coef == whole.env.inner.kl_coef
    assert second.num_timesteps == whole.num_timesteps
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == drawn
    return whole, rollouts


@pytest.mark.parametrize("case", FAST)
def test_a_training_that_is_gone_on_with_is_the_same_training(folder, tmp_path, case):
    assert_goes_on(folder, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in FAST])
def test_so_it_is_in_every_mode(folder, tmp_path, case):
    assert_goes_on(folder, tmp_path, case)


def test_saving_changes_nothing_and_what_does_not_fit_is_refused(folder, tmp_path):
    kwargs = {**task_kwargs(folder, "gpt2"), "scoring": "deferred"}
    checkpoint = tmp_path / "checkpoint"
    of_another_scale = str(shutil.copytree(kwargs["reward_model"], tmp_path / "reward_model"))
    config = Path(of_another_scale, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "reward_std": 1.8}))
    trained = []
    for place in (None, checkpoint):
        model = agent_of(kwargs)
        rows, rollouts = watched(model, place)
        model.learn(2 * N * STEPS, callback=rollouts)
        trained.append((rows.rows, dict(model.policy.state_dict())))
    assert_same(trained[0][0], trained[1][0])
    assert_same_state(trained[0][1], trained[1][1])
    with pytest.raises(ValueError, match=r"goes on with the episodes .*: pass env="):
        TokenPPO.load(checkpoint)
    for changes, said in (
        ({"n_envs": N + 1}, f"of {N} environments, and these are {N + 1}"),
        ({"prompts": ["w3", "w4"]}, r"the prompts of this environment \(2\) are not those"),
        ({"reference": task_kwargs(folder, "llama")["reference"]}, "has other weights"),
        ({"reward_model": of_another_scale}, "the reward model of this environment has other"),
    ):
        env = make_vec_env(**{"n_envs": N, **kwargs, **changes})
        with pytest.raises(ValueError, match=said):
            TokenPPO.load(checkpoint, env, device="cpu")
    with pytest.raises(ValueError, match="has not begun"):
        agent_of(kwargs).save_checkpoint(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_learn_that_begins_anew_takes_the_weights_alone(folder, tmp_path):
    kwargs = {**task_kwargs(folder, "gpt2"), "scoring": "deferred"}
    model = agent_of(kwargs)
    _, rollouts = watched(model, tmp_path / "checkpoint")
    model.learn(N * STEPS, callback=rollouts)
    loaded = TokenPPO.load(
        tmp_path / "checkpoint", make_vec_env(n_envs=N, **kwargs), device="cpu", n_epochs=1
    )
    assert_same_state(dict(model.policy.state_dict()), dict(loaded.policy.state_dict()))
    rows, _ = watched(loaded)
    loaded.learn(N * STEPS)
    assert loaded.num_timesteps == N * STEPS and loaded.n_epochs == 1 and loaded.pending is None
    assert [row["time/iterations"] for row in rows.rows] == [1]


def test_a_schedule_of_ones_own_is_asked_for(folder, tmp_path):
    kwargs = {**task_kwargs(folder, "gpt2"), "scoring": "deferred"}
    model = agent_of(kwargs, learning_rate=lambda remaining: 1e-3 * remaining)
    _, rollouts = watched(model, tmp_path / "checkpoint")
    model.learn(N * STEPS, callback=rollouts)
    env = make_vec_env(n_envs=N, **kwargs)
    with pytest.raises(ValueError, match=r"could not store learning_rate.*learning_rate=…\)"):
        TokenPPO.load(tmp_path / "checkpoint", env, device="cpu")
    TokenPPO.load(tmp_path / "checkpoint", env, device="cpu", learning_rate=1e-4)
