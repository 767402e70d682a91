"""Experiment 16's values from continuations are what forks of the environment bring."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from tokenenv.optimum import enumerate_task, true_advantages

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
T, K = 4, 2


@pytest.fixture
def judging(monkeypatch):
    """`judge.py`, imported as the scripts import it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("judge")


@pytest.fixture
def tree():
    return enumerate_task("exact", max_new_tokens=T, device="cpu")


def random_policy(tree, rng):
    """T levels (X, C^t, V) of log-probabilities."""
    levels = [rng.normal(size=tree.shape(t)) for t in range(tree.depth)]
    return [x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in levels]


def return_of_fork(env, tree, policy, row, prefix, draws) -> tuple[float, int]:
    """What a fork pays to the end, −β·log π included, and its steps; actions are quantiles."""
    twin, total, actions = env.fork(), 0.0, list(prefix)
    while True:
        log_probs = policy[len(actions)][row, tree.locate_state(actions)]
        cumulated = np.exp(log_probs).cumsum()
        action = int(np.searchsorted(cumulated, draws[len(actions)] * cumulated[-1], side="right"))
        _, reward, terminated, truncated, _ = twin.step(action)
        total += reward - tree.kl_coef * log_probs[action]
        actions.append(action)
        if terminated or truncated:
            return total, len(actions) - len(prefix)


def test_continuations_on_the_tree_are_those_of_forks(judging, tree, rng):
    """With the same uniform numbers for the same places, both sample the same responses."""
    policy = random_policy(tree, rng)
    judge = judging.Judge(policy, tree, tree.kl_coef)
    uniform = rng.random((K, T))  # alike in all states
    places = iter([k for t in range(T) for k in range(t, T)])  # in which they are asked for
    draws = SimpleNamespace(random=lambda shape: np.resize(uniform[:, next(places)], shape))
    levels, _ = judging.continuation_values(judge, K, draws)

    env = gym.make("tokenenv:TokenRLHF-Exact-v0", max_new_tokens=T, device="cpu").unwrapped
    lengths = set()
    for t, values in enumerate(levels):
        for row, prompt in enumerate(tree.prompts):
            state = int(rng.integers(values.shape[1]))
            prefix = tree.prefixes(t)[state].tolist()
            env.reset(options={"prompt": prompt})
            for action in prefix:
                env.step(action)
            forks = [return_of_fork(env, tree, policy, row, prefix, u) for u in uniform]
            lengths |= {steps for _, steps in forks}
            expected = np.mean([total for total, _ in forks])
            assert values[row, state] == pytest.approx(expected, abs=1e-5)
    assert len(lengths) > 1, "some end early and some at T"


def test_a_perfect_critic_is_judged_perfect_and_a_constant_one_is_not(judging, tree, rng):
    judge = judging.Judge(random_policy(tree, rng), tree, tree.kl_coef)
    truth = true_advantages(judge.log_policy, tree, tree.kl_coef)
    judged = judge.judged(truth.values)
    assert judged["explained_variance"] == pytest.approx(1.0)
    assert judged["rank_accuracy"] == pytest.approx(1.0)
    assert judge.correlation(truth.values, 0.0) == pytest.approx(1.0)  # E[δ|s, a] = A, no noise
    mean = judge.mean(truth.values)
    constant = [np.full_like(level, mean) for level in truth.values]
    assert judge.explained_variance(constant) == pytest.approx(0.0, abs=1e-9)
    assert judge.correlation(constant, 0.0) < 0.9
