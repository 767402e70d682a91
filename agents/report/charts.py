"""The charts of the page: which curves, which lines to hold them against, seeds as bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.report.curves import Curve, curve, mean_over_seeds, objective_curve, thinned
from agents.report.reward_charts import alarm_marks, calibration_charts, gold_against_proxy
from agents.report.run_files import RunFiles
from agents.report.series import MOST_POINTS, Group, group_runs, series_of, short

__all__ = ["CHARTS", "Chart", "Group", "charts", "group_runs"]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: short, of the number.
        title: what it is, with its unit.
        key: in `metrics.jsonl`, of the training samples.
        held_out: key of the same number on held-out prompts; "" for none.
        lines: key in `summary.json` → what it is, for levels to hold the curve against.
        low: the axis reaches down to it, however high the curve is; None for the curve alone.
        high: the same, up.
        floor: what lies below is cut off.
        levels: value → what it is, for levels that are the same in every run.
        section: of the page, `"curves"` or `"reward"`.
    """

    name: str
    title: str
    key: str
    held_out: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    levels: tuple[tuple[float, str], ...] = ()
    section: str = "curves"


_OPTIMUM = (("optimum", "optimum J*"), ("optimum_lower_bound", "J*, lower bound"))

CHARTS = (
    Chart(
        "objective",
        "J = E[R] − β·KL",
        "rlhf/objective",
        "eval/objective",
        (("objective_reference", "untrained"), *_OPTIMUM),
    ),
    Chart("score", "score", "rlhf/score", "eval/score", (("score_reference", "untrained"),)),
    Chart(
        "gold_reward",
        "gold reward",
        "rlhf/gold_reward",
        "eval/gold_reward",
        (("gold_reward_reference", "untrained"),),
    ),
    Chart("kl", "KL to the reference, nats", "rlhf/kl", "eval/kl", low=0),
    Chart("kl_coef", "β, moved by its controller", "rlhf/kl_coef", low=0),
    Chart("entropy", "entropy per token, nats", "rlhf/entropy", low=0),
    Chart("response_length", "length, tokens", "rlhf/response_length", low=0),
    Chart("eos_rate", "EOS rate", "rlhf/eos_rate", low=0, high=1),
    Chart(
        "explained_variance",
        "explained variance",
        "train/explained_variance",
        low=0,
        high=1,
        floor=-1,
    ),
    Chart("clip_fraction", "clip fraction", "train/clip_fraction", low=0),
    Chart("value_loss", "value loss", "train/value_loss", low=0),
    Chart(
        "shift",
        "shift of the responses, in deviations under no shift",
        "rlhf/shift",
        levels=((0.0, "no shift"),),
        section="reward",
    ),
    Chart(
        "shift_p",
        "p-value of no shift",
        "rlhf/shift_p",
        low=0,
        high=1,
        levels=((0.05, "level"),),
        section="reward",
    ),
    Chart(
        "shift_disagreement",
        "reward models' disagreement, against that on known texts",
        "rlhf/shift_disagreement",
        low=0,
        levels=((1.0, "as on known texts"),),
        section="reward",
    ),
    Chart(
        "rm_disagreement",
        "reward models' disagreement, deviations",
        "rlhf/rm_disagreement",
        low=0,
        section="reward",
    ),
    Chart(
        "rm_accuracy",
        "accuracy on the policy's own pairs",
        "rlhf/rm_accuracy",
        low=0,
        high=1,
        levels=((0.5, "a coin"),),
        section="reward",
    ),
    Chart(
        "rm_accuracy_after",
        "the same, after learning them",
        "rlhf/rm_accuracy_after",
        low=0,
        high=1,
        levels=((0.5, "a coin"),),
        section="reward",
    ),
    Chart(
        "rm_scale",
        "spread of the raw rewards, against the start",
        "rlhf/rm_scale",
        low=0,
        levels=((1.0, "at the start"),),
        section="reward",
    ),
    Chart(
        "ref_surprisal",
        "−log π_ref of a response, nats",
        "rlhf/ref_surprisal",
        low=0,
        section="reward",
    ),
)
"""In the order of the page."""


