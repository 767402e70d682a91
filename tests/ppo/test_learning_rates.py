"""How the learning rate falls over a training."""

from __future__ import annotations

import math

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.ppo import Decay
from agents.ppo.learning_rates import DECAYS
from agents.runs.agent import build_agent
from agents.settings import LR_SCHEDULES

SHARES = {
    "linear": lambda left: left,
    "cosine": lambda left: (1 + math.cos(math.pi * (1 - left))) / 2,
    "cubic": lambda left: left * left * left,
}


class Rates(BaseCallback):
    """The optimiser's rate in the update before each rollout."""

    def __init__(self):
        super().__init__()
        self.seen: list[float] = []

    def _on_rollout_start(self) -> None:
        self.seen.append(self.model.policy.optimizer.param_groups[0]["lr"])

    _on_training_end = _on_rollout_start

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("shape", DECAYS)
def test_a_decay_begins_at_its_start_and_ends_at_0(shape):
    decay = Decay(2e-3, shape)
    assert decay(1.0) == 2e-3 and decay(0.0) == 0
    for left in (0.9, 0.5, 0.1):
        assert decay(left) == pytest.approx(2e-3 * SHARES[shape](left), rel=1e-12)


def test_half_of_a_cubic_rate_is_gone_after_a_fifth():
    assert Decay(1.0, "cubic")(0.8) == pytest.approx(0.512)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_updates_take_the_rate_of_their_rollouts_start(schedule, tiny_task_kwargs):
    """Four updates at 1, ¾, ½ and ¼ of the training; SB3 would read ¾, ½, ¼ and 0."""
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    config = TrainConfig(n_envs=2, n_steps=4, batch_size=8, n_epochs=1, lr_schedule=schedule)
    policy = {"actor": env.inner.settings.reference}
    model, rates = build_agent(config, env, policy_kwargs=policy), Rates()
    model.learn(4 * 8, callback=[RLHFCallback(), rates])
    share = SHARES.get(schedule, lambda _: 1.0)
    expected = [config.learning_rate * share(left) for left in (1, 0.75, 0.5, 0.25)]
    assert rates.seen[1:] == pytest.approx(expected, rel=1e-9)


def test_a_decay_survives_saving_and_loading(tiny_task_kwargs, tmp_path):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    policy = {"actor": env.inner.settings.reference}
    model = TokenPPO(
        *(LMActorCriticPolicy, env, Decay(1e-3, "cubic")),
        **{"n_steps": 4, "policy_kwargs": policy},
    )
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env)
    assert loaded.learning_rate == Decay(1e-3, "cubic")
    assert loaded.lr_schedule(0.5) == pytest.approx(1.25e-4)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shape='cube' must be one of 'linear', 'cosine', 'cubic'"):
        Decay(1e-3, "cube")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lr_schedule='cube' must be one of 'linear'.*'constant'"):
        TrainConfig(lr_schedule="cube")  # type: ignore[arg-type]
