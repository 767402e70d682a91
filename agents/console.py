"""Printing text of people and models literally: no control characters, no markup."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from tokenenv.printable import printable

__all__ = ["literal", "new_console"]


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
