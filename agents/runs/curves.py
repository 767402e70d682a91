"""`curves.png`: score, gold reward, KL and objective of a run over its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.atomic_files import whole_file
from tokenenv.json_files import read_json_lines

__all__ = ["draw_curves", "judged_rows", "read_metrics"]

_ACTOR, _REFERENCE, _OPTIMUM, _EVALUATION = "#1f6fb2", "#7f7f7f", "#2a8f4f", "#d1662c"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none where there is no file yet.

    Raises:
        ValueError: a line is no JSON object, or what curves are drawn from is no number there; the
            file and the line's number are named.
    """
    if not path.is_file():
        return []
    # What diverged is null there, which JSON has instead of NaN (older files have NaN itself).
    rows = read_json_lines(path, allow_nan=True, check=_check_metrics)
    return [{n: math.nan if v is None else v for n, v in row.items()} for row in rows]


_TOKENS = "time/total_timesteps"
_DRAWN = ("rlhf/", "eval/", _TOKENS)


def _check_metrics(row: dict[str, Any], where: str) -> None:
    drawn = [name for name in row if name.startswith(_DRAWN)]
    for name in drawn:
        if isinstance(row[name], bool) or not isinstance(row[name], int | float | None):
            raise ValueError(f"{where}: {name!r} is {row[name]!r:.60}, it must be a number.")
    if drawn and _TOKENS not in row:
        raise ValueError(f"{where}: {_TOKENS!r} is missing, which says when {drawn[0]!r} was.")


def judged_rows(rows: list[dict[str, Any]], kl_coef: float) -> list[dict[str, Any]]:
    """The rows with J of the training samples at one β.

    What they hold as `rlhf/objective` is at the β of each rollout, which a controller moves: a
    curve of it would mix J's that can't be compared, neither with each other nor with a summary's.

    Args:
        rows: of `metrics.jsonl`; they stay as they are.
        kl_coef: β that the run is judged by.
    """
    return [
        {**row, "rlhf/objective": row["rlhf/score"] - kl_coef * row["rlhf/kl"]}
        if "rlhf/score" in row
        else row
        for row in rows
    ]


def draw_curves(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Draw the curves of a run.

    Args:
        rows: of `metrics.jsonl`.
        summary: of `summary.json`; gives the lines for the reference and the optimum.
        path: PNG to write.
    """
    rows = judged_rows(rows, summary["kl_coef"])
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    lines: dict[str, list[tuple[float, str, str]]] = {
        name: [] for name in ("score", "gold_reward", "kl", "objective")
    }
    for name, known in lines.items():  # of a run that was not evaluated there is none
        if summary.get(f"{name}_reference") is not None:
            known.append((summary[f"{name}_reference"], "reference", _REFERENCE))
    for name, label in (("optimum", "optimum"), ("optimum_lower_bound", "optimum, lower bound")):
        if summary.get(name) is not None:
            lines["objective"].append((summary[name], label, _OPTIMUM))
    titles = {
        "score": "score R(x, y)",
        "gold_reward": "gold reward",
        "kl": "KL(π ‖ π_ref) per response, nats",
        "objective": f"objective J = E[R] − {summary['kl_coef']:g}·KL",
    }
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
        _panel(axis, rows, name, title, lines[name])
    for axis in axes[1]:
        axis.set_xlabel("response tokens")
    figure.suptitle(f"{summary.get('name', summary['task'])}, seed {summary['seed']}")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _panel(
    axis: Any,
    rows: list[dict[str, Any]],
    name: str,
    title: str,
    lines: list[tuple[float, str, str]],
) -> None:
    axis.set_title(title, fontsize=11)
    for key, label, style in (
        (f"rlhf/{name}", "training samples", {"color": _ACTOR}),
        (f"eval/{name}", "held-out prompts", {"color": _EVALUATION, "marker": "o", "ls": "none"}),
    ):
        points = [(r[_TOKENS], r[key]) for r in rows if key in r]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, **style)
    for level, label, color in lines:
        axis.axhline(level, color=color, ls="--", lw=1.2, label=label)
    axis.grid(alpha=0.25)
    if axis.has_data():
        axis.legend(fontsize=8, loc="best")
    else:
        axis.text(0.5, 0.5, "not known for this task", transform=axis.transAxes, ha="center")
