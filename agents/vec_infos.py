"""Gymnasium's vector infos, an array and a mask per key, as one dict per environment for SB3."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["plain", "row_of"]


def row_of(infos: dict[str, Any], row: int, has_mask: bool = True) -> dict[str, Any]:
    """The infos of one environment, nested ones too.

    Args:
        infos: of a vector environment.
        row: which environment.
        has_mask: what has no mask is about no environment; False within a nested dict, whose own
            mask counts for all that has none in it (so does `RecordEpisodeStatistics`).
    """
    found = {}
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if not key.startswith("_") and (mask[row] if mask is not None else not has_mask):
            is_nested = isinstance(value, dict)
            found[key] = row_of(value, row, has_mask=False) if is_nested else plain(value[row])
    return found


def plain(value: Any) -> Any:
    """A numpy scalar as Python's, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
