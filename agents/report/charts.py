"""The charts of the page: which curves, which lines to hold them against, seeds as bands."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.report.curves import Curve, curve, mean_over_seeds, objective_curve, thinned
from agents.report.run_files import RunFiles
from agents.reward_quality.hacking.law import Law, fit_law, start_of
from agents.reward_quality.hacking.points import Points, points_of

__all__ = ["CHARTS", "Chart", "Group", "charts", "group_runs"]

MOST_POINTS = 400
"""Points of a curve in the page; longer ones are averaged."""


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
    """

    name: str
    title: str
    key: str
    held_out: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    floor: float | None = None


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
)
"""In the order of the page."""

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


def charts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The charts as the page's script draws them, without those that nothing is known for.

    Args:
        groups: of runs.
    """
    found = []
    for chart in CHARTS:
        drawn = _chart(chart, groups)
        if any(series["x"] for series in drawn["series"]):
            found.append(drawn)
    return [*found, *_gold_against_proxy(groups)]


def _gold_against_proxy(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The chart of gold reward and score over √KL; none where no run knows its gold reward.

    Of several groups the gold reward alone, in their colours.
    """
    series: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, group in enumerate(groups):
        runs = [points_of(run.rows) for run in group.runs]
        runs = [run for run in runs if run.gold is not None]
        law = _fitted(runs, "gold")
        if law is None:
            continue
        rewards = {"gold reward": ("gold", number + (len(groups) == 1))}
        if len(groups) == 1:
            rewards["score"] = ("score", 0)
        for label, (name, colour) in rewards.items():
            label = label if len(groups) == 1 else f"{group.label}: {label}"
            series += _over_distance(runs, name, label, colour)
        notes.append(law.words("gold" if len(groups) == 1 else f"{group.label}: gold"))
    if not series:
        return []
    notes.append("dots are rollouts, lines the law of Gao et al. 2022 fitted to them, d = √KL")
    shown = {"name": "gold_against_proxy", "title": "gold reward against score, over √KL"}
    axis = {"over": "√KL", "unit": "√nat", "low": None, "high": None, "floor": None}
    return [{**shown, **axis, "series": series, "notes": notes, "lines": []}]


def _fitted(runs: Sequence[Points], name: str) -> Law | None:
    distances = [run.distance for run in runs if len(run)]
    rewards = [getattr(run, name) for run in runs if len(run)]
    return fit_law(distances, rewards, start_of(distances, rewards)) if distances else None


def _over_distance(
    runs: Sequence[Points], name: str, label: str, colour: int
) -> list[dict[str, Any]]:
    """The rollouts of a group of runs as dots, and their law as a line."""
    law = _fitted(runs, name)
    assert law is not None  # the runs have points enough for one reward, so for the other
    dots = Curve(
        np.concatenate([run.distance for run in runs]),
        np.concatenate([getattr(run, name) for run in runs]),
    )
    places = np.linspace(0, law.largest, 60)
    order = np.argsort(dots.tokens, kind="stable")
    sorted_dots = Curve(dots.tokens[order], dots.values[order])
    return [
        _series(thinned(sorted_dots, MOST_POINTS)[0], label, colour, "dots"),
        _series(Curve(places, law(places)), f"{label}, fitted", colour, "line"),
    ]


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
            series.append(_series(fewer, label, number, role))
        if len(curves) > 1:
            series += _band([of for _, of in curves], group, number)
        if is_alone and chart.held_out:
            held_out = curve(group.runs[0].rows, chart.held_out)
            series.append(_series(held_out, "held-out prompts", number, "points"))
        lines += _lines(chart, group, number)
    shown = {"name": chart.name, "title": chart.title, "series": series, "notes": sorted(notes)}
    return {**shown, "lines": _without_repetition(lines), **_axis(chart)}


def _curve(chart: Chart, run: RunFiles) -> Curve:
    if chart.name == "objective":
        return objective_curve(run.rows, run.kl_coef)
    return curve(run.rows, chart.key)


def _is_still(chart: Chart, of: Curve) -> bool:
    """Whether it is a β that nothing moves, which is no curve."""
    return chart.name == "kl_coef" and math.isclose(of.values.min(), of.values.max())


def _series(of: Curve, label: str, group: int, role: str) -> dict[str, Any]:
    x, y = of.tokens.tolist(), [_short(value) for value in of.values]
    return {"label": label, "group": group, "role": role, "x": x, "y": y}


def _band(curves: list[Curve], group: Group, number: int) -> list[dict[str, Any]]:
    """The mean over seeds and their range; nothing where no two of them were at the same time."""
    mean, low, high = mean_over_seeds([thinned(of, MOST_POINTS)[0] for of in curves])
    if not len(mean):
        return []
    label = f"{group.label}: mean of {len(curves)} seeds"
    band = {"low": [_short(v) for v in low], "high": [_short(v) for v in high]}
    return [
        {**_series(mean, f"range of {len(curves)} seeds", number, "band"), **band},
        _series(mean, label, number, "line"),
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
            lines.append({"value": _short(level), "label": label, "role": role, "group": number})
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


def _short(value: float) -> float:
    """Six significant digits: more than a chart shows."""
    return float(f"{value:.6g}")
