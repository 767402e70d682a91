"""Tables of the model cards of all bundled tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["LICENSE", "accuracy_rows", "table"]

LICENSE = (
    "## License",
    "MIT, as the project. The data are the project's own: no text, label or weight of others, and "
    "nothing about a\nperson.",
)
"""The last section of every card."""


def table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table of names and values."""
    lines = [f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def accuracy_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for the figures of `measure_reward_model` on held-out pairs."""
    accuracy = f"{facts['accuracy']:.4f} ± {facts['accuracy_standard_error']:.4f}"
    return [
        ("accuracy (± standard error)", accuracy),
        ("accuracy in expectation over the labels", f"{facts['expected_accuracy']:.4f}"),
        ("Bayes accuracy", f"{facts['bayes_accuracy']:.4f}"),
        ("(accuracy − ½)/(Bayes − ½)", f"{facts['accuracy_over_bayes']:.3f}"),
        ("calibration error", f"{facts['calibration_error']:.4f}"),
    ]
