"""The pictures of a comparison: scores, profiles, learning curves, and what kind of MDP each is."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file
from agents.compare.environments import CLASSIC
from agents.compare.results import THRESHOLDS

__all__ = ["FINGERPRINT_AXES", "draw_report", "embedded_figures"]

_AGENT_COLORS = {"ppo": "#1f6fb2", "a2c": "#d1662c", "dqn": "#2a8f4f", "token-ppo": "#8a4fb0"}
_CLASSIC_COLORS = ("#1f6fb2", "#5aa5da", "#1fa5a5", "#27457a")
_TEXT_COLORS = ("#d1662c", "#e39a1f", "#a8332e", "#8a4fb0")

LOWEST = -1.0
"""Scores below are drawn at the edge, with their number."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the fingerprint figure.

    Attributes:
        name: key in the fingerprint.
        title: as shown.
        is_log: logarithmic, from `low` up.
        low: its lower end.
        high: its upper end; None: the greatest value.
    """

    name: str
    title: str
    is_log: bool
    low: float
    high: float | None = None


FINGERPRINT_AXES = (
    Axis("horizon", "horizon\n(steps)", True, 1.0),
    Axis("actions", "actions", True, 1.0),
    Axis("branching", "branching\nexp(entropy)", True, 1.0),
    Axis("reward_density", "share of\nrewards ≠ 0", False, 0.0, 1.0),
    Axis("influence", "actions that\nchange a reward", False, 0.0, 1.0),
    Axis("credit_delay", "action → reward\n(steps)", True, 0.1),
    Axis("transition_randomness", "random\ntransitions", False, 0.0, 1.0),
    Axis("return_variance_scaled", "return variance\n(score²)", True, 1e-4),
    Axis("snr_without_critic", "gradient SNR\nno critic", True, 1e-4),
    Axis("snr_with_critic", "gradient SNR\ncritic", True, 1e-4),
    Axis("explained_variance_reached", "explained\nvariance reached", False, 0.0, 1.0),
)


def draw_report(report: dict[str, Any], path: Path) -> None:
    """Draw everything into one PNG.

    Args:
        report: as `compare.json` holds it.
        path: PNG to write.
    """
    parts = _parts(report)
    heights = [height for _, height in parts.values()]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = np.atleast_1d(figure.subfigures(len(parts), 1, height_ratios=heights))  # type: ignore[arg-type]
    for part, (draw, _) in zip(rows.tolist(), parts.values(), strict=True):
        draw(part, report)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def embedded_figures(report: dict[str, Any]) -> dict[str, str]:
    """Name → PNG as a data URI, one per part, for a page that stands alone."""
    figures = {}
    for name, (draw, height) in _parts(report).items():
        figure = Figure(figsize=(12, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, report)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=100)
        figures[name] = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    return figures


def _parts(
    report: dict[str, Any],
) -> dict[str, tuple[Callable[[Any, dict[str, Any]], None], float]]:
    """Name → how it is drawn, and its height in inches."""
    parts: dict[str, tuple[Callable[[Any, dict[str, Any]], None], float]] = {}
    if report["scores"]:
        envs = len(report["scores"])
        parts["scores"] = (_draw_scores, 1.6 + 0.55 * envs)
        parts["profiles"] = (_draw_profiles, 3.4)
        parts["curves"] = (_draw_curves, 2.9 * -(-envs // 3) + 0.4)
    if report["fingerprints"]:
        parts["fingerprints"] = (_draw_fingerprints, 5.0)
    return parts


def _draw_scores(figure: Any, report: dict[str, Any]) -> None:
    axis = figure.subplots()
    scores, agents = report["scores"], report["settings"]["agents"]
    for row, by_agent in enumerate(scores.values()):
        for agent, summary in by_agent.items():
            height = row + 0.17 * (agents.index(agent) - (len(agents) - 1) / 2)
            low, high = np.maximum(summary["interval"], LOWEST)
            score, color = max(summary["score"], LOWEST), _AGENT_COLORS[agent]
            axis.plot([low, high], [height, height], color=color, lw=5, alpha=0.3)
            is_off = summary["score"] < LOWEST
            axis.plot([score], [height], marker="<" if is_off else "o", color=color, ms=6)
            if is_off:
                axis.annotate(
                    f"{summary['score']:.1f}",
                    (score, height),
                    (7, 0),
                    va="center",
                    textcoords="offset points",
                    fontsize=7,
                    color=color,
                )
    for agent in agents:
        axis.plot([], [], marker="o", color=_AGENT_COLORS[agent], lw=5, label=agent)
    for level in (0.0, 1.0):
        axis.axvline(level, color="#7f7f7f", ls="--", lw=1)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set_ylim(len(scores) - 0.5, -0.5)
    axis.set_xlim(LOWEST - 0.05, 1.25)
    axis.set_xlabel("score: 0 = random actions / the reference, 1 = solved / the optimum")
    axis.set_title(
        "interquartile mean over seeds, 95 % bootstrap interval", loc="left", fontsize=11
    )
    axis.grid(alpha=0.25, axis="x")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def _draw_profiles(figure: Any, report: dict[str, Any]) -> None:
    groups = {name: pools for name, pools in report["aggregate"].items() if pools}
    axes = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    for axis, (name, pools) in zip(axes, groups.items(), strict=True):
        for agent, pool in pools.items():
            color = _AGENT_COLORS[agent]
            label = f"{agent}, {len(pool['envs'])} env" + ("s" if len(pool["envs"]) > 1 else "")
            axis.plot(THRESHOLDS, pool["profile"], color=color, label=label)
            axis.fill_between(
                THRESHOLDS, pool["profile_low"], pool["profile_high"], color=color, alpha=0.15, lw=0
            )
        axis.set_title(f"performance profile, {name}", loc="left", fontsize=11)
        axis.set_xlabel("score τ")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="lower left")
    axes[0].set_ylabel("share of runs above τ")


def _draw_curves(figure: Any, report: dict[str, Any]) -> None:
    scores = report["scores"]
    axes = figure.subplots(-(-len(scores) // 3), min(3, len(scores)), squeeze=False).flat
    for axis, (env, by_agent) in zip(axes, scores.items(), strict=False):
        for agent, summary in by_agent.items():
            curve = np.array(summary["curve"])
            axis.plot(curve[:, 0], curve[:, 1], color=_AGENT_COLORS[agent], label=agent)
            axis.fill_between(
                curve[:, 0], curve[:, 2], curve[:, 3], color=_AGENT_COLORS[agent], alpha=0.15, lw=0
            )
        for level in (0.0, 1.0):
            axis.axhline(level, color="#7f7f7f", ls="--", lw=1)
        axis.set_ylim(LOWEST - 0.05, 1.25)
        axis.set_title(env, fontsize=10)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7, loc="best")
    for axis in list(axes)[len(scores) :]:
        axis.set_axis_off()
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("score (below −1 not shown)", fontsize=9)


def _draw_fingerprints(figure: Any, report: dict[str, Any]) -> None:
    """Parallel coordinates: one line per environment; a gap where a quantity has no value."""
    axis = figure.subplots()
    prints = report["fingerprints"]
    colors = {True: iter(_CLASSIC_COLORS * 9), False: iter(_TEXT_COLORS * 9)}
    for env, fingerprint in prints.items():
        heights = [_height(a, fingerprint[a.name], prints) for a in FINGERPRINT_AXES]
        is_classic = fingerprint["kind"] == CLASSIC
        axis.plot(
            range(len(heights)),
            heights,
            marker="o",
            ms=5,
            lw=2,
            label=env,
            alpha=0.85,
            color=next(colors[is_classic]),
            ls="--" if is_classic else "-",
        )
    for place, quantity in enumerate(FINGERPRINT_AXES):
        axis.axvline(place, color="#bbbbbb", lw=0.8, zorder=0)
        axis.text(
            place, 1.04, f"{_top(quantity, prints):.3g}", ha="center", fontsize=8, color="#666666"
        )
        low = (
            f"≤ {quantity.low:g}"
            if quantity.is_log or quantity.name.startswith("expl")
            else f"{quantity.low:g}"
        )
        axis.text(place, -0.08, low, ha="center", fontsize=8, color="#666666")
    axis.set_xticks(range(len(FINGERPRINT_AXES)), [a.title for a in FINGERPRINT_AXES], fontsize=8)
    axis.tick_params(axis="x", pad=12)
    axis.set_yticks([])
    axis.set_ylim(-0.12, 1.12)
    axis.set_title("fingerprints: what kind of MDP it is", loc="left", fontsize=11, pad=10)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _top(axis: Axis, prints: dict[str, Any]) -> float:
    if axis.high is not None:
        return axis.high
    known = [
        fingerprint[axis.name]
        for fingerprint in prints.values()
        if fingerprint[axis.name] is not None
    ]
    return max([*known, axis.low * 10])


def _height(axis: Axis, value: float | None, prints: dict[str, Any]) -> float:
    """0 at the axis's lower end, 1 at its upper; NaN where there is no value."""
    if value is None:
        return np.nan
    low, high, value = axis.low, _top(axis, prints), max(value, axis.low)
    if axis.is_log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))
