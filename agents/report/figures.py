"""Figures of runs for papers, by matplotlib: curves over seeds, credit, calibration, strength.

Axes: `S` runs that differ by their seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file
from agents.credit import TokenFile
from agents.report.charts import Group, group_runs
from agents.report.curves import Curve, curve, objective_curve
from agents.report.run_files import RunFiles
from agents.settings import run_name

__all__ = ["CONFIDENCE", "draw_figures", "mean_and_interval", "value_calibration"]

CONFIDENCE = 0.95
"""Of the intervals over seeds."""

BINS = 10
"""Groups of tokens in a calibration, of equally many tokens each."""

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#7f7f7f"
_COLOURS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of Okabe and Ito, which colour-blind readers tell apart."""


def draw_figures(runs: Sequence[RunFiles], folder: Path) -> list[Path]:
    """Draw what the runs have the data for, as PDF and PNG.

    Args:
        runs: those that differ by their seed alone become one curve with an interval; the figures
            of tokens are of the first run.
        folder: where to; it is made where it is missing.

    Returns:
        The files: `learning_curves`, `credit`, `value_calibration` and `strength_entropy`.

    Raises:
        OSError: a file can't be written.
    """
    figures = {"learning_curves": _learning_curves(group_runs(runs))}
    tables = runs[0].tables
    if tables:
        figures["strength_entropy"] = _strength_against_entropy(tables[-1])
        if len(tables) > 1 and _of_kind(tables[-1], "fixed"):
            figures["credit"] = _credit_heat_map(tables)
        if tables[-1].header["has_critic"] and _of_kind(tables[-1], "fresh"):
            figures["value_calibration"] = _calibration(tables[-1])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        FigureCanvasAgg(figure)
        for suffix in ("pdf", "png"):
            path = folder / f"{name}.{suffix}"
            with whole_file(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=200)
            paths.append(path)
    return paths


# Learning curves ---------------------------------------------------------------------------------


def mean_and_interval(curves: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
    """The mean of S curves and the half-width of its interval, where all of them have points.

    Between its points a curve is taken to be straight. The interval is Student's for the mean over
    seeds, at `CONFIDENCE`; NaN for a single curve, which has none.

    Args:
        curves: S of them, none empty.
    """
    tokens = np.unique(np.concatenate([c.tokens for c in curves]))
    first, last = max(c.tokens[0] for c in curves), min(c.tokens[-1] for c in curves)
    tokens = tokens[(tokens >= first) & (tokens <= last)]
    values = np.array([np.interp(tokens, c.tokens, c.values) for c in curves])  # (S, points)
    seeds = len(curves)
    from scipy import stats  # here: it takes a second

    if seeds < 2:
        return Curve(tokens, values[0]), np.full(len(tokens), np.nan)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
    return Curve(tokens, values.mean(0)), quantile * values.std(0, ddof=1) / np.sqrt(seeds)


def _learning_curves(groups: Sequence[Group]) -> Figure:
    panels = {
        "score R(x, y)": lambda run: curve(run.rows, "rlhf/score"),
        "gold reward": lambda run: curve(run.rows, "rlhf/gold_reward"),
        "KL(π ‖ π_ref) per response, nats": lambda run: curve(run.rows, "rlhf/kl"),
        "objective J = E[R] − β·KL": lambda run: objective_curve(run.rows, run.kl_coef),
    }
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for axis, (title, curve_of) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_xlabel("response tokens", fontsize=8)
        for number, group in enumerate(groups):
            curves = [c for c in map(curve_of, group.runs) if len(c)]
            if curves:
                _draw_group(axis, curves, _COLOURS[number % len(_COLOURS)], group.label)
        if not axis.lines:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, color=_GREY)
    if len(groups) > 1:
        axes[0].legend(fontsize=7, frameon=False)
    counts = sorted({len(group.runs) for group in groups})
    seeds = "one seed" if counts == [1] else f"mean over seeds, {CONFIDENCE:.0%} interval"
    figure.suptitle(f"{run_name(groups[0].runs[0].config)}: {seeds}", fontsize=10)
    return figure


def _draw_group(axis: Any, curves: Sequence[Curve], color: str, label: str) -> None:
    mean, half = mean_and_interval(curves)
    axis.plot(mean.tokens, mean.values, color=color, lw=1.4, label=label)
    low, high = mean.values - half, mean.values + half
    axis.fill_between(mean.tokens, low, high, color=color, alpha=0.2, lw=0)


