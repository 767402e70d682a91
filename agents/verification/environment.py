"""Checks that the environment pays what the mathematics says, token by token."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from agents.vec_env import make_vec_env
from agents.verification.checks import Check, at_most
from tokenenv.models import sample_responses
from tokenenv.optimum import PrefixTree
from tokenenv.rewards import Episode

__all__ = ["environment_checks"]

RESPONSES, SINGLE = 1000, 20


def environment_checks(tree: PrefixTree, env_id: str) -> list[Check]:
    """Rewards of sampled episodes against the tree, stepwise and deferred; the sampler itself."""
    env = make_vec_env(env_id, n_envs=RESPONSES, seed=0)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(tree.prompts), size=RESPONSES)
    prompts = [tree.prompt_tokens[row] for row in rows]
    model = tree.language_model
    sampled = sample_responses(model.model, model.eos_token_ids, prompts, tree.depth, seed=0)
    responses = [s.tokens for s in sampled]
    env.set_options([{"prompt": tree.prompts[row]} for row in rows])
    env.reset()
    paid = _play(env, responses)
    places = [tree.locate(response) for response in responses]
    scores = np.array([tree.scores[t][x, s, a] for x, (t, s, a) in zip(rows, places, strict=True)])
    all_ref_log_probs = tree.response_log_probs(tree.ref_log_probs)
    ref_log_probs = all_ref_log_probs[rows, _columns(tree, responses)]
    expected = scores + tree.kl_coef * ref_log_probs
    scorer = env.env.scorer
    episodes = [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]
    deferred = scorer.score(episodes).score + tree.kl_coef * np.array(
        [response_log_probs.sum() for response_log_probs in scorer.ref_log_probs(episodes)]
    )
    sampled_log_probs = np.array([s.log_probs.sum() for s in sampled])
    exact = (np.exp(all_ref_log_probs) * tree.finished(tree.scores)).sum(axis=1)
    error = scores.std() / np.sqrt(RESPONSES)
    return [
        at_most(
            f"Σ r_t of {RESPONSES:,} episodes = β·log π_ref(y|x) + R(x, y), step by step",
            float(np.abs(paid - expected).max()),
            1e-4,
        ),
        at_most(
            f"the same of {SINGLE} episodes in a single gym.make environment",
            float(np.abs(_play_single(env_id, tree, rows, responses) - expected[:SINGLE]).max()),
            1e-4,
        ),
        at_most(
            "the same, scored together after the episodes (deferred)",
            float(np.abs(deferred - expected).max()),
            1e-4,
        ),
        at_most(
            "log-probabilities of sampling = those of enumeration",
            float(np.abs(sampled_log_probs - ref_log_probs).max()),
            1e-4,
        ),
        at_most(
            "sampled E[R] of the reference − exact, in standard errors",
            float(abs(scores.mean() - exact[rows].mean()) / error),
            5.0,
        ),
    ]


def _play(env: object, responses: list[np.ndarray]) -> np.ndarray:
    """(n,) sums of rewards of one episode per environment."""
    total = np.zeros(len(responses))
    for t in range(max(map(len, responses))):
        is_running = np.array([t < len(response) for response in responses])
        actions = np.array([r[t] if t < len(r) else 0 for r in responses])
        _, rewards, _, _ = env.step(actions)  # type: ignore[attr-defined]
        total += np.where(is_running, rewards, 0.0)
    return total


def _play_single(
    env_id: str, tree: PrefixTree, rows: np.ndarray, responses: list[np.ndarray]
) -> np.ndarray:
    """The sums of rewards of the first `SINGLE` episodes, one after another."""
    env = gym.make(env_id)
    totals = []
    for row, response in zip(rows[:SINGLE], responses[:SINGLE], strict=True):
        env.reset(options={"prompt": tree.prompts[row]})
        totals.append(sum(float(env.step(token)[1]) for token in response))
    return np.array(totals)


def _columns(tree: PrefixTree, responses: list[np.ndarray]) -> list[int]:
    position = {tuple(r.tolist()): i for i, r in enumerate(tree.responses())}
    return [position[tuple(response.tolist())] for response in responses]
