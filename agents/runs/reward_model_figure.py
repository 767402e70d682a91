"""`report.png` of a reward model: training, scores, calibration, accuracy by margin and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file

__all__ = ["draw_reward_report"]

_COLORS = {"chosen": "#1f6fb2", "rejected": "#d1662c", "reference": "#7f7f7f"}
_BLUE, _ORANGE, _GREY = _COLORS.values()


def draw_reward_report(report: dict[str, Any], scores: dict[str, np.ndarray], path: Path) -> None:
    """Draw what `report.json` says in six panels.

    Args:
        report: its content.
        scores: `"chosen"`, `"rejected"` and perhaps `"reference"` → normalised rewards.
        path: of the PNG.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    details = report["details"]
    _draw_training(axes[0, 0], report["training"])
    _draw_scores(axes[0, 1], scores)
    _draw_calibration(axes[0, 2], details["calibration"], report["calibration_error"])
    _draw_rules(axes[1, 0], report)
    by_margin, by_length = details["by_margin"], details["by_length_difference"]
    _draw_groups(axes[1, 1], by_margin, "accuracy by |r(chosen) − r(rejected)|", ".2f")
    _draw_groups(axes[1, 2], by_length, "accuracy by length, better − other", ".0f")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.title.set_fontsize(11)
    figure.suptitle(f"reward model: {report['pairs']:,} held-out pairs")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_training(axis: Any, training: Any) -> None:
    """Losses over steps, and the steps whose weights were kept."""
    axis.set_title("loss: training (dashed), choosing the weights")
    for number, record in enumerate(training if isinstance(training, list) else [training]):
        color = f"C{number % 10}"
        steps = [look["step"] for look in record["history"]]
        axis.plot(steps, [x["train_loss"] for x in record["history"]], color=color, ls="--", lw=1)
        held_out = [(x["step"], x["loss"]) for x in record["history"] if x["loss"] == x["loss"]]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), color=color, marker=".")
        axis.axvline(record["kept_step"], color=color, lw=0.8, alpha=0.6)
    axis.axhline(np.log(2), color=_GREY, lw=0.8, ls=":")
    axis.set_xlabel("step (vertical line: the weights that were kept)")


def _draw_scores(axis: Any, scores: dict[str, np.ndarray]) -> None:
    """Histograms of normalised rewards on common bins."""
    axis.set_title("score, normalised")
    finite = {name: values[np.isfinite(values)] for name, values in scores.items()}
    everything = np.concatenate(list(finite.values()))
    if not len(everything):
        return
    bins = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-6), 31)
    for name, values in finite.items():
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            label = f"{name}, mean {values.mean():+.2f}"
            axis.hist(
                values, bins, weights=weights, histtype="step", color=_COLORS[name], label=label
            )
    axis.set_ylabel("share")
    axis.legend(fontsize=8)


def _draw_calibration(axis: Any, rows: list[dict[str, Any]], error: float | None) -> None:
    """Observed share against predicted probability."""
    shown = "unknown" if error is None else f"{error:.3f}"
    axis.set_title(f"calibration, expected error {shown}")
    axis.plot([0, 1], [0, 1], color=_GREY, ls="--", lw=1)
    most = max((row["pairs"] for row in rows), default=1)
    axis.plot([r["predicted"] for r in rows], [r["observed"] for r in rows], color=_BLUE, lw=1)
    sizes = [10 + 90 * row["pairs"] / most for row in rows]
    axis.scatter([r["predicted"] for r in rows], [r["observed"] for r in rows], sizes, color=_BLUE)
    axis.set_xlabel("predicted σ(r_a − r_b)")
    axis.set_ylabel("observed")


def _draw_rules(axis: Any, report: dict[str, Any]) -> None:
    """Accuracy of the reward model, of an ensemble's members, and of rules of length."""
    details = report["details"]
    rows = [("reward model", report["accuracy"], details["accuracy_interval"])]
    members = details.get("members", [])
    if members:
        rows = [("ensemble", *rows[0][1:])]
    for number, member in enumerate(members, 1):
        rows.append((f"member {number}", member["accuracy"], member["accuracy_interval"]))
    for name in ("shorter_wins", "longer_wins"):
        rule = details[name]
        if rule is not None:
            rows.append((name.replace("_", " "), rule["accuracy"], rule["interval"]))
    rows = [row for row in rows if row[1] is not None and row[1] == row[1]]
    for place, (name, accuracy, interval) in enumerate(rows):
        color = _GREY if name.endswith("wins") else _BLUE
        axis.plot(interval, [place, place], color=color, lw=2)
        axis.plot([accuracy], [place], "o", color=color)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.invert_yaxis()
    axis.axvline(0.5, color=_GREY, ls="--", lw=1)
    axis.set_xlim(0, 1)
    axis.set_title("accuracy, 95 % intervals")


def _draw_groups(axis: Any, rows: list[dict[str, Any]], title: str, form: str) -> None:
    """Accuracy and interval of groups of pairs."""
    axis.set_title(title)
    for place, row in enumerate(rows):
        axis.plot([place, place], row["interval"], color=_BLUE, lw=2)
        axis.plot([place], [row["accuracy"]], "o", color=_BLUE)
    labels = [f"{row['low']:{form}}\nto {row['high']:{form}}\n({row['pairs']})" for row in rows]
    axis.set_xticks(range(len(rows)), labels, fontsize=8)
    axis.axhline(0.5, color=_GREY, ls="--", lw=1)
    axis.set_ylim(0, 1.02)
