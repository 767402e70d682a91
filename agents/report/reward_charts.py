"""Charts of the reward: gold against proxy, calibration, and where the alarms were raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.report.curves import Curve, thinned
from agents.report.run_files import TOKENS, RunFiles
from agents.report.series import MOST_POINTS, Group, series_of, short
from agents.reward_quality.hacking.law import Law, fit_law, start_of
from agents.reward_quality.hacking.points import Points, points_of
from tokenenv.printable import printable

__all__ = ["alarm_marks", "calibration_charts", "gold_against_proxy"]

_IN_REWARD: dict[str, Any] = {"section": "reward", "lines": []}


def alarm_marks(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Where alarms were raised, in tokens: all of a single run, of several each one's first.

    Args:
        groups: of runs.
    """
    is_alone = sum(len(group.runs) for group in groups) == 1
    marks = []
    for number, group in enumerate(groups):
        for run in group.runs:
            by_time: dict[float, list[str]] = {}
            for alarm in run.rewards.alarms:
                by_time.setdefault(alarm["tokens"], []).append(alarm["rule"])
            for tokens, rules in list(by_time.items())[: None if is_alone else 1]:
                label = ", ".join(rules) if is_alone else f"{run.name}: {', '.join(rules)}"
                marks.append({"at": tokens, "label": printable(label), "group": number})
    return marks


def _marks_over_distance(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The same, where the alarm's rollout stands on the axis of √KL."""
    marks = []
    for group in groups:
        for run in group.runs:
            for mark in alarm_marks([Group(group.label, [run])])[:1]:
                kl = _kl_at(run, mark["at"])
                if kl is not None:
                    place = {"at": short(max(kl, 0.0) ** 0.5), "group": groups.index(group)}
                    marks.append({**mark, **place})
    return marks


def _kl_at(run: RunFiles, tokens: float) -> float | None:
    """KL of the rollout that ended after so many tokens, or of the next one."""
    found = (
        row["rlhf/kl"] for row in run.rows if row.get(TOKENS, -1) >= tokens and "rlhf/kl" in row
    )
    return next((float(kl) for kl in found if kl is not None), None)


def calibration_charts(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """σ(r_a − r_b) against the share observed, of each reward model whose report has it.

    Args:
        runs: those that have a reward model in common have one chart of it.
    """
    reports = {report.name: report for run in runs for report in run.rewards.reports if report.bins}
    shown = []
    for number, (name, report) in enumerate(reports.items()):
        predicted, observed, pairs = np.array(report.bins).T
        of = f" of {printable(name)}" if len(reports) > 1 else ""
        series = [
            series_of(Curve(predicted, observed), "observed", 0, "points"),
            series_of(Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0])), "calibrated", 6, "line"),
        ]
        notes = [
            f"{len(pairs)} bins of {pairs.sum():,.0f} pairs in both orders, the smallest of "
            f"{pairs.min():,.0f}; on the line what is observed is what was predicted"
        ]
        title = f"calibration{of}: observed share over predicted p"
        axis = {"over": "p", "unit": "predicted", "low": 0, "high": 1, "floor": None}
        name = f"calibration-{number}"
        shown.append(
            {"name": name, "title": title, **axis, **_IN_REWARD, "series": series, "notes": notes}
        )
    return shown


def gold_against_proxy(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The chart of gold reward and score over √KL; none where no run knows its gold reward.

    Of several groups the gold reward alone, in their colours.

    Args:
        groups: of runs.
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
    marks = _marks_over_distance(groups)
    return [{**shown, **axis, **_IN_REWARD, "series": series, "notes": notes, "marks": marks}]


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
        series_of(thinned(sorted_dots, MOST_POINTS)[0], label, colour, "dots"),
        series_of(Curve(places, law(places)), f"{label}, fitted", colour, "line"),
    ]
