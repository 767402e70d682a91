"""Judging an agent that doesn't know π by its plain return, beside what no learning at all gets.

Used by the scripts of this folder, after training: `judge(act, env)`. Importing it also lets a
script say what to install where its library is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.compare.best_response import episode_returns, restricted_optimum, search_best_responses
from tokenenv.models import sample_responses
from tokenenv.optimum import MAX_RESPONSES, enumerate_mdp, plain_returns
from tokenenv.optimum.enumeration import count_mdp_responses
from tokenenv.rewards import Episode

_show_traceback = sys.excepthook


def _say_what_to_install(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not isinstance(error, ModuleNotFoundError):
        return _show_traceback(kind, error, trace)
    print(
        f"error: {error.name!r} is not installed. `pip install -c constraints.txt -e "
        "'.[ecosystem]'` installs the libraries of these scripts, but for Tianshou and OpenEnv, "
        "which then take `pip install -c constraints.txt --no-deps tianshou openenv`. `make "
        "test-ecosystem` does both, and runs all.",
        file=sys.stderr,
    )


sys.excepthook = _say_what_to_install

PROMPTS, UNIFORM_EPISODES, REFERENCE_SAMPLES = 32, 100, 64


@dataclass(frozen=True)
class Verdict:
    """Plain returns E[Σ r_t], means over prompts, and where the agent's lies.

    `best_constant` is of all actions where there are few, else of EOS alone: the empty response.
    """

    uniform: float
    reference: float
    best_constant: float
    optimum: float
    is_lower_bound: bool
    agent: float

    def score(self, plain_return: float) -> float:
        """Sampling from the reference is 0, the plain-return optimum 1."""
        return (plain_return - self.reference) / (self.optimum - self.reference)


def show_objective(name: str, objective: float, objective_fraction: float) -> None:
    """Print J of a policy, for agents that know π, and how far it is from the reference to π*."""
    print(f"{name:13} J {objective:8.3f}   objective_fraction {objective_fraction:7.3f}")


def play(env: gym.Env, act: Callable[[Any], Any], prompt: str) -> float:
    """The plain return of one response to a prompt, whatever wrappers make of the reward."""
    observation, _ = env.reset(seed=0, options={"prompt": prompt})
    total, ended = 0.0, False
    while not ended:
        observation, _, terminated, truncated, info = env.step(act(observation))
        total += info["ref_logprob"] * info["kl_coef"] + info.get("score", 0.0)
        ended = terminated or truncated
    return total


def landmarks(env: gym.Env, prompts: list[str], k: int | None) -> tuple[float, float, bool]:
    """Plain return of the reference, the optimum, and whether that is only a lower bound."""
    mdp = env.unwrapped.mdp  # type: ignore[attr-defined]
    if count_mdp_responses(mdp, len(prompts)) <= MAX_RESPONSES:
        tree = enumerate_mdp(mdp, prompts)
        return plain_returns(tree).reference, restricted_optimum(tree, k), False
    starts = [mdp.encode_prompt(text) for text in prompts for _ in range(REFERENCE_SAMPLES)]
    model = mdp.language_model
    found = sample_responses(
        model.model, model.eos_token_ids, starts, mdp.max_new_tokens, temperature=1.0, seed=0
    )
    episodes = [Episode(p, s.tokens, s.stopped) for p, s in zip(starts, found, strict=True)]
    optimum = search_best_responses(mdp, prompts, k).mean()
    return float(episode_returns(mdp, episodes).mean()), float(optimum), True


def judge(
    act: Callable[[Any], Any], env: gym.Env, on_reset: Callable[[], None] = lambda: None
) -> Verdict:
    """Play one response to each held-out prompt, and print the agent's score beside the others'.

    Args:
        act: an observation → an action; greedy, so that one response per prompt is exact.
        env: one environment as the agent knows it, wrappers included, made with `split="eval"`.
        on_reset: called before each response, for agents with a memory.
    """
    mdp, space = env.unwrapped.mdp, env.action_space  # type: ignore[attr-defined]
    assert isinstance(space, gym.spaces.Discrete)
    prompts, rng = list(mdp.prompts[:PROMPTS]), np.random.default_rng(0)
    k = env.get_wrapper_attr("k") if env.has_wrapper_attr("k") else None
    reference, optimum, is_lower_bound = landmarks(env, prompts, k)
    many = [prompts[i % len(prompts)] for i in range(UNIFORM_EPISODES)]
    ends = sorted(mdp.language_model.eos_token_ids)
    constants = range(int(space.n)) if space.n <= 64 else ends
    returns = []
    for prompt in prompts:
        on_reset()
        returns.append(play(env, act, prompt))
    verdict = Verdict(
        uniform=float(np.mean([play(env, lambda _: int(rng.integers(space.n)), p) for p in many])),
        reference=reference,
        best_constant=max(
            float(np.mean([play(env, lambda _, a=a: a, p) for p in prompts])) for a in constants
        ),
        optimum=optimum,
        is_lower_bound=is_lower_bound,
        agent=float(np.mean(returns)),
    )
    for name in ("uniform", "reference", "best_constant", "optimum", "agent"):
        value = getattr(verdict, name)
        print(f"{name:13} plain return {value:8.2f}   score {verdict.score(value):7.3f}")
    return verdict
