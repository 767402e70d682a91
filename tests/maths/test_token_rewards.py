"""The reward of a token: by hand, and as the sum of the halves that two parties pay."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from tokenenv.maths import KL_ESTIMATORS, actor_half, reference_half, token_rewards

LOG_PROBS = np.array([-1.0, -0.5, -2.0])
REF_LOG_PROBS = np.array([-1.5, -0.25, -2.0])


@pytest.mark.parametrize(
    ("estimator", "penalties"),
    [
        ("k1", [0.5, -0.25, 0.0]),
        ("k2", [0.125, 0.03125, 0.0]),
        ("k3", [np.exp(-0.5) - 0.5, np.exp(0.25) - 1.25, 0.0]),
        ("full", [0.3, 0.2, 0.1]),
    ],
)
def test_by_hand(estimator, penalties):
    rewards = token_rewards(
        2.0, LOG_PROBS, REF_LOG_PROBS, 0.1, estimator, full_kls=np.array([0.3, 0.2, 0.1])
    )
    expected = np.array([0.0, 0.0, 2.0]) - 0.1 * np.array(penalties)
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-15)
    assert rewards.dtype == np.float64


def test_the_halves_add_up_to_it():
    kl_coef = np.array([0.1, 0.1, 0.3])  # it may move within a response that is carried over
    halves = reference_half(REF_LOG_PROBS, kl_coef) + actor_half(LOG_PROBS, kl_coef)
    halves[-1] += 2.0
    whole = token_rewards(2.0, LOG_PROBS, REF_LOG_PROBS, kl_coef)
    np.testing.assert_allclose(whole, halves, rtol=0, atol=1e-15)


def test_scores_per_token_are_paid_where_they_are():
    scores = np.array([1.0, 0.0, -1.0])
    rewards = token_rewards(scores, LOG_PROBS, REF_LOG_PROBS, 0.0)
    assert rewards.tolist() == scores.tolist()
    assert token_rewards(1.0, np.zeros(0), np.zeros(0), 0.1).shape == (0,)


def test_what_an_estimator_lacks_is_said():
    with pytest.raises(ValueError, match="full_kls"):
        token_rewards(0.0, LOG_PROBS, REF_LOG_PROBS, 0.1, "full")
    with pytest.raises(ValueError, match="'k4'"):
        token_rewards(0.0, LOG_PROBS, REF_LOG_PROBS, 0.1, "k4")
    assert set(KL_ESTIMATORS) == {"k1", "k2", "k3", "full"}


def test_an_environments_rewards_and_the_actors_half_are_it(tiny_task_kwargs):
    """Stepwise; `test_kl_training.py` holds every estimator and deferred scoring against it."""
    env = gym.make("TokenRLHF-v0", **tiny_task_kwargs)
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    rewards, infos, ended = [], [], False
    while not ended:
        _, reward, ended, _, info = env.step(rng.integers(env.action_space.n))
        rewards.append(reward)
        infos.append(info)
    log_probs = rng.normal(size=len(rewards))  # any policy's
    ref_log_probs = np.array([info["ref_logprob"] for info in infos])
    whole = token_rewards(infos[-1]["score"], log_probs, ref_log_probs, infos[-1]["kl_coef"])
    paid = rewards + actor_half(log_probs, infos[-1]["kl_coef"])
    np.testing.assert_allclose(paid, whole, rtol=0, atol=1e-6)
