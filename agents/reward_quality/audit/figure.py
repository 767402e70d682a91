"""An audit in one figure: features, edits and invariances, each number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file
from agents.reward_quality.audit.bands import Band
from agents.reward_quality.audit.evidence import Audit
from agents.reward_quality.audit.invariances import INVARIANCES
from agents.reward_quality.audit.probes import PROBES
from agents.reward_quality.audit.verdicts import LEAST

__all__ = ["draw_audit"]

_RED, _BLUE, _GREY = "#c0392b", "#1f6fb2", "#7f7f7f"


def draw_audit(found: Audit, name: str, path: Path) -> None:
    """Draw an audit of the reward that is called `name` into a PNG.

    Red is what has a verdict, blue what has none.
    """
    has_labels = any(one.preference is not None for one in found.by_feature)
    figure = Figure(figsize=(17 if has_labels else 14, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(
        figure.subplots(1, 3 + has_labels, width_ratios=[1.2, *[1.2] * has_labels, 1.2, 1.0])
    )
    given = ", gold held fixed" if found.has_gold else ""
    _draw_bands(
        axes.pop(0),
        f"rank correlation with the score{given}",
        [(one.name, one.correlation, abs(one.by_correlation) >= LEAST) for one in found.by_feature],
    )
    if has_labels:
        _draw_bands(
            axes.pop(0),
            "prefers more of it, beyond the labels",
            [
                (
                    one.name,
                    None if one.preference is None else one.preference.excess,
                    abs(one.by_preference) >= LEAST,
                )
                for one in found.by_feature
            ],
        )
    _draw_bands(
        axes.pop(0),
        "shift by an edit, in deviations",
        [(PROBES[one.probe.name], one.shift, one.strength >= LEAST) for one in found.by_probe],
    )
    _draw_invariances(axes.pop(0), found)
    count = len(found.verdicts) + len(found.faults)
    title = f"{count} verdicts and faults" if count else "no verdict"
    shown = name if len(name) <= 60 else f"…{name[-59:]}"
    figure.suptitle(f"audit of {shown}: {title}".replace("$", r"\$"), fontsize=12)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:].lower())


def _draw_bands(axis: Any, title: str, rows: Sequence[tuple[str, Band | None, bool]]) -> None:
    axis.set_title(title, fontsize=9)
    for place, (_, band, is_verdict) in enumerate(rows):
        if band is None:
            axis.text(0, place, "  too few", va="center", fontsize=7, color=_GREY)
            continue
        color = _RED if is_verdict else _BLUE
        axis.plot([band.low, band.high], [place, place], color=color, lw=2)
        axis.plot([band.value], [place], "o", color=color, ms=4)
    labels = [label.replace("_", " ").replace("$", r"\$") for label, _, _ in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.axvline(0, color=_GREY, lw=1, ls="--")
    axis.grid(alpha=0.25, axis="x")


def _draw_invariances(axis: Any, found: Audit) -> None:
    """Largest differences beside what rounding may cause, in logarithms."""
    axis.set_title("largest difference, scored again", fontsize=9)
    floor = 1e-10
    for place, one in enumerate(found.invariances):
        difference = max(one.difference / one.deviation, floor)
        color = _BLUE if one.holds else _RED
        axis.plot([floor, difference], [place, place], color=color, lw=2)
        axis.plot([difference], [place], "o", color=color, ms=4)
        axis.plot(
            [max(one.tolerance / one.deviation, floor)] * 2,
            [place - 0.35, place + 0.35],
            color=_GREY,
            lw=1,
        )
    axis.set_xscale("log")
    axis.set_xlim(floor, max(10.0, *(2 * i.difference / i.deviation for i in found.invariances)))
    labels = [INVARIANCES[one.name] for one in found.invariances]
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel("in deviations; grey: rounding", fontsize=8)
    axis.grid(alpha=0.25, axis="x")
