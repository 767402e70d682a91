"""A row of numbers as a row of little bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["BARS", "sparkline"]

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers as bars, the least as the lowest bar and the greatest as the highest.

    Args:
        values: in order; NaN and infinities leave a gap.
        width: characters at most. More numbers than that are averaged, in parts of equal length.

    Returns:
        One character per number or part: of equal numbers, bars of middle height.
    """
    count = min(width, len(values))
    if count < 1:
        return ""
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    parts = np.array_split(np.arange(len(numbers)), count)
    means = np.full(count, np.nan)
    for index, part in enumerate(parts):
        if known[part].any():
            means[index] = numbers[part][known[part]].mean()
    if not np.isfinite(means).any():
        return " " * count
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    if not high > low:
        heights = np.full(count, (len(BARS) - 1) // 2)
    else:
        # Halves first: the difference of two large numbers may be infinite.
        share = (np.nan_to_num(means, nan=low) / 2 - low / 2) / (high / 2 - low / 2)
        heights = np.minimum((share * len(BARS)).astype(int), len(BARS) - 1)
    return "".join(
        BARS[height] if is_known else " "
        for height, is_known in zip(heights, np.isfinite(means), strict=True)
    )
