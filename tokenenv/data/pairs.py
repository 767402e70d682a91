"""Preference pairs, and the files that hold them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tokenenv.data.messages import Message
from tokenenv.json_files import parse_json, read_lines

__all__ = ["MOST_MARGIN", "PreferencePair", "read_pairs"]

MOST_MARGIN = 1e6
"""Largest margin of a pair: rewards differ by a few units; beyond float32 a loss is infinite."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt; `chosen` is the preferred one.

    Attributes:
        prompt: a text, or the messages of a conversation.
        chosen: the text of the preferred response; messages where it is more than one turn.
        rejected: likewise, of the other one.
        margin: how much better `chosen` is at least, in units of the reward.
        preference: probability that `chosen` is the better one: 1 for a plain label, 0.5 for a tie.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    margin: float = 0.0
    preference: float = 1.0


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a JSON Lines file of `{"prompt", "chosen", "rejected"[, "margin"]}`.

    Raises:
        ValueError: the file is missing or empty, or a line is malformed: its number is named.
    """
    file = Path(path)
    if not os.path.isfile(file):
        raise ValueError(
            f"pairs={str(path)!r} is no file: give JSON Lines of "
            '{"prompt": …, "chosen": …, "rejected": …}.'
        )
    pairs = [
        _parse_pair(line, f"{file}, line {number}")
        for number, line in enumerate(read_lines(file), 1)
        if line.strip()
    ]
    if not pairs:
        raise ValueError(f"preference file {file} is empty: it needs at least one pair.")
    return pairs


def _parse_pair(line: str, where: str) -> PreferencePair:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: needs an object, got {line.strip()[:80]!r}.")
    for field in ("prompt", "chosen", "rejected"):
        if field not in row:
            raise ValueError(f"{where}: the field {field!r} is missing.")
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise ValueError(f"{where}: the field {field!r} is a {kind}, it must be a string.")
        if not row[field].strip():
            raise ValueError(f"{where}: the field {field!r} is empty.")
    margin = row.get("margin", 0.0)
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not (is_number and abs(margin) <= MOST_MARGIN):
        raise ValueError(
            f"{where}: 'margin' is {margin!r:.60}, it must be a finite number of at most "
            f"{MOST_MARGIN:,.0f} either way."
        )
    return PreferencePair(row["prompt"], row["chosen"], row["rejected"], float(margin))
