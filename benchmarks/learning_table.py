"""Tokens and seconds to a given J, and J at the end: interquartile means over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.compare.statistics import interquartile_mean

__all__ = ["goals", "level", "rows", "smoothed", "to_reach"]

Point = Mapping[str, Any]
WINDOW = 3
"""Points that a level is the mean of: one alone is uncertain by the samples that it is made of."""


def smoothed(points: Sequence[Point]) -> np.ndarray:
    """(n,) J of each point, averaged with those before and after it; of the first as it is."""
    values = np.array([point["objective"] for point in points], dtype=float)
    means = [values[max(1, i - 1) : i + 2].mean() for i in range(1, len(values))]
    return np.array([values[0], *means])


def level(points: Sequence[Point], name: str = "objective") -> float:
    """The mean of a number over the last three points after training has begun; NaN without it."""
    if points[-1].get("failed"):
        return -math.inf if name == "objective" else math.nan
    values = [point.get(name, math.nan) for point in points[1:]]
    return float(np.mean(values[-WINDOW:]))


def to_reach(points: Sequence[Point], goal: float, name: str) -> float:
    """Tokens, or seconds, until the smoothed J first is `goal`, between two points by a line; ∞."""
    curve = smoothed(points)
    places = [float(point[name]) for point in points]
    if curve[0] >= goal:
        return places[0]
    for i in range(1, len(curve)):
        if curve[i] >= goal:
            share = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
            return places[i - 1] + share * (places[i] - places[i - 1])
    return math.inf


def _of(runs: Sequence[Sequence[Point]], task: str, name: str) -> list[Sequence[Point]]:
    return [run for run in runs if (run[0]["task"], run[0]["name"]) == (task, name)]


def _mean(values: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(interquartile_mean(np.array(values)))


def goals(runs: Sequence[Sequence[Point]], wanted: Mapping[str, str]) -> dict[str, float]:
    """Task → J to be reached.

    Args:
        runs: finished ones.
        wanted: task → a number, or the name of settings, whose level at the end is meant. Where
            there is none: nine tenths of the way from the untrained J to the best level.

    Raises:
        ValueError: there are no runs of such a name.
    """
    found = {}
    for task in dict.fromkeys(run[0]["task"] for run in runs):
        of_task = [run for run in runs if run[0]["task"] == task]
        names = list(dict.fromkeys(run[0]["name"] for run in of_task))
        levels = {name: _mean([level(run) for run in _of(runs, task, name)]) for name in names}
        text = wanted.get(task, wanted.get("", ""))
        if not text:
            start = of_task[0][0]["objective"]
            found[task] = start + 0.9 * (max(levels.values()) - start)
        elif text in levels:
            found[task] = levels[text]
        else:
            try:
                found[task] = float(text)
            except ValueError:
                raise ValueError(
                    f"--goal {text}: neither a number nor one of the settings that {task} was run "
                    f"with: {', '.join(names)}."
                ) from None
    return found


def rows(runs: Sequence[Sequence[Point]], goal: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each task and settings: interquartile means over seeds.

    `ratio` is the tokens to J relative to the first settings of the task; ∞ where more than a
    quarter of the runs did not get there.
    """
    found = []
    for task, wanted in goal.items():
        names = dict.fromkeys(run[0]["name"] for run in runs if run[0]["task"] == task)
        unit: dict[str, float] = {}
        for name in names:
            own = _of(runs, task, name)
            to = {
                what: _mean([to_reach(run, wanted, what) for run in own])
                for what in ("tokens", "cpu_seconds", "wall_seconds")
            }
            unit = unit or to
            best = [float(np.max(smoothed(run))) >= wanted for run in own]
            found.append(
                {
                    "table": f"{task}: tokens and seconds to J = {wanted:.3f}",
                    "what": name,
                    "ratio": _ratio(to["tokens"], unit["tokens"]),
                    "CPU ratio": _ratio(to["cpu_seconds"], unit["cpu_seconds"]),
                    "tokens": to["tokens"],
                    "CPU s": to["cpu_seconds"],
                    "wall s": to["wall_seconds"],
                    "reached": f"{sum(best)} of {len(own)}",
                    "J at the end": _mean([level(run) for run in own]),
                    "KL": _mean([level(run, "kl") for run in own]),
                    "gold": _mean([level(run, "gold_reward") for run in own]),
                }
            )
    return found


def _ratio(value: float, unit: float) -> float:
    return value / unit if math.isfinite(value) and math.isfinite(unit) and unit else math.nan
