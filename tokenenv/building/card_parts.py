"""What the model cards of all bundled tasks are written with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["accuracy_rows", "table"]


def table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table of names and values."""
    lines = [f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def accuracy_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for what `measure_reward_model` says of held-out pairs."""
    accuracy = f"{found['accuracy']:.4f} ± {found['accuracy_standard_error']:.4f}"
    return [
        ("accuracy (± standard error)", accuracy),
        ("accuracy in expectation over the labels", f"{found['expected_accuracy']:.4f}"),
        ("Bayes accuracy", f"{found['bayes_accuracy']:.4f}"),
        ("(accuracy − ½)/(Bayes − ½)", f"{found['accuracy_over_bayes']:.3f}"),
        ("calibration error", f"{found['calibration_error']:.4f}"),
    ]
