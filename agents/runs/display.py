"""A training on a terminal: a line per update, and below them what changes all the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from agents.runs.sparklines import sparkline

__all__ = ["TrainingDisplay", "fitting_columns", "table_line"]

_NUMBERS = {
    "score": "score",
    "gold": "gold_reward",
    "KL": "kl",
    "J": "objective",
    "entropy": "entropy",
}
"""Column → its metric."""

_LEAST_IMPORTANT = ("entropy", "tokens", "gold", "ETA", "J", "update", "KL")
"""Columns in the order in which a narrow terminal loses them."""


class TrainingDisplay:
    """Shows a training as it goes.

    Every update prints a line; below the last one stand a sparkline of the score, one of the KL,
    and a bar with the time that is left. They are never wider than the terminal.

    Args:
        console: a terminal.
        total: response tokens of the run.
        clock: seconds, from any beginning.
    """

    def __init__(
        self, console: Console, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.total, self._clock = console, total, clock
        self._history: dict[str, list[float]] = {"score": [], "KL": []}
        self._widths: dict[str, int] = {}
        self._columns: dict[str, int] = {}
        self._done = self._updates = 0
        self._start = self._last = clock()
        self._live = Live(self, console=console, refresh_per_second=4)

    def start(self) -> None:
        """Begin the display, and the clock."""
        self._start = self._last = self._clock()
        self._live.start()

    def stop(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def update(self, done: int, metrics: Mapping[str, float]) -> None:
        """Add the line of an update.

        Args:
            done: response tokens so far.
            metrics: of its rollout; without any where no response was finished in it.
        """
        self._done, self._updates, self._last = done, self._updates + 1, self._clock()
        for name, history in self._history.items():
            history.append(metrics.get(_NUMBERS[name], math.nan))
        if self._updates == 1:
            known = [c for c in _NUMBERS if not metrics or _NUMBERS[c] in metrics]
            self._widths = {"update": 6, "tokens": max(6, len(f"{self.total:,}"))}
            self._widths |= {column: 8 for column in known} | {"ETA": 8}
        columns = fitting_columns(self._widths, self.console.width - 1)
        if columns != self._columns:  # at the first update, and where the window was resized
            self._columns = columns
            self.console.print(Text(table_line(columns, {c: c for c in columns}), "dim"))
        cells = {column: _number(metrics.get(name)) for column, name in _NUMBERS.items()}
        cells |= {"update": f"{self._updates:,}", "tokens": f"{done:,}", "ETA": self._eta()}
        self.console.print(Text(table_line(self._columns, cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines below the last update."""
        width = options.max_width - 1
        for name, history in self._history.items():
            if len(history) > 1:
                yield Text(_history_line(name, history, width), no_wrap=True)
        yield Text(self._bar(width), no_wrap=True)

    def _bar(self, width: int) -> str:
        """How far it is, and the time: "━━━━──── 50 %  0:01:00  ETA 0:01:00"."""
        share = min(self._done / self.total, 1.0)
        elapsed = _duration(self._clock() - self._start)
        text = f" {share:4.0%}  {elapsed}  ETA {self._eta()}"
        length = min(24, width - len(text))
        if length < 4:
            return text.strip()[: max(width, 0)]
        full = round(share * length)
        return "━" * full + "╌" * (length - full) + text

    def _eta(self) -> str:
        """The time that is left at the mean speed so far; it runs down between two updates."""
        if not self._done:
            return "-:--:--"
        took = self._last - self._start
        left = took * (self.total - self._done) / self._done - (self._clock() - self._last)
        return _duration(max(left, 0.0))


def fitting_columns(widths: Mapping[str, int], width: int) -> dict[str, int]:
    """The columns that fit a width, in their order; the least important are left out first.

    Args:
        widths: column → its characters; a space stands between two.
        width: of the terminal.
    """
    fitting = dict(widths)
    for column in _LEAST_IMPORTANT:
        if sum(fitting.values()) + len(fitting) - 1 <= width:
            break
        fitting.pop(column, None)
    return fitting


def table_line(columns: Mapping[str, int], cells: Mapping[str, str]) -> str:
    """Cells below each other, on the right of their columns."""
    return " ".join(f"{cells[column]:>{width}}"[-width:] for column, width in columns.items())


def _history_line(name: str, history: Sequence[float], width: int) -> str:
    """A name, a sparkline, and its first and last number."""
    known = [value for value in history if math.isfinite(value)]
    ends = f"  {_number(known[0])} … {_number(known[-1])}" if known else ""
    label = f"{name:<6}"
    room = width - len(label) - len(ends)
    if room < 8:
        ends, room = "", width - len(label)
    return f"{label}{sparkline(history, room)}{ends}"


def _number(value: float | None) -> str:
    """A number in 8 characters or less."""
    if value is None:
        return "–"
    text = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
    return text if len(text) <= 8 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds; days too, from the first on."""
    whole = timedelta(seconds=round(seconds))
    return str(whole).replace(" days, ", "d ").replace(" day, ", "d ")
