"""Score and gold reward over √KL, out of the rows of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Points", "points_of"]


@dataclass(frozen=True)
class Points:
    """Policies of one run, in the order in which it went through them.

    Attributes:
        distance: (n,) √KL to the reference; a mean of sampled log-ratios below 0 counts as 0.
        score: (n,) what was trained on.
        gold: (n,) the true reward; None where the run does not know it everywhere.
    """

    distance: np.ndarray
    score: np.ndarray
    gold: np.ndarray | None

    def __len__(self) -> int:
        return len(self.distance)


def points_of(rows: Sequence[Mapping[str, Any]], held_out: bool = False) -> Points:
    """The points of a run; rows without a finite KL and score are left out.

    Args:
        rows: of `metrics.jsonl`.
        held_out: the evaluations on held-out prompts, `eval/…`, of which there are fewer, in the
            place of the training samples, `rlhf/…`.
    """
    prefix = "eval" if held_out else "rlhf"
    names = [f"{prefix}/{name}" for name in ("kl", "score", "gold_reward")]
    known = [row for row in rows if all(_is_finite(row.get(name)) for name in names[:2])]
    kl, score = (np.array([float(row[name]) for row in known]) for name in names[:2])
    gold = [row.get(names[2]) for row in known]
    has_gold = bool(known) and all(_is_finite(value) for value in gold)
    return Points(
        np.sqrt(np.maximum(kl, 0.0)),
        score,
        np.array(gold, dtype=np.float64) if has_gold else None,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