def charts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The charts as the page's script draws them, without those that nothing is known for.

    Args:
        groups: of runs.
    """
    marks = alarm_marks(groups)
    found = []
    for chart in CHARTS:
        drawn = {**_chart(chart, groups), "section": chart.section, "marks": marks}
        if any(series["x"] for series in drawn["series"]):
            found.append(drawn)
    runs = [run for group in groups for run in group.runs]
    of_curves = [chart for chart in found if chart["section"] == "curves"]
    of_reward = [chart for chart in found if chart["section"] != "curves"]
    return [*of_curves, *gold_against_proxy(groups), *of_reward, *calibration_charts(runs)]


def _chart(chart: Chart, groups: Sequence[Group]) -> dict[str, Any]:
    is_alone = sum(len(group.runs) for group in groups) == 1
    series, lines, notes = [], [], set()
    for number, group in enumerate(groups):
        curves = [(run, _curve(chart, run)) for run in group.runs]
        curves = [(run, of) for run, of in curves if len(of) and not _is_still(chart, of)]
        for run, of in curves:
            label = "training samples" if is_alone else f"{group.label}, seed {run.config['seed']}"
            role = "line" if len(curves) == 1 else "seed"
            fewer, each = thinned(of, MOST_POINTS)
            if each > 1:
                notes.add(f"each point is the mean of {each} updates")
            series.append(series_of(fewer, label, number, role))
        if len(curves) > 1:
            series += _band([of for _, of in curves], group, number)
        if is_alone and chart.held_out:
            held_out = curve(group.runs[0].rows, chart.held_out)
            series.append(series_of(held_out, "held-out prompts", number, "points"))
        lines += _lines(chart, group, number)
    lines += [
        {"value": value, "label": label, "role": "reference", "group": None}
        for value, label in chart.levels
    ]
    shown = {"name": chart.name, "title": chart.title, "series": series, "notes": sorted(notes)}
    return {**shown, "lines": _without_repetition(lines), **_axis(chart)}


def _curve(chart: Chart, run: RunFiles) -> Curve:
    if chart.name == "objective":
        return objective_curve(run.rows, run.kl_coef)
    return curve(run.rows, chart.key)


def _is_still(chart: Chart, of: Curve) -> bool:
    """Whether it is a β that nothing moves, which is no curve."""
    return chart.name == "kl_coef" and math.isclose(of.values.min(), of.values.max())


def _band(curves: list[Curve], group: Group, number: int) -> list[dict[str, Any]]:
    """The mean over seeds and their range; nothing where no two of them were at the same time."""
    mean, low, high = mean_over_seeds([thinned(of, MOST_POINTS)[0] for of in curves])
    if not len(mean):
        return []
    label = f"{group.label}: mean of {len(curves)} seeds"
    band = {"low": [short(v) for v in low], "high": [short(v) for v in high]}
    return [
        {**series_of(mean, f"range of {len(curves)} seeds", number, "band"), **band},
        series_of(mean, label, number, "line"),
    ]


def _lines(chart: Chart, group: Group, number: int) -> list[dict[str, Any]]:
    """Levels of a group: of the optimum the greatest bound of its runs, of others their mean."""
    lines: list[dict[str, Any]] = []
    for key, label in chart.lines:
        values = [run.summary.get(key) for run in group.runs]
        known = [float(v) for v in values if v is not None and math.isfinite(v)]
        if known:
            is_optimum = key.startswith("optimum")
            level = max(known) if is_optimum else sum(known) / len(known)
            role = "optimum" if is_optimum else "reference"
            lines.append({"value": short(level), "label": label, "role": role, "group": number})
    if chart.name == "kl":
        settings = (run.config.get("kl_target") for run in group.runs)
        targets = {float(target) for target in settings if isinstance(target, int | float)}
        lines += [
            {"value": target, "label": "target", "role": "reference", "group": number}
            for target in sorted(targets)
        ]
    return lines


def _without_repetition(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Levels that several groups share once; levels of their own keep their group's colour."""
    shared: dict[tuple[str, float], dict[str, Any]] = {}
    for line in lines:
        key = (line["label"], float(f"{line['value']:.3g}"))
        if key in shared:
            shared[key]["group"] = None
        else:
            shared[key] = line
    return list(shared.values())


def _axis(chart: Chart) -> dict[str, Any]:
    return {"low": chart.low, "high": chart.high, "floor": chart.floor}
