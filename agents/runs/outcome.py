"""How a run ended: how far J rose, and what to do where it fell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Gain", "gain_of", "lines_of_a_fall"]

TUNING = "docs/tuning.md"


@dataclass(frozen=True)
class Gain:
    """How far J rose.

    Attributes:
        before: J of the untrained model.
        after: J of the trained one.
        interval: 95 % interval of the difference; None where both are exact.
    """

    before: float
    after: float
    interval: tuple[float, float] | None = None

    @property
    def is_fall(self) -> bool:
        """Whether J fell, beyond the error of the estimate and the rounding."""
        return self._highest < -self._rounding

    @property
    def is_rise(self) -> bool:
        """Whether J rose, likewise."""
        return self._lowest > self._rounding

    @property
    def _lowest(self) -> float:
        return self.after - self.before if self.interval is None else self.interval[0]

    @property
    def _highest(self) -> float:
        return self.after - self.before if self.interval is None else self.interval[1]

    @property
    def _rounding(self) -> float:
        return 1e-7 * max(abs(self.before), abs(self.after))

    def words(self) -> str:
        """The numbers, as a part of a sentence."""
        words = f"J is {self.after:.3g} after training and {self.before:.3g} before"
        if self.interval is None:
            return words
        low, high = self.interval
        return f"{words}; the difference lies in {low:.3g} … {high:.3g} (95 %)"


def gain_of(summary: Mapping[str, Any]) -> Gain | None:
    """How far J rose by a summary; None where it was not measured, or without its error.

    Args:
        summary: of `summary.json`.
    """
    after, before = (summary.get(name) for name in ("objective", "objective_reference"))
    if after is None or before is None:
        return None
    if summary.get("optimum") is not None:  # all responses enumerated
        return Gain(before, after)
    interval = summary.get("gain_interval")
    return None if interval is None else Gain(before, after, (interval[0], interval[1]))


def lines_of_a_fall(
    summary: Mapping[str, Any],
    learning_rate: float,
    rows: Sequence[Mapping[str, Any]] = (),
    is_own_actor: bool = False,
) -> list[str]:
    """What to say of a run that ended below the untrained model; nothing where it did not.

    Args:
        summary: of the run.
        learning_rate: that it was trained with.
        rows: of its metrics, for the best evaluation on the way.
        is_own_actor: whether the untrained model is another one than the reference.
    """
    gain = gain_of(summary)
    if gain is None or not gain.is_fall:
        return []
    lines = [f"the run ended below the untrained model: {gain.words()}."]
    if not is_own_actor:
        rise = summary["score"] - summary["score_reference"]
        cost = summary["kl_coef"] * summary["kl"]
        lines[0] += f" E[R] changed by {rise:+.3g}, and the KL costs {cost:.3g} of it (β·KL)."
    lines.append(
        f"Change first: the learning rate (--learning-rate {learning_rate / 3:.1g}, a third of "
        f"this run's). What else, by symptom: {TUNING}"
    )
    best = _best_on_the_way(rows)
    if best is not None and best[0] > gain.before:
        lines.append(
            f"checkpoints/best/ holds the policy of the best evaluation on the way: J about "
            f"{best[0]:.3g} after {best[1]:,} tokens."
        )
    return lines


def _best_on_the_way(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int] | None:
    """The greatest J of the evaluations during training, and the tokens before it."""
    found = [
        (float(row["eval/objective"]), int(row["time/total_timesteps"]))
        for row in rows
        if math.isfinite(row.get("eval/objective", math.nan))
    ]
    return max(found, default=None)
