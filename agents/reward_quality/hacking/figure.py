"""Gold reward and score over √KL as a picture, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file
from agents.reward_quality.hacking.law import Law, fit_law, start_of
from agents.reward_quality.hacking.points import Points

__all__ = ["draw_gold_against_proxy"]

_SCORE, _GOLD = "#0072B2", "#D55E00"
"""Of Okabe and Ito, which colour-blind readers tell apart."""


def draw_gold_against_proxy(
    groups: Mapping[str, Sequence[Points]], path: Path, alarms: Mapping[str, Sequence[float]] = {}
) -> dict[str, tuple[Law | None, Law | None]]:
    """Draw a panel for each group of runs: score and gold reward over √KL, with the fitted laws.

    Args:
        groups: title → runs that belong together, such as the seeds of one reward model.
        path: where to; the suffix says the format.
        alarms: title → √KL at which a monitor raised its first alarm, run by run.

    Returns:
        Title → laws of the score and of the gold reward; None where there was too little to fit.

    Raises:
        ValueError: there is no group.
        OSError: the file can't be written.
    """
    if not groups:
        raise ValueError("groups is empty: give the points of a run at least.")
    figure = Figure(figsize=(3.7 * len(groups), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    laws = {}
    for axis, (title, runs) in zip(axes, groups.items(), strict=True):
        laws[title] = _draw_panel(axis, title, runs, alarms.get(title, ()))
    axes[0].set_ylabel("reward", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=150)
    return laws


def _draw_panel(
    axis: Any, title: str, runs: Sequence[Points], alarms: Sequence[float]
) -> tuple[Law | None, Law | None]:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("√KL(π ‖ π_ref), √nat", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    with_gold = [run for run in runs if run.gold is not None]
    score = _draw_reward(
        axis, "score", [(run.distance, run.score) for run in runs if len(run)], _SCORE
    )
    pairs = [(run.distance, run.gold) for run in with_gold if run.gold is not None]
    gold = _draw_reward(axis, "gold reward", pairs, _GOLD)
    for number, distance in enumerate(alarms):
        label = "first alarm" if number == 0 else None
        axis.axvline(distance, color="#7f7f7f", lw=0.8, ls=":", label=label)
    return score, gold


def _draw_reward(
    axis: Any, name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], color: str
) -> Law | None:
    for number, (distance, reward) in enumerate(pairs):
        label = f"{name}, a rollout each" if number == 0 else None
        axis.scatter(distance, reward, s=7, color=color, alpha=0.45, lw=0, label=label)
    law = None
    if pairs:
        distances, rewards = zip(*pairs, strict=True)
        law = fit_law(distances, rewards, start_of(distances, rewards))
    if law is not None:
        places = np.linspace(0, law.largest, 200)
        axis.plot(places, law(places), color=color, lw=1.5, label=f"{name}, fitted")
    return law
