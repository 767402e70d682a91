"""Fingerprints of toy MDPs whose values are known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.compare.environments import make_env
from agents.compare.fingerprints import measure_fingerprint, untrained_policy
from agents.compare.policy_gradient import critic_predictions, explained_variance, signal_to_noise
from agents.compare.rollouts import Start, play, replay
from agents.policy.policy import LMActorCriticPolicy


class Delayed(gym.Env[np.ndarray, np.int64]):
    """`length` steps of two actions; the action at t pays itself, 0 or 1, at t + `delay`.

    The observation shows the time, the actions that are still to be paid, and with `coin` a fair
    coin's last throw.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, delay: int, length: int, coin: bool = False) -> None:
        self.delay, self.length, self.coin = delay, length, coin
        self.observation_space = spaces.Box(-1, 1, (length + delay + 2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.pending = 0, [0] * self.delay
        return self._observation(), {}

    def step(self, action: np.int64) -> Any:
        self.pending.append(int(action))
        self.time += 1
        paid = float(self.pending.pop(0))
        return self._observation(), paid, self.time == self.length, False, {}

    def _observation(self) -> np.ndarray:
        found = np.zeros(self.observation_space.shape, np.float32)
        found[self.time] = 1.0
        found[self.length + 1 : self.length + 1 + self.delay] = self.pending
        if self.coin and self.time:
            found[-1] = self.np_random.integers(2)
        return found


def uniform_policy(env: gym.Env) -> ActorCriticPolicy:
    policy = untrained_policy(env)
    with torch.no_grad():
        policy.action_net.weight.zero_()
    return policy


def test_a_reward_that_comes_two_steps_later():
    env = Delayed(delay=2, length=6)
    found = measure_fingerprint(env, 200, policy=uniform_policy(env))
    assert found.horizon == 6.0
    assert found.actions == 2
    assert found.branching == pytest.approx(2.0, abs=1e-9)
    assert found.credit_delay == 2.0  # exactly: no other reward changes
    # The last two of six actions are never paid: 4 of 6 have influence.
    assert found.influence == pytest.approx(4 / 6, abs=0.1)
    # Four of six steps pay, 1 or 0 with a chance of a half each: a third of the rewards is not 0.
    assert found.reward_density == pytest.approx(1 / 3, abs=0.04)
    # The return is the sum of four fair coins: mean 2, variance 4·¼ = 1.
    assert found.return_mean == pytest.approx(2.0, abs=0.2)
    assert found.return_variance == pytest.approx(1.0, abs=0.3)
    assert found.transition_randomness == 0.0


def test_immediate_rewards_have_no_delay():
    env = Delayed(delay=0, length=4)
    found = measure_fingerprint(env, 40, policy=uniform_policy(env))
    assert found.credit_delay == 0.0
    assert found.influence == 1.0


def test_without_influence_there_is_no_delay():
    env = Delayed(delay=3, length=3)
    found = measure_fingerprint(env, 20, policy=uniform_policy(env))
    assert found.credit_delay is None
    assert found.influence == found.reward_density == found.return_variance == 0.0
    assert found.gradient.explained_variance is None


def test_a_fair_coin_in_the_transitions_differs_every_second_time():
    env = Delayed(delay=1, length=4, coin=True)
    found = measure_fingerprint(env, 200, policy=uniform_policy(env))
    assert found.transition_randomness == pytest.approx(0.5, abs=0.11)
    assert found.credit_delay == 1.0  # the coin is thrown alike in both branches


def test_the_critic_takes_the_noise_out_of_a_bandits_gradient():
    """One step, reward = action, uniform; gradients of the two logits in units of ½(−1, 1).

    Without a critic g = 1 or 0 with a chance of a half: E g = ½, Var g = ¼, so the ratio is
    (½)²/¼ = 1. With V = ½ both actions give g = ½: no noise at all is left.
    """
    env = Delayed(delay=0, length=1)
    found = measure_fingerprint(env, 400, policy=uniform_policy(env)).gradient
    assert found.snr_without_critic == pytest.approx(1.0, abs=4 * found.snr_without_critic_error)
    assert 0.02 < found.snr_without_critic_error < 0.2
    assert found.snr_with_critic > 50.0  # V is fitted on 200 throws, not ½ to the last digit


def test_signal_to_noise_in_closed_form():
    # ±1 beside a constant 1, n of them: mean of g_i·g_j over i ≠ j is (n² − 2n)/(n² − n), mean ‖g‖²
    # is 2. For n = 4: signal ⅔, noise 2 − ⅔ = 4/3, ratio ½.
    gradients = np.array([[1.0, 1.0], [1.0, -1.0]] * 2)
    assert signal_to_noise(gradients)[0] == pytest.approx(0.5, abs=1e-12)
    # Pure noise: no bias upwards, as ‖mean‖² would have.
    noise = np.random.default_rng(0).normal(size=(50, 2000))
    found, error = signal_to_noise(noise)
    assert abs(found) < 4 * error < 0.01
    assert signal_to_noise(np.ones((4, 3)))[0] == np.inf
    assert signal_to_noise(np.zeros((4, 3)))[0] == 0.0
    # A scale of the reward changes nothing.
    assert signal_to_noise(7.0 * gradients) == pytest.approx(signal_to_noise(gradients))


def test_signal_to_noise_of_drawn_gradients_is_the_populations():
    rng = np.random.default_rng(1)
    drawn = np.array([0.3, 0.0, 0.0, 0.0]) + rng.normal(size=(20_00, 4))
    found, error = signal_to_noise(drawn)
    assert found == pytest.approx(0.09 / 4, abs=3 * error)
    assert 0.001 < error < 0.01


def test_the_critic_is_judged_on_episodes_that_it_has_not_seen(rng):
    features = [rng.normal(size=(8, 3)) for _ in range(40)]
    known = [x @ np.array([1.0, -2.0, 0.5]) + 3.0 for x in features]
    predicted = critic_predictions(features, known)
    assert explained_variance(np.concatenate(predicted), np.concatenate(known)) > 0.999
    noise = [rng.normal(size=8) for _ in range(40)]
    predicted = critic_predictions(features, noise)
    assert explained_variance(np.concatenate(predicted), np.concatenate(noise)) < 0.0
    assert explained_variance(np.ones(4), np.ones(4)) is None


def test_an_untrained_policy_is_the_reference_on_raw_token_ids():
    env = make_env("TokenRLHF-Exact-v0")
    policy = untrained_policy(env)
    assert isinstance(policy, LMActorCriticPolicy)
    found = measure_fingerprint(env, 12, policy=policy)
    assert found.actions == 6
    assert 1.0 <= found.horizon <= 6.0
    assert found.transition_randomness == 0.0
    assert found.reward_density == 1.0  # β·log π_ref is paid at every step
    assert 0.0 < found.credit_delay < 6.0
    assert not isinstance(untrained_policy(make_env("CartPole-v1")), LMActorCriticPolicy)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "TokenRLHF-Exact-v0"])
def test_the_same_start_and_actions_lead_to_the_same_state(env_id):
    env = make_env(env_id)
    rng = np.random.default_rng(3)
    prompt = env.unwrapped.mdp.prompts[1] if "Token" in env_id else None
    start = Start(5, prompt)
    rollout = play(env, lambda _: np.int64(rng.integers(2)), start)
    assert len(rollout) >= 1 and rollout.plain_return == rollout.rewards.sum()
    assert rollout.returns_to_go[0] == pytest.approx(rollout.plain_return)
    last = len(rollout) - 1
    found = replay(env, start, rollout.actions[:last])
    np.testing.assert_array_equal(found, rollout.observations[last])
