"""What is 0 and what is 1: each environment's scale of the plain return, and landmarks on it."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from agents.compare.best_response import episode_returns, restricted_optimum, search_best_responses
from agents.compare.environments import constant_actions, kind_of, make_env, token_mdp, top_k
from agents.compare.rollouts import plain_returns_of
from tokenenv.data import Prompt
from tokenenv.mdp import TokenMDP
from tokenenv.models import sample_responses
from tokenenv.optimum import MAX_RESPONSES, enumerate_mdp, plain_returns
from tokenenv.optimum.enumeration import count_mdp_responses
from tokenenv.rewards import episodes_of, is_learned

__all__ = ["Scale", "measure_scale"]

MOST_CONSTANTS = 64
"""Actions up to which each of them is tried as a constant policy."""

REFERENCE_SAMPLES = 64
"""Responses of the reference per prompt, where its return has to be sampled."""

UNIFORM_EPISODES = 256
"""Episodes of the uniform policy on text, at least: with few prompts each is continued often."""


@dataclass(frozen=True)
class Scale:
    """The scale of the plain return E[Σ r_t] on one environment.

    Attributes:
        env: its id.
        kind: of `environments`.
        baseline: the return that scores 0.
        baseline_is: what earns it.
        top: the return that scores 1.
        top_is: what earns it.
        is_lower_bound: whether `top` is a bound from below, so that scores are "at most".
        uniform: return of the uniform random policy.
        constant_action: return of the best policy that always does the same; None where there are
            too many actions to try.
    """

    env: str
    kind: str
    baseline: float
    baseline_is: str
    top: float
    top_is: str
    is_lower_bound: bool
    uniform: float
    constant_action: float | None

    def score(self, plain_return: float) -> float:
        """Where a return lies between the baseline (0) and the top (1)."""
        return (plain_return - self.baseline) / (self.top - self.baseline)


def measure_scale(env_id: str, episodes: int, prompts: int, seed: int = 10_000) -> Scale:
    """The scale of an environment.

    Args:
        env_id: of an environment that `require_comparable` lets pass.
        episodes: of each policy that has to be played, on classic control.
        prompts: held-out prompts, at most, on text.
        seed: of what is sampled.
    """
    env = make_env(env_id, "eval")
    try:
        mdp = token_mdp(env)
        if mdp is not None:
            return _text_scale(env_id, env, mdp, prompts, seed)
        return _classic_scale(env_id, env, episodes, seed)
    finally:
        env.close()


def _classic_scale(env_id: str, env: gym.Env, episodes: int, seed: int) -> Scale:
    uniform = _uniform(env, episodes, seed)
    assert env.spec is not None and env.spec.reward_threshold is not None
    return Scale(
        env_id,
        kind_of(env),
        baseline=uniform,
        baseline_is="uniform random actions",
        top=float(env.spec.reward_threshold),
        top_is="the solved threshold of Gymnasium's spec",
        is_lower_bound=False,
        uniform=uniform,
        constant_action=_best_constant(env, max(1, episodes // 10), seed),
    )


def _text_scale(env_id: str, env: gym.Env, mdp: TokenMDP, prompts: int, seed: int) -> Scale:
    origins, k = mdp.origins[:prompts], top_k(env)
    among = "" if k is None else f" among the reference's {k} likeliest tokens"
    is_small = count_mdp_responses(mdp, len(origins)) <= MAX_RESPONSES
    is_enumerable = is_learned(mdp.scorer.reward) and is_small
    if is_enumerable:
        tree = enumerate_mdp(mdp, origins)
        exact = plain_returns(tree)
        baseline, top = exact.reference, restricted_optimum(tree, k)
        top_is = f"the plain-return optimum{among}, exact"
    else:
        baseline = _reference_return(mdp, origins, seed)
        top = float(search_best_responses(mdp, origins, k, seed=seed).mean())
        top_is = f"the best responses found{among}, a lower bound on the plain-return optimum"
    of_raw_ids = is_enumerable and kind_of(env) == "raw token ids"
    return Scale(
        env_id,
        kind_of(env),
        baseline=baseline,
        baseline_is="sampling from the reference",
        top=top,
        top_is=top_is,
        is_lower_bound=not is_enumerable,
        uniform=exact.uniform if of_raw_ids else _uniform(env, len(origins), seed),
        constant_action=exact.constant_action
        if of_raw_ids
        else _best_constant(env, len(origins), seed),
    )


def _uniform(env: gym.Env, count: int, seed: int) -> float:
    rng, actions = np.random.default_rng(seed), constant_actions(env)
    rounds = 1 if token_mdp(env) is None else -(-UNIFORM_EPISODES // count)
    played = [
        plain_returns_of(env, lambda _: rng.choice(actions), count, seed) for _ in range(rounds)
    ]
    return float(np.concatenate(played).mean())


def _best_constant(env: gym.Env, count: int, seed: int) -> float | None:
    actions = constant_actions(env)
    if len(actions) > MOST_CONSTANTS:
        return None
    return max(
        float(plain_returns_of(env, lambda _, a=action: a, count, seed).mean())  # type: ignore[misc]
        for action in actions
    )


def _reference_return(mdp: TokenMDP, origins: list[Prompt], seed: int) -> float:
    """The mean return of samples from the reference."""
    repeated = [origin for origin in origins for _ in range(REFERENCE_SAMPLES)]
    prompts = [mdp.encode_prompt(origin) for origin in repeated]
    sampled = sample_responses(
        mdp.language_model.model,
        mdp.language_model.eos_token_ids,
        prompts,
        mdp.max_new_tokens,
        temperature=mdp.settings.temperature,
        seed=seed,
    )
    return float(episode_returns(mdp, episodes_of(prompts, sampled, repeated)).mean())
