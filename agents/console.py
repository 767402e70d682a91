"""Printing text of people and models literally; progress bars; reading lines.

Neither control characters nor markup in such a text have an effect.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tokenenv.printable import printable

__all__ = ["literal", "new_console", "progress_bar", "typed_lines"]


def new_console(stderr: bool = False) -> Console:
    """A console that does not replace emoji names (`:smile:`)."""
    return Console(stderr=stderr, emoji=False)


def literal(text: object, style: str = "") -> Text:
    """`text` as it is, for `Console.print` and the cells of tables.

    Neither rich's markup (`[red]`) nor control characters in it have an effect: they are shown.

    Args:
        text: anything that has a string.
        style: rich's, of the whole.
    """
    return Text(printable(str(text)), style)


def progress_bar(console: Console) -> Progress:
    """A bar with counts, elapsed and remaining time, and a free text at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(4, min(24, console.width - 48))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def typed_lines() -> Iterator[str]:
    """The lines that are typed, or those of a file or a pipe; the end of either ends them."""
    if sys.stdin is None:  # it was closed
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are no move, and no error
    if not sys.stdin.isatty():
        yield from iter(sys.stdin.readline, "")
        return
    with contextlib.suppress(ImportError):  # not on every system: then lines can't be edited
        import readline  # noqa: F401
    shown = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            line = input(shown)
        except (EOFError, KeyboardInterrupt) as end:
            sys.stdout.write("\n")  # what follows has a line of its own
            if isinstance(end, EOFError):
                return
            raise
        yield line
