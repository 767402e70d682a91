"""Text from models, files and arguments as a terminal may show it: no character acts, all are seen.

An escape sequence in a response could colour, hide or overwrite text on a terminal, and a
mark for the direction of writing could reorder it.
"""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of controls (C0, DEL, C1), format characters (direction marks and isolates,
zero-width ones, tags), lone surrogates, and separators of lines and paragraphs."""

_JOINERS = "\u200c\u200d"
"""Persian, the scripts of India and composed emoji are misspelt without them; they move nothing."""


def printable(text: str, keep: str = "") -> str:
    r"""`text` with every character that could act on a terminal as an escape, such as `\x1b`.

    Args:
        text: anything.
        keep: characters to leave as they are, such as `"\n"`.

    Returns:
        A string that can be encoded and, except for `keep`, has no controls, format characters,
        line separators or lone surrogates. Backslashes stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    keep += _JOINERS
    return "".join(c if c in keep or not _acts(c) else _escape(c) for c in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
