"""Numbers over the training as pure functions: curves, thinner curves, means over seeds.

Axes: `n` points of a curve, `S` seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.report.run_files import TOKENS

__all__ = ["Curve", "curve", "mean_over_seeds", "objective_curve", "thinned"]


@dataclass(frozen=True)
class Curve:
    """A number over the training.

    Attributes:
        tokens: (n,) response tokens trained on, in order.
        values: (n,) finite.
    """

    tokens: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def quarter(self, number: int) -> np.ndarray:
        """The values of a quarter of the points.

        Args:
            number: 0 for the first, 3 or −1 for the last.
        """
        return np.array_split(self.values, 4)[number]


def curve(rows: Sequence[dict[str, Any]], name: str) -> Curve:
    """What the rows of `metrics.jsonl` say of one number, without what was not finite.

    SB3 writes what an update measured (`train/…`) into the row of the rollout after it: such a
    number is put where the rollout that it was measured on ended.

    Args:
        rows: of `metrics.jsonl`.
        name: key of the number.
    """
    points, before = [], None
    for row in rows:
        now = row.get(TOKENS)
        when = before if name.startswith("train/") and before is not None else now
        value = row.get(name)
        if when is not None and value is not None and np.isfinite(value):
            points.append((float(when), float(value)))
        before = now if now is not None else before
    points.sort(key=lambda point: point[0])
    tokens, values = np.array(points).reshape(-1, 2).T
    return Curve(tokens, values)


def objective_curve(rows: Sequence[dict[str, Any]], kl_coef: float | None) -> Curve:
    """J of the training samples at one β; a controller moves the β of `rlhf/objective` itself.

    Args:
        rows: of `metrics.jsonl`.
        kl_coef: β that the run is judged by; None where it is unknown.
    """
    if kl_coef is None:
        return curve(rows, "rlhf/objective")
    judged = [
        {TOKENS: row.get(TOKENS), "objective": row["rlhf/score"] - kl_coef * row["rlhf/kl"]}
        for row in rows
        if row.get("rlhf/score") is not None and row.get("rlhf/kl") is not None
    ]
    return curve(judged, "objective")


def thinned(of: Curve, most: int) -> tuple[Curve, int]:
    """A curve with fewer points, each the mean of equally many that follow one another.

    Args:
        of: the curve.
        most: most points that it may have.

    Returns:
        The curve, and how many points each of its points is the mean of (the last one of fewer).
    """
    each = -(-len(of) // most)
    if each <= 1:
        return of, 1
    starts = np.arange(0, len(of), each)
    counts = np.diff(np.append(starts, len(of)))
    parts = (np.add.reduceat(values, starts) / counts for values in (of.tokens, of.values))
    return Curve(*parts), each


def mean_over_seeds(curves: Sequence[Curve]) -> tuple[Curve, np.ndarray, np.ndarray]:
    """The mean of several seeds' curves and the range they span, where all of them have points.

    Between its points a curve is taken to be straight.

    Args:
        curves: S of them, none empty.

    Returns:
        The mean at every point of any curve that all reach, and (n,) the least and the greatest.
    """
    tokens = np.unique(np.concatenate([c.tokens for c in curves]))
    first, last = max(c.tokens[0] for c in curves), min(c.tokens[-1] for c in curves)
    tokens = tokens[(tokens >= first) & (tokens <= last)]
    values = np.array([np.interp(tokens, c.tokens, c.values) for c in curves])
    return Curve(tokens, values.mean(axis=0)), values.min(axis=0), values.max(axis=0)
