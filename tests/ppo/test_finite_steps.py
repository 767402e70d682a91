"""A step whose loss or gradient is not finite is never taken, nor is a rollout learned from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from support.pairs import separable_pairs
from support.tiny_task import begin, collect, largest_difference, make_agent, weights

from agents import RLHFCallback
from agents.ppo.update import NonFiniteStep
from agents.rollout.buffer import EpisodeRolloutBuffer
from tokenenv.rewards.preferences import train_reward_model
from tokenenv.rewards.reward_model import new_reward_model


def optimizer_state(model) -> dict[str, torch.Tensor]:
    """A copy of Adam's moments and step counts."""
    state = model.policy.optimizer.state_dict()["state"]
    return {
        f"{i}.{n}": torch.as_tensor(t).clone() for i, own in state.items() for n, t in own.items()
    }


def break_the(what: str, model, at: int) -> None:
    """Let the `at`-th evaluation have a loss, or only a gradient, that is not finite."""
    evaluate, calls = model.policy.evaluate_actions, []

    def evaluate_actions(obs, actions):
        values, log_probs, entropies = evaluate(obs, actions)
        calls.append(None)
        if len(calls) == at:
            if what == "values":
                values = values * torch.inf
            elif what == "log-probabilities":
                log_probs = log_probs * torch.nan
            elif what == "gradient":  # the loss is finite: 0·√0 is 0, its derivative 0·∞
                log_probs = log_probs + 0 * torch.sqrt(0 * log_probs)
            elif what == "norm":  # every gradient is finite, their squares' sum is not
                values.register_hook(lambda gradient: gradient * 1e30)
        return values, log_probs, entropies

    model.policy.evaluate_actions = evaluate_actions


@pytest.mark.parametrize(
    ("what", "words", "given"),
    [
        ("values", "value_loss=", {"critic_warmup": 3}),
        ("log-probabilities", "policy_gradient_loss=nan", {"micro_batch_tokens": 30}),
        ("gradient", "grad_norm=nan", {}),
        ("norm", "grad_norm=inf", {}),
    ],
)
def test_a_step_that_is_not_finite_is_refused_and_changes_nothing(
    tiny_task_kwargs, what, words, given
):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred"}
    model = make_agent(kwargs, clip_range_vf=None, **given)
    collect(model, begin(model))
    model._current_progress_remaining = 1.0
    model.train()  # Adam has moments
    snapshots = []

    class Snapshots(type(model.policy.optimizer)):
        """Adam that keeps what it left behind after every step."""

        def step(self, closure=None):
            found = super().step(closure)
            snapshots.append((weights(model.policy), optimizer_state(model)))
            return found

    model.policy.optimizer.__class__ = Snapshots
    parts = 12 if "micro_batch_tokens" in given else 3
    break_the(what, model, at=parts)
    updates = model.num_updates
    collect(model, begin(model))
    with pytest.raises(NonFiniteStep, match=r"update 2, epoch \d, step \d: .*not taken") as error:
        model.train()
    assert words in str(error.value) and isinstance(error.value, ValueError)
    assert snapshots, "some steps before it were taken"
    assert largest_difference(snapshots[-1][0], weights(model.policy)) == 0.0
    assert largest_difference(snapshots[-1][1], optimizer_state(model)) == 0.0
    assert model.num_updates == updates
    assert all(p.grad is None for p in model.policy.parameters())
    assert all(p.requires_grad for p in model.policy.parameters())
    del model.policy.evaluate_actions
    model.train()  # goes on, once the cause is gone
    assert all(torch.isfinite(weight).all() for weight in weights(model.policy).values())


def test_the_norm_before_clipping_is_logged(tiny_task_kwargs):
    norms = []
    for limit in (1e-3, 1e9):
        model = make_agent(
            {**tiny_task_kwargs, "scoring": "deferred"},
            max_grad_norm=limit,
            n_epochs=1,
            batch_size=10**6,
        )
        collect(model, begin(model))
        model._current_progress_remaining = 1.0
        model.train()
        left = torch.cat([p.grad.flatten() for p in model.policy.parameters()]).norm()
        norms.append(model.logger.name_to_value["train/grad_norm"])
        assert float(left) == pytest.approx(min(limit, norms[-1]), rel=1e-3)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.1


# Rollouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["TokenPPO", "PPO on our buffer", "TokenPPO on SB3's buffer"])
@pytest.mark.parametrize("reward", [2e38, -2e38])
def test_rewards_whose_sums_leave_float32_are_refused(tiny_task_kwargs, agent, reward):
    """Each is finite and so is each float32; advantages, their differences from V, are not."""
    given = {
        "TokenPPO": {},
        "PPO on our buffer": {"agent": PPO, "rollout_buffer_class": EpisodeRolloutBuffer},
        "TokenPPO on SB3's buffer": {"rollout_buffer_class": RolloutBuffer},
    }[agent]
    model = make_agent(tiny_task_kwargs, **given)
    with torch.no_grad():
        model.policy.critic_head.bias.fill_(-2.0 * np.sign(reward) * 1e38)
    before = weights(model.policy)

    class Pays(RLHFCallback):
        def _on_step(self) -> bool:
            super()._on_step()
            self.locals["rewards"][:] = reward
            return True

    with pytest.raises(ValueError, match=r"not finite .*float32.*scale the scores down"):
        model.learn(120, callback=Pays())
    assert largest_difference(before, weights(model.policy)) == 0.0


# The reward model's training ----------------------------------------------------------------------


def test_training_a_reward_model_takes_no_such_step_either(reference_folder, rng):
    """Margins that are finite, and whose sum over a batch is not."""
    pairs = [dataclasses.replace(pair, margin=3e38) for pair in separable_pairs(rng, count=60)]
    model = new_reward_model(reference_folder)
    before = weights(model.model)
    with pytest.raises(ValueError, match=r"loss of step 1 is inf and .*the step was not taken"):
        train_reward_model(pairs, model)
    assert largest_difference(before, weights(model.model)) == 0.0
