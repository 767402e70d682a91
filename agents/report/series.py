"""What charts are made of: runs that belong together, curves as the page's script reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.report.curves import Curve
from agents.report.run_files import RunFiles

__all__ = ["MOST_POINTS", "Group", "group_runs", "series_of", "short"]

MOST_POINTS = 400
"""Points of a curve in the page; longer ones are averaged."""

_PER_SEED = ("seed", "out", "overwrite", "num_threads", "device")
"""Settings that may differ between seeds of the same thing."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone.

    Attributes:
        label: what sets them apart from the other groups.
        runs: of them, by seed.
    """

    label: str
    runs: list[RunFiles]


def group_runs(runs: Sequence[RunFiles]) -> list[Group]:
    """Put runs with the same settings but for their seed together, in the order of the first.

    Args:
        runs: in the order in which they were named.
    """
    by_settings: dict[str, list[RunFiles]] = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in _PER_SEED}
        by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    groups = list(by_settings.values())
    names = sorted({name for run in runs for name in run.config} - set(_PER_SEED))
    apart = [
        name
        for name in names
        if len({json.dumps(group[0].config.get(name)) for group in groups}) > 1
    ]
    labels = [
        ", ".join(f"{name}={group[0].config.get(name)}" for name in apart) for group in groups
    ]
    return [
        Group(label or group[0].name, group) for label, group in zip(labels, groups, strict=True)
    ]


def series_of(of: Curve, label: str, group: int, role: str) -> dict[str, Any]:
    """A curve as the script draws it.

    Args:
        of: the curve.
        label: what it is.
        group: number of the group that it belongs to, which is its colour.
        role: `"line"`, `"seed"`, `"band"`, `"points"` or `"dots"`.
    """
    x, y = of.tokens.tolist(), [short(value) for value in of.values]
    return {"label": label, "group": group, "role": role, "x": x, "y": y}


def short(value: float) -> float:
    """Six significant digits: more than a chart shows."""
    return float(f"{value:.6g}")