# Tokens ------------------------------------------------------------------------------------------


def _of_kind(table: TokenFile, *kinds: str) -> list[int]:
    return [i for i, response in enumerate(table.responses) if response["kind"] in kinds]


def _credit_heat_map(tables: Sequence[TokenFile]) -> Figure:
    """Whitened advantage of the tokens of one fixed response, over the training.

    The longest of the responses that stay the same.
    """
    fixed = _of_kind(tables[-1], "fixed")
    index = max(fixed, key=lambda i: tables[-1].responses[i]["tokens"])
    which = tables[-1].responses[index]["index"]
    rows, steps = [], []
    for table in tables:
        same = [i for i in _of_kind(table, "fixed") if table.responses[i]["index"] == which]
        if same:
            rows.append(table.columns_of(same[0])["whitened"])
            steps.append(table.step)
    texts = tables[-1].columns_of(index)["text"]
    grid = np.array(rows, dtype=np.float64)  # (steps, tokens)
    limit = float(np.nanmax(np.abs(grid))) or 1.0
    figure = Figure(figsize=(max(4.0, 0.36 * len(texts) + 2), 3.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(grid, aspect="auto", cmap="PuOr_r", vmin=-limit, vmax=limit)
    axis.set_xticks(range(len(texts)), [repr(str(t))[1:-1] for t in texts], rotation=60, ha="right")
    axis.set_yticks(range(len(steps)), [f"{step:,}" for step in steps])
    axis.tick_params(labelsize=8)
    axis.set_ylabel("response tokens trained on", fontsize=8)
    axis.set_title("whitened advantage of the same response", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.9)
    return figure


def value_calibration(table: TokenFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted V against the rewards that followed, in groups of equally many tokens.

    Of fresh responses, whose rewards to come at γ are an unbiased sample of what V predicts.

    Args:
        table: of a run with a critic.

    Returns:
        Three (groups,) arrays: mean V, mean discounted sum of the rewards to come, and the standard
        error of the latter (tokens of a response share rewards, so it is a lower one).
    """
    predicted, followed = [], []
    gamma, scale = float(table.header["gamma"]), table.header["reward_scale"]
    for index in _of_kind(table, "fresh"):
        columns = table.columns_of(index)
        rewards = scale["factor"] * columns["reward"] + scale["shift"]  # as the critic has them
        to_come, total = np.zeros(len(rewards)), 0.0
        for t in reversed(range(len(to_come))):
            total = rewards[t] + gamma * total
            to_come[t] = total
        predicted.append(columns["value"])
        followed.append(to_come)
    values, returns = np.concatenate(predicted), np.concatenate(followed)
    groups = np.array_split(np.argsort(values, kind="stable"), min(BINS, len(values)))
    return (
        np.array([values[g].mean() for g in groups]),
        np.array([returns[g].mean() for g in groups]),
        np.array([returns[g].std() / np.sqrt(len(g)) for g in groups]),
    )


def _calibration(table: TokenFile) -> Figure:
    values, returns, errors = value_calibration(table)
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axis = figure.subplots()
    ends = [float(min(values.min(), returns.min())), float(max(values.max(), returns.max()))]
    axis.plot(ends, ends, color=_GREY, lw=1, ls="--", label="V = what followed")
    axis.errorbar(values, returns, errors, fmt="o", ms=4, color=_BLUE, capsize=2)
    _label(axis, "V(s), mean of a group", "rewards that followed")
    axis.set_title(f"calibration of V after {table.step:,} tokens", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _strength_against_entropy(table: TokenFile) -> Figure:
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axis = figure.subplots()
    entropy, strength = table.arrays["entropy"], table.arrays["strength"]
    rises = table.arrays["weight"] >= 0
    for mask, color, label in (
        (rises, _BLUE, "made more likely"),
        (~rises, _ORANGE, "made less likely"),
    ):
        axis.scatter(entropy[mask], strength[mask], s=8, alpha=0.5, color=color, label=label, lw=0)
    axis.set_yscale("symlog", linthresh=max(1e-3, float(np.nanmax(strength)) / 1e3))
    _label(axis, "entropy of π(·|s), nats", "update strength, output layer")
    axis.set_title(f"{len(entropy):,} tokens after {table.step:,}", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
