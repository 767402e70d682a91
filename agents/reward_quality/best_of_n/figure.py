"""The figure of best-of-n: E[R], J and gold reward against the root of the KL.

The root, because E[R] rises about in proportion to it (Gao et al. 2022,
https://arxiv.org/abs/2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from agents.atomic_files import whole_file
from agents.reward_quality.best_of_n.measuring import BestOfNReport, Standing, Tilted

__all__ = ["draw_report"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#7f7f7f"
"""Of Okabe and Ito, which colour-blind readers tell apart."""

_PANELS = {"score": "E[R]", "objective": "J = E[R] − β·KL", "gold_reward": "gold reward"}


def draw_report(report: BestOfNReport, path: Path, run: str | None = None) -> None:
    """Draw a report.

    Args:
        report: the numbers.
        path: file to write; its suffix says in which format.
        run: what the trained policy is called.

    Raises:
        OSError: the file can't be written.
    """
    names = [name for name in _PANELS if getattr(report.rows[0], name) is not None]
    figure = Figure(figsize=(4.6 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_panel(axis, report, name, run)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _draw_panel(axis: Any, report: BestOfNReport, name: str, run: str | None) -> None:
    label = "tilted optimum" if report.is_exact else "tilted optimum, at least"
    if report.frontier:
        axis.plot(*_curve(report.frontier, name), color=_GREY, lw=1.2, label=label)
    if name == "objective" and report.optimum is not None:
        axis.axhline(report.optimum, color=_GREY, ls=":", lw=1, label="J*")
    label = "best-of-n" if report.is_exact else "best-of-n, KL at most"
    axis.plot(*_curve(report.rows, name), color=_BLUE, marker="o", ms=4, lw=1, label=label)
    for row in report.rows:
        place = (_root(row), getattr(row, name))
        axis.annotate(_short(row.n), place, (4, -10), textcoords="offset points", fontsize=7)
        _draw_interval(axis, row, name, _BLUE)
    if report.policy is not None and getattr(report.policy, name) is not None:
        x, y = _curve([report.policy], name)
        axis.plot(x, y, "*", color=_ORANGE, ms=11, label=run or "policy")
        _draw_interval(axis, report.policy, name, _ORANGE)
    axis.margins(x=0.1)  # room for the numbers of the last points
    axis.set_xlabel("√KL, nats per response")
    axis.set_title(_PANELS[name], fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False)


def _short(n: int | None) -> str:
    assert n is not None
    return f"{n:,}" if n < 10_000 else EngFormatter(sep="")(n)


def _curve(rows: Sequence[Standing | Tilted], name: str) -> tuple[list[float], list[float]]:
    return [_root(row) for row in rows], [getattr(row, name) for row in rows]


def _root(row: Standing | Tilted) -> float:
    kl = row.shown_kl if isinstance(row, Standing) else row.kl
    return math.sqrt(max(0.0, kl))


def _draw_interval(axis: Any, row: Standing, name: str, color: str) -> None:
    interval = row.intervals.get(name)
    if interval is not None:
        axis.plot([_root(row)] * 2, interval, color=color, lw=1)
