"""What `tokenrlhf reward-model` prints: evaluations, how training ended, the report."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from tokenenv.rewards import (
    HeldOutReport,
    PairEvaluation,
    RewardTrainingSettings,
    TrainingRecord,
)

__all__ = ["evaluation_line", "print_report", "print_training"]


def evaluation_line(evaluation: PairEvaluation) -> str:
    """A look at the training, as a line."""
    return (
        f"step {evaluation.step:>6,}  training loss {evaluation.train_loss:.4f}  held-out loss "
        f"{evaluation.loss:.4f}  accuracy {evaluation.accuracy:.3f}"
        f"{'  (lowest loss)' if evaluation.is_best else ''}"
    )


def print_training(
    record: TrainingRecord, settings: RewardTrainingSettings, console: Console
) -> None:
    """Say how a training ended and which weights were kept."""
    if record.stopped in ("early", "signal"):
        console.print(literal(record.reason))
    if record.is_diverged:
        return  # the error says it
    if settings.early_stopping:
        why = f"which have the lowest held-out loss, {record.selection_loss:.4f}"
    else:
        why = "the last ones: early stopping is off"
    console.print(literal(f"the weights of step {record.kept_step:,} are kept, {why}."))
    if settings.precision == "auto":
        console.print(literal(f"precision: auto, measured: {record.precision}."))


def print_report(report: HeldOutReport, console: Console) -> None:
    """The report as a table, and its notes."""
    table = Table(title="held-out pairs", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("95 % interval", justify="right")
    details = report.details
    for name, value in report.as_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            interval = details["accuracy_interval"] if name == "accuracy" else None
            table.add_row(name, _number(value), _interval(interval))
    for name in ("shorter_wins", "longer_wins"):
        if details[name] is not None:
            table.add_row(
                name.replace("_", " "),
                _number(details[name]["accuracy"]),
                _interval(details[name]["interval"]),
            )
    for number, member in enumerate(details.get("members", ()), 1):
        interval = _interval(member["accuracy_interval"])
        table.add_row(f"member {number}: accuracy", _number(member["accuracy"]), interval)
    for side, scores in details["scores"].items():
        score = f"{scores['mean']:+.3f} ± {scores['std']:.3f}"
        table.add_row(f"score of {side}, mean ± deviation", score, "")
    console.print(table)
    for note in report.notes:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _interval(interval: Any) -> str:
    if interval is None or any(math.isnan(end) for end in interval):
        return ""
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
