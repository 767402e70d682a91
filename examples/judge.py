"""A critic of `exact` against the truth, and values from continuations: for experiment 16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agents.credit import rank_accuracy
from tokenenv.optimum import policy_levels, true_advantages
from tokenenv.optimum.bias_variance import advantage_moments
from tokenenv.optimum.exact import action_rewards, expectation

GAE_LAMBDA = 0.95

Levels = list[np.ndarray]
"""An array for each depth of the tree: (X, C^t) of states, (X, C^t, V) of actions."""


class Judge:
    """The truth of a policy, and critics held against it over the states that the policy visits."""

    def __init__(self, actor: Any, tree: Any, kl_coef: float) -> None:
        self.tree, self.kl_coef = tree, kl_coef
        self.log_policy = policy_levels(actor, tree)
        self.truth = true_advantages(self.log_policy, tree, kl_coef)
        self.visits = [np.exp(level) for level in tree.state_log_probs(self.log_policy)]
        self.rewards = [
            action_rewards(tree, self.log_policy, t, kl_coef) for t in range(tree.depth)
        ]

    def mean(self, levels: Levels) -> float:
        """Over the states that the policy visits, of T levels (X, C^t)."""
        total = sum(float((v * x).sum()) for v, x in zip(self.visits, levels, strict=True))
        return total / sum(float(v.sum()) for v in self.visits)

    def explained_variance(self, values: Levels) -> float:
        """1 − E[(V̂ − V)²]/Var(V)."""
        truth = self.truth.values
        variance = self.mean([v**2 for v in truth]) - self.mean(truth) ** 2
        errors = [np.square(v - w) for v, w in zip(values, truth, strict=True)]
        return 1 - self.mean(errors) / variance

    def rank_accuracy(self, values: Levels) -> float:
        """Of Q̂(s, a) = r + V̂(s') over the tokens that don't end the response."""
        parts = []
        for t in range(self.tree.depth - 1):
            goes_on = self.tree.continuing
            estimates = self.rewards[t] + self.tree.after(t, values[t + 1])
            of_actions = (estimates, self.truth.q_values[t], np.exp(self.log_policy[t]))
            states = [x[:, :, goes_on].reshape(-1, len(goes_on)) for x in of_actions]
            parts.append((*states, self.visits[t].reshape(-1)))
        return rank_accuracy(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def correlation(self, values: Levels, gae_lambda: float = GAE_LAMBDA) -> float:
        """Of GAE's Â with A, over all tokens, exactly."""
        moments = advantage_moments(
            self.log_policy, values, self.tree, self.kl_coef, 1.0, gae_lambda
        )
        levels = list(zip(self.log_policy, *moments, self.truth.advantages, strict=True))
        covariance = self.mean([expectation(p, m * a) for p, m, _, a in levels])
        power = self.mean([expectation(p, a**2) for p, _, _, a in levels])
        whole = self.mean([expectation(p, v + m**2) for p, m, v, _ in levels])
        whole -= self.mean([expectation(p, m) for p, m, _, _ in levels]) ** 2
        return float(covariance / np.sqrt(power * whole))

    def judged(self, values: Levels, **more: Any) -> dict[str, Any]:
        """Everything of a critic's T levels (X, C^t), and what else is known."""
        return {
            "explained_variance": self.explained_variance(values),
            "rank_accuracy": self.rank_accuracy(values),
            "correlation": self.correlation(values),
            "correlation_td": self.correlation(values, 0.0),
            **more,
        }


def critic_levels(policy: Any, tree: Any) -> Levels:
    """V̂ of all states by a policy's critic."""
    levels = []
    for t in range(tree.depth):
        with torch.no_grad():
            values = policy.predict_values(policy.obs_to_tensor(tree.observations(t))[0])
        levels.append(values.double().numpy().reshape(tree.shape(t)[:2]))
    return levels


def continuation_values(judge: Judge, count: int, rng: Any) -> tuple[Levels, float]:
    """V̂ of all states, each the mean return of `count` continuations, and tokens per state.

    What `count` forks of an environment in that state would bring, with actions that the policy
    samples: the tree has every probability and reward of it, so that nothing need be generated.
    """
    tree, depth = judge.tree, judge.tree.depth
    index = np.zeros(tree.vocabulary_size, dtype=int)
    index[tree.continuing] = np.arange(len(tree.continuing))
    levels, tokens = [], []
    for t in range(depth):
        shape = tree.shape(t)[:2]
        prompts, states = (np.repeat(i.ravel(), count) for i in np.indices(shape))
        returns, runs, used = np.zeros(len(states)), np.ones(len(states), bool), 0
        for k in range(t, depth):
            probabilities = np.exp(judge.log_policy[k][prompts, states]).cumsum(axis=1)
            draws = rng.random((len(states), 1)) * probabilities[:, -1:]
            actions = (draws >= probabilities).sum(axis=1)
            returns += runs * judge.rewards[k][prompts, states, actions]
            used = used + runs
            runs = runs & ~tree.ending(k)[actions]
            states = np.where(runs, states * len(tree.continuing) + index[actions], 0)
        levels.append(returns.reshape(*shape, count).mean(axis=-1))
        tokens.append(used.reshape(*shape, count).sum(axis=-1).astype(float))
    return levels, judge.mean(tokens)
