"""Gymnasium's vector infos, an array and a mask per key, made of rows and taken apart again.

The way out, `add_infos`, is Gymnasium's contract; the way home, `rows_of`, Stable-Baselines3's,
which wants one dict per environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["add_infos", "rows_of"]


def add_infos(
    vector_infos: dict[str, Any],
    rows: Sequence[int],
    infos: Sequence[dict[str, Any]],
    num_envs: int,
) -> None:
    """Add the infos of several environments, in place, as `VectorEnv._add_info` adds one.

    Array by array instead of entry by entry: at hundreds of environments that is where a vector
    env without models spends its time.

    Args:
        vector_infos: of the vector environment so far.
        rows: the n environments.
        infos: one for each; the values of a key are of one type.
        num_envs: N.
    """
    for key in dict.fromkeys(key for info in infos for key in info):
        entries = [(row, info[key]) for row, info in zip(rows, infos, strict=True) if key in info]
        picked, values = [row for row, _ in entries], [value for _, value in entries]
        if isinstance(values[0], dict):
            add_infos(vector_infos.setdefault(key, {}), picked, values, num_envs)
        else:
            array = vector_infos.get(key)
            if array is None:
                array = vector_infos[key] = _new_array(key, values[0], num_envs)
            if array.dtype == object:  # numpy would take a list of arrays apart
                for row, value in entries:
                    array[row] = value
            else:
                array[picked] = values
        mask = vector_infos.get(f"_{key}")
        if mask is None:
            mask = vector_infos[f"_{key}"] = np.zeros(num_envs, dtype=np.bool_)
        mask[picked] = True


def _new_array(key: str, value: Any, num_envs: int) -> np.ndarray:
    """An empty array for values of this kind; numbers where there are none are 0."""
    if key != "final_obs":
        if type(value) in (int, float, bool) or isinstance(value, np.number):
            return np.zeros(num_envs, dtype=type(value))
        if isinstance(value, np.ndarray):
            return np.zeros((num_envs, *value.shape), dtype=value.dtype)
    return np.full(num_envs, None, dtype=object)


def rows_of(
    infos: dict[str, Any], rows: Sequence[int] | np.ndarray, has_masks: bool = True
) -> list[dict[str, Any]]:
    """The infos of some environments, a dict for each; numbers are Python's.

    Args:
        infos: of a vector environment.
        rows: which environments.
        has_masks: whether keys without a mask are skipped; False within a nested dict, where the
            mask of the dict holds for them (as in `RecordEpisodeStatistics`).
    """
    row_infos: list[dict[str, Any]] = [{} for _ in rows]
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if key.startswith("_") or (mask is None and has_masks):
            continue
        is_about = [True] * len(rows) if mask is None else mask[rows].tolist()
        for info, about, value in zip(row_infos, is_about, _picked(values, rows), strict=True):
            if about:
                info[key] = value
    return row_infos


def _picked(values: Any, rows: Sequence[int] | np.ndarray) -> list[Any]:
    if isinstance(values, dict):
        return rows_of(values, rows, has_masks=False)
    return values[rows].tolist() if values.ndim == 1 else [values[row] for row in rows]
