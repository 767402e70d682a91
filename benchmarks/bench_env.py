"""What the environment itself costs: steps per second with nothing to compute in them.

With deferred scoring, `step` runs no model: it appends the tokens, ends episodes, decodes their
responses and starts new ones. That is what is timed here, with uniformly random actions, through
Gymnasium's vector interface and through Stable-Baselines3's, beside CartPole-v1 (random actions
end its episodes after about 22 steps, ours after at most 32) in Gymnasium's `SyncVectorEnv`. All
prompts have been tokenized before, as they are in any run that has seen each of them once.

The ratio is that of steps per second, environments × calls of `step`, to CartPole's at the same
number of environments: above 1 the token MDP is the faster one. A table of its own holds them, for
256 environments, over the goal of a million per second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns

import tokenenv
from agents import make_vec_env

assert tokenenv.ENV_IDS  # importing it registers them

TABLE = "env steps per second without models, over CartPole-v1 in SyncVectorEnv"
GOAL_TABLE = "env steps per second without models, over the goal of 1,000,000"
CART_POLE = "CartPole-v1, SyncVectorEnv"
GOAL, GOAL_ENVS = 1e6, 256


Measured = dict[str, Callable[[], float]]
"""Name → a function that gives seconds."""


def constant(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(responses)


SETTINGS: dict[str, Any] = {
    "scoring": "deferred",
    "kl_shaping": "none",
    "reward_model": constant,
    "max_new_tokens": 32,
    "device": "cpu",
}
"""An environment that runs no model."""


def stepper(step: Callable[[Any], Any], actions: np.ndarray) -> Callable[[], float]:
    """Seconds of one `step` per row of `actions`."""

    def run() -> None:
        for row in actions:
            step(row)

    return lambda: seconds_of(run)


def cases(num_envs: int, steps: int) -> Measured:
    """The three environments of one size."""
    ours = gym.make_vec("tokenenv:TokenRLHF-v0", num_envs=num_envs, **SETTINGS)
    ours.reset(seed=0)
    sb3 = make_vec_env(n_envs=num_envs, seed=0, **SETTINGS)
    sb3.reset()
    ours.unwrapped.leave_scoring_to_caller()  # type: ignore[attr-defined]
    sb3.env_method("leave_scoring_to_caller")
    for mdp in (ours.unwrapped.mdp, sb3.env.mdp):  # type: ignore[attr-defined]
        for prompt in mdp.prompts:
            mdp.encode_prompt(prompt)
    cart_pole = gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")
    cart_pole.reset(seed=0)
    rng = np.random.default_rng(0)
    vocabulary = int(ours.single_action_space.n)  # type: ignore[attr-defined]
    tokens = rng.integers(vocabulary, size=(steps, num_envs))
    pushes = rng.integers(2, size=(steps, num_envs))
    return {
        CART_POLE: stepper(cart_pole.step, pushes),
        "TokenVectorEnv": stepper(ours.step, tokens),
        "TokenVecEnv (SB3)": stepper(sb3.step, tokens),
    }


def measure(num_envs: int, steps: int, repetitions: int) -> list[Row]:
    """A row per environment; and, for 256 of them, over the goal."""
    measured = cases(num_envs, steps)
    take_turns(measured, 1)  # warms up
    seconds = medians(take_turns(measured, repetitions))
    rates = {name: num_envs * steps / found for name, found in seconds.items()}
    rows: list[Row] = [
        {
            "table": TABLE,
            "what": name,
            "envs": num_envs,
            "ratio": rate / rates[CART_POLE],
            "env steps/s": rate,
            "µs per call": 1e6 * num_envs / rate,
        }
        for name, rate in rates.items()
    ]
    if num_envs == GOAL_ENVS:
        rows += [
            {"table": GOAL_TABLE, "what": name, "ratio": rate / GOAL, "env steps/s": rate}
            for name, rate in rates.items()
            if name != CART_POLE
        ]
    return rows


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    sizes = (1, 16) if arguments.quick else (1, 64, 256, 1024)
    total = 2_000 if arguments.quick else 40_000
    rows = [
        row
        for num_envs in sizes
        for row in measure(num_envs, max(64, total // num_envs), arguments.repetitions)
    ]
    report(rows, {"repetitions": arguments.repetitions}, arguments.json)


if __name__ == "__main__":
    main(arguments_parser(__doc__, repetitions=5).parse_args())
