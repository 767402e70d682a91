"""`curve.png`: accuracy by the number of pairs with its law, and what policies made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file

__all__ = ["draw_curve"]

_BLUE, _ORANGE, _GREY, _GREEN = "#1f6fb2", "#d1662c", "#7f7f7f", "#3a8f4d"


def draw_curve(report: dict[str, Any], path: Path) -> None:
    """Draw a report.

    Args:
        report: of `curve_report`.
        path: of the PNG.
    """
    has_policies = any("policy" in row for row in report["sizes"])
    figure = Figure(figsize=(15 if has_policies else 6.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if has_policies else 1, squeeze=False)[0]
    _draw_accuracy(axes[0], report)
    if has_policies:
        _draw_policies(axes[1], report, ("gold",), "gold reward after PPO")
        names = ("score", "objective", "gold_objective")
        _draw_policies(axes[2], report, names, "score, J and J of the gold reward")
    sizes = [row["size"] for row in report["sizes"]]
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("labelled pairs")
        axis.grid(alpha=0.25)
        axis.title.set_fontsize(11)
        axis.legend(fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_accuracy(axis: Any, report: dict[str, Any]) -> None:
    axis.set_title("held-out accuracy")
    points = report["points"]
    sizes, accuracies = [p["size"] for p in points], [p["accuracy"] for p in points]
    axis.plot(sizes, accuracies, ".", color=_GREY, ms=4, label="each seed")
    rows = report["sizes"]
    means = [row["accuracy"] for row in rows]
    axis.errorbar(
        [row["size"] for row in rows],
        means,
        yerr=_errors(means, [row["accuracy_interval"] for row in rows]),
        fmt="o",
        color=_BLUE,
        capsize=3,
        label="mean, 95 % interval",
    )
    law = report["law"]
    if law is not None:
        curve = law["curve"]
        axis.plot(curve["pairs"], curve["accuracy"], color=_BLUE, lw=1, label="law")
        if "low" in curve:
            axis.fill_between(curve["pairs"], curve["low"], curve["high"], color=_BLUE, alpha=0.12)
    if report["best_accuracy"] is not None:
        best = report["best_accuracy"]
        axis.axhline(best, color=_GREEN, ls="--", lw=1, label="who knows the annotator")
    axis.axhline(0.5, color=_GREY, ls=":", lw=1)


def _draw_policies(axis: Any, report: dict[str, Any], names: tuple[str, ...], title: str) -> None:
    axis.set_title(title)
    rows = [row for row in report["sizes"] if "policy" in row]
    labels = {"gold": "gold", "score": "score R", "objective": "J", "gold_objective": "J of gold"}
    for name, color in zip(names, (_BLUE, _ORANGE, _GREEN), strict=False):
        means = [row["policy"][name]["mean"] for row in rows]
        intervals = [row["policy"][name]["interval"] for row in rows]
        axis.errorbar(
            [row["size"] for row in rows],
            means,
            yerr=_errors(means, intervals),
            fmt="o-",
            color=color,
            capsize=3,
            label=labels[name],
        )
    if "gold" in names:
        untrained = rows[0]["policy"]["untrained_gold"]
        axis.axhline(untrained, color=_GREY, ls="--", lw=1, label="reference")


def _errors(means: list[float], intervals: list[Any]) -> list[list[float]] | None:
    """Lengths of error bars down and up; None without intervals."""
    if any(interval is None for interval in intervals):
        return None
    pairs = list(zip(means, intervals, strict=True))
    return [[m - i[0] for m, i in pairs], [i[1] - m for m, i in pairs]]
