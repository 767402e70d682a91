"""A comparison in a terminal of 80 columns: the scores, and what tells the fingerprints apart."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.compare.page import number
from agents.console import literal
from tokenenv.printable import printable

__all__ = ["print_report"]

_NAME_WIDTH = 20
_COLUMNS = {
    "horizon": "horizon",
    "branching": "branching",
    "credit_delay": "action → reward",
    "snr_with_critic": "gradient SNR",
    "explained_variance_reached": "explained variance",
}
"""The rows that a terminal has room for; `compare.html` has all."""


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the two tables and who was left out.

    Args:
        report: as `compare.json` holds it.
        console: where.
    """
    agents = report["settings"]["agents"]
    table = _table("score: 0 = baseline, 1 = optimum or solved", agents)
    for env, by_agent in report["scores"].items():
        table.add_row(_name(env), *(_score(by_agent.get(agent)) for agent in agents))
    console.print(table)
    table = _table("fingerprints (compare.html has more)", list(_COLUMNS.values()))
    for env, fingerprint in report["fingerprints"].items():
        table.add_row(_name(env), *(number(fingerprint[key]) for key in _COLUMNS))
    console.print(table)
    for reason in report["left_out"]:
        console.print(literal(reason))


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("environment", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _name(env: str) -> Text:
    """An id in lines that are broken at its hyphens."""
    return Text("\n".join(textwrap.wrap(printable(env), _NAME_WIDTH)))


def _score(summary: dict[str, Any] | None) -> str:
    """A score, and its interval in the next line."""
    if summary is None:
        return "—"
    low, high = summary["interval"]
    at_most = "≤ " if summary["is_at_most"] else ""
    judged = " (J)" if summary["measure"] == "J" else ""
    return f"{at_most}{summary['score']:.2f}{judged}\n{low:.2f} … {high:.2f}"
