"""Updates that meet numbers which are not finite are left out; too many in a row end training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_task import largest_difference, make_agent, weights

from agents import TokenPPO, make_vec_env
from agents.ppo import NonFiniteStep
from agents.ppo.many_ranks import _check as check_for_ranks
from agents.rollout import NonFiniteRollout
from tokenenv.rewards import NonFiniteReward


@pytest.fixture
def deferred(tiny_task_kwargs) -> dict:
    return {**tiny_task_kwargs, "scoring": "deferred"}


class Broken:
    """Gives the loss of some minibatches no finite value: those of updates in `at`, from the third.

    Args:
        model: whose evaluations it changes.
        at: numbers of updates, from 1, made or not.
    """

    def __init__(self, model, at: set[int]) -> None:
        self.at, self.update, self.calls = at, 0, 0
        self.before: list[dict[str, torch.Tensor]] = []
        evaluate, train = model.policy.evaluate_actions, model.train

        def evaluate_actions(obs, actions):
            values, log_probs, entropies = evaluate(obs, actions)
            self.calls += 1
            is_broken = self.update in self.at and self.calls > 2
            return values, log_probs * (torch.nan if is_broken else 1.0), entropies

        def counted():
            self.update, self.calls = self.update + 1, 0
            self.before.append(weights(model.policy))
            train()
            self.calls = -(10**6)  # between two updates the sampling is checked

        model.policy.evaluate_actions = evaluate_actions
        model.train = counted


def test_a_skipped_update_leaves_the_weights_of_before_it_and_training_goes_on(deferred):
    model = make_agent(deferred, max_skipped_updates=1, clip_range_vf=None)
    broken = Broken(model, {2, 4})
    seen = []
    model.on_skipped = lambda update, error: seen.append((len(update.minibatches), str(error)))
    model.learn(5 * model.n_steps * model.n_envs)
    assert model.num_updates == 3 and model.num_skipped_updates == 2
    assert model.skipped_in_a_row == 0
    assert [steps for steps, _ in seen] == [2, 2], "the steps before it were taken, and undone"
    assert "update 2, epoch" in seen[0][1] and "update 3, epoch" in seen[1][1]
    differences = [
        largest_difference(one, two)
        for one, two in zip(broken.before, [*broken.before[1:], weights(model.policy)], strict=True)
    ]
    assert [difference == 0.0 for difference in differences] == [False, True, False, True, False]


def test_one_more_than_may_be_in_a_row_ends_training_with_the_weights_of_before(deferred):
    model = make_agent(deferred, max_skipped_updates=2, clip_range_vf=None)
    broken = Broken(model, {2, 3, 4})
    with pytest.raises(NonFiniteStep, match=r"^3 updates in a row could .* The last: upd"):
        model.learn(6 * model.n_steps * model.n_envs)
    assert model.num_updates == 1 and model.num_skipped_updates == 3
    assert largest_difference(broken.before[1], broken.before[3]) == 0.0


def test_the_first_is_an_error_where_none_may_be_skipped(deferred):
    model = make_agent(deferred, clip_range_vf=None)
    Broken(model, {2})
    with pytest.raises(NonFiniteStep, match=r"^update 2, epoch"):
        model.learn(3 * model.n_steps * model.n_envs)
    assert "train/skipped_updates" not in model.logger.name_to_value


class Sometimes:
    """A reward function that is NaN for one response of some rollouts."""

    def __init__(self, rollouts: set[int], value: float = np.nan) -> None:
        self.rollouts, self.value, self.calls = rollouts, value, 0

    def __call__(self, prompts, responses):
        self.calls += 1
        rewards = [float(len(response)) for response in responses]
        if self.calls in self.rollouts:
            rewards[-1] = self.value
        return rewards

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_reward_that_is_not_finite_costs_its_update_and_no_other(deferred, cut, value):
    reward = Sometimes({3}, value)
    kwargs = {**deferred, "reward_model": reward}
    buffer = {"rollout_buffer_kwargs": {"cut": cut}}
    model = make_agent(kwargs, max_skipped_updates=1, n_steps=24, **buffer)
    broken, said = Broken(model, set()), []
    model.on_skipped = lambda update, error: said.append(str(error))
    model.learn(5 * model.n_steps * model.n_envs)
    assert model.num_updates == 4 and model.num_skipped_updates == 1
    (one,) = said
    assert "rewards of" in one and f"returned {value}" in one and "must be finite" in one
    third, fourth = broken.before[2:4]
    assert largest_difference(third, fourth) == 0.0, "nor is the update before it undone"
    assert all(torch.isfinite(weight).all() for weight in weights(model.policy).values())


def test_such_rewards_in_a_row_end_training_and_say_which(deferred):
    kwargs = {**deferred, "reward_model": Sometimes({2, 3, 4, 5})}
    model = make_agent(kwargs, max_skipped_updates=1)
    with pytest.raises(NonFiniteRollout, match=r"^2 updates in a row .* returned nan for"):
        model.learn(6 * model.n_steps * model.n_envs)
    with pytest.raises(NonFiniteReward, match="a reward must be finite"):
        make_agent({**deferred, "reward_model": Sometimes({1})}).learn(100)


def test_values_that_are_not_finite_put_back_what_the_last_update_ruined(deferred):
    """The update before it left finite weights whose values overflow: it is undone, too."""
    model = make_agent(deferred, max_skipped_updates=1, clip_range_vf=None)
    broken = Broken(model, set())
    train = model.train

    def ruin():
        train()
        if broken.update == 2:
            with torch.no_grad():
                model.policy.critic_head.bias.fill_(torch.inf)

    model.train = ruin
    model.learn(4 * model.n_steps * model.n_envs)
    assert model.num_skipped_updates == 1 and model.num_updates == 3
    assert largest_difference(broken.before[1], broken.before[3]) == 0.0
    assert all(torch.isfinite(weight).all() for weight in weights(model.policy).values())


def test_the_count_goes_on_from_a_checkpoint(deferred, tmp_path):
    model = make_agent(deferred, max_skipped_updates=3, clip_range_vf=None)
    Broken(model, {2, 3})
    model.learn(3 * model.n_steps * model.n_envs)
    model.save_checkpoint(tmp_path / "checkpoint")
    loaded = TokenPPO.load(tmp_path / "checkpoint", make_vec_env(n_envs=model.n_envs, **deferred))
    assert loaded.max_skipped_updates == 3
    assert (loaded.num_skipped_updates, loaded.skipped_in_a_row) == (2, 2)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"whiten_rewards": True}, "whiten_rewards=True takes its statistics from one rank"),
        ({"advantage_estimator": "reinforce", "cut": "carry"}, "'reinforce' takes its statistics"),
    ],
)
def test_statistics_of_one_rank_are_no_statistics_of_all(deferred, setting, said):
    model = make_agent(deferred, rollout_buffer_kwargs=setting)
    with pytest.raises(ValueError, match=said):
        check_for_ranks(model, shard=False)
