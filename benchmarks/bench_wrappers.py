"""What wrappers cost: the time of a step over that of the same environment without them.

Gymnasium's own stand around an environment that runs no model (deferred scoring), so that their
cost is seen beside the state machine alone: around the vector environment, and around single ones
in a `SyncVectorEnv`. Ours read the reference, so they stand around the vector environment with
stepwise scoring, where the reference is decoded for the reward anyway: what they add is what they
compute besides. All of them live the same episodes, of actions that are uniformly random among the
reference's 16 likeliest tokens: when episodes end matters, since a reset reads a prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from bench_env import SETTINGS, Measured, stepper
from gymnasium import wrappers
from gymnasium.wrappers import vector
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns

import tokenenv.wrappers.vector as ours
from tokenenv.env import TokenEnv

VECTOR_TABLE = "time per step over the bare one: Gymnasium's wrappers of the vector environment"
SINGLE_TABLE = "time per step over the bare one: Gymnasium's wrappers in SyncVectorEnv"
OUR_TABLE = "time per step over the bare one, stepwise scoring: our wrappers"
BARE, K = "bare", 16


def _same(observation: Any) -> Any:
    return observation


VECTOR_WRAPPERS: dict[str, Callable[[Any], gym.vector.VectorEnv]] = {
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "TransformObservation (nothing)": lambda env: vector.TransformObservation(
        env, _same, env.observation_space
    ),
    "TransformAction (nothing)": lambda env: vector.TransformAction(env, _same, env.action_space),
    "TransformReward (nothing)": lambda env: vector.TransformReward(env, _same),
    "ClipReward": lambda env: vector.ClipReward(env, -1.0, 1.0),
    "NormalizeReward": vector.NormalizeReward,
    "DictInfoToList": vector.DictInfoToList,
}
"""Name → wrapper of the vector environment; another is a line here."""

WRAPPERS: dict[str, Callable[[gym.Env], gym.Env]] = {
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 10**9),
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "TransformObservation (nothing)": lambda env: wrappers.TransformObservation(
        env, _same, env.observation_space
    ),
    "TransformReward (nothing)": lambda env: wrappers.TransformReward(env, _same),
    "FlattenObservation": wrappers.FlattenObservation,
}
"""Name → wrapper of a single environment; another is a line here."""

OUR_WRAPPERS: dict[str, Callable[[gym.vector.VectorEnv], gym.vector.VectorEnv]] = {
    "HiddenStateObservation": ours.HiddenStateObservation,
    f"TopKActions, k = {K}": lambda env: ours.TopKActions(env, K),
    "both": lambda env: ours.TopKActions(ours.HiddenStateObservation(env), K),
    "ActionMask, top-p 0.95": lambda env: ours.ActionMask(env, top_p=0.95),
    "LogProbShaping": ours.LogProbShaping,
}
"""Name → our wrapper of the vector environment; another is a line here."""


def gymnasium_cases(num_envs: int, steps: int) -> dict[str, Measured]:
    """Table → the bare environment and those in Gymnasium's wrappers, in that order."""

    def batched() -> Any:
        env: Any = gym.make_vec("tokenenv:TokenRLHF-v0", num_envs=num_envs, **SETTINGS)
        env.unwrapped.leave_scoring_to_caller()
        return env

    def single() -> TokenEnv:
        env = TokenEnv(**SETTINGS)
        env.leave_scoring_to_caller()
        return env

    def singles(wrap: Callable[[Any], gym.Env]) -> gym.vector.VectorEnv:
        return gym.vector.SyncVectorEnv([lambda: wrap(single())] * num_envs)

    tables: dict[str, dict[str, gym.vector.VectorEnv]] = {
        VECTOR_TABLE: {BARE: batched()}
        | {name: wrap(batched()) for name, wrap in VECTOR_WRAPPERS.items()},
        SINGLE_TABLE: {BARE: singles(_same)}
        | {name: singles(wrap) for name, wrap in WRAPPERS.items()},
    }
    return {
        table: {name: _stepper(env, steps) for name, env in envs.items()}
        for table, envs in tables.items()
    }


def our_cases(num_envs: int, steps: int) -> Measured:
    """The environment with stepwise scoring, bare and in each of our wrappers, in that order."""
    batch = {"id": "tokenenv:TokenRLHF-v0", "num_envs": num_envs, "device": "cpu"}
    ranks = np.random.default_rng(0).integers(K, size=(steps, num_envs))
    tokens, env = [], ours.TopKActions(gym.make_vec(**batch), K)
    env.reset(seed=0)
    for row in ranks:
        tokens.append(env.action_tokens()[np.arange(num_envs), row])
        env.step(row)
    log_probs = np.full(num_envs, -1.0)

    def timed(env: gym.vector.VectorEnv) -> Callable[[], float]:
        by_rank = env.single_action_space.n == K  # type: ignore[attr-defined]

        def run() -> None:
            env.reset(seed=0)
            for row in ranks if by_rank else tokens:
                if isinstance(env, ours.LogProbShaping):
                    env.set_log_probs(log_probs)
                env.step(row)

        return lambda: seconds_of(run)

    return {BARE: timed(gym.make_vec(**batch))} | {
        name: timed(wrap(gym.make_vec(**batch))) for name, wrap in OUR_WRAPPERS.items()
    }


def _stepper(env: gym.vector.VectorEnv, steps: int) -> Callable[[], float]:
    """Seconds of `steps` random steps."""
    env.reset(seed=0)
    vocabulary = int(env.single_action_space.n)  # type: ignore[attr-defined]
    return stepper(
        env.step, np.random.default_rng(0).integers(vocabulary, size=(steps, env.num_envs))
    )


def wrapper_rows(table: str, measured: Measured, calls: int, repetitions: int) -> list[Row]:
    """A row per wrapper; those of one table take turns."""
    take_turns(measured, 1)  # warms up
    seconds = medians(take_turns(measured, repetitions))
    return [
        {
            "table": table,
            "what": name,
            "ratio": found / seconds[BARE],
            "added, µs per call": 1e6 * (found - seconds[BARE]) / calls,
        }
        for name, found in seconds.items()
    ]


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    num_envs, steps = (4, 40) if arguments.quick else (64, 200)
    tables = gymnasium_cases(num_envs, steps) | {OUR_TABLE: our_cases(num_envs, steps)}
    rows = [
        row
        for table, measured in tables.items()
        for row in wrapper_rows(table, measured, steps, arguments.repetitions)
    ]
    report(rows, {"repetitions": arguments.repetitions, "envs": num_envs}, arguments.json)


if __name__ == "__main__":
    main(arguments_parser(__doc__, repetitions=5).parse_args())
