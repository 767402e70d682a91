"""Single rows of a vector environment: their observations, and beginning their episodes anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor

from agents.vec_env import TokenVecEnv

__all__ = ["of_rows", "replaced", "restart_rows", "restarts_rows"]


def restarts_rows(env: VecEnv) -> bool:
    """Whether no wrapper stores more about a row than a monitor does."""
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if type(layer) not in (VecMonitor, VecCheckNan):
            return False
        layer = layer.venv
    return True


def of_rows(observations: Any, rows: list[int]) -> Any:
    """Some rows of observations, which are a dict in a dict space."""
    if isinstance(observations, dict):
        return {key: of_rows(part, rows) for key, part in observations.items()}
    return np.asarray(observations)[rows]


def replaced(observations: Any, rows: list[int], new: Any) -> Any:
    """A copy of observations with new ones in some rows."""
    if isinstance(observations, dict):
        return {key: replaced(part, rows, new[key]) for key, part in observations.items()}
    copied = np.array(observations)
    copied[rows] = new
    return copied


def _stacked(observations: Sequence[Any]) -> Any:
    """One observation per row in one batch."""
    if isinstance(observations[0], dict):
        return {key: _stacked([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def restart_rows(env: VecEnv, rows: list[int]) -> Any:
    """Begin an episode in each of these rows; their first observations."""
    base: Any = env.unwrapped
    if isinstance(base, TokenVecEnv):
        observations = of_rows(base.restart(rows), rows)
    else:
        base.env_method("begin_group", indices=rows)
        begun = base.env_method("reset", indices=rows)
        observations = _stacked([observation for observation, _ in begun])
        infos = list(base.reset_infos)  # a tuple where environments run in other processes
        for row, (_, info) in zip(rows, begun, strict=True):
            infos[row] = info
        base.reset_infos = infos
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecMonitor):
            layer.episode_returns[rows], layer.episode_lengths[rows] = 0.0, 0
        layer = layer.venv
    return observations
