"""Gymnasium's vector infos, an array and a mask per key, as one dict per environment for SB3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["rows_of"]


def rows_of(
    infos: dict[str, Any], rows: Sequence[int] | np.ndarray, has_masks: bool = True
) -> list[dict[str, Any]]:
    """The infos of some environments, a dict for each; numbers are Python's.

    Args:
        infos: of a vector environment.
        rows: which environments.
        has_masks: what has no mask is about no environment; False within a nested dict, whose own
            mask counts for all that has none in it (so does `RecordEpisodeStatistics`).
    """
    found: list[dict[str, Any]] = [{} for _ in rows]
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if key.startswith("_") or (mask is None and has_masks):
            continue
        is_about = [True] * len(rows) if mask is None else mask[rows].tolist()
        for info, about, value in zip(found, is_about, _picked(values, rows), strict=True):
            if about:
                info[key] = value
    return found


def _picked(values: Any, rows: Sequence[int] | np.ndarray) -> list[Any]:
    if isinstance(values, dict):
        return rows_of(values, rows, has_masks=False)
    return values[rows].tolist() if values.ndim == 1 else [values[row] for row in rows]
