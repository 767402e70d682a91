"""Labels from a person at the terminal."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from agents.console import literal
from agents.labelling.pair_file import PairFile, PairRow

__all__ = ["ask_for_labels"]

_KEYS = "a or b: that one is better; t: tie; s: skip; u: undo; q: quit"

_WORDS = {
    **{"a": "a", "b": "b", "t": "tie", "tie": "tie", "s": "skip", "skip": "skip"},
    **{"u": "undo", "undo": "undo", "q": "quit", "quit": "quit"},
}

_TURNED = {"a": "b", "b": "a", "tie": "tie"}


def ask_for_labels(file: PairFile, lines: Iterator[str], console: Console, seed: int = 0) -> int:
    """Ask about every pair that has no label, until the end of the input or `q`.

    Which response is shown as A is drawn: people prefer a place. What is written is about the order
    in the file. Every answer is in the file before the next question.

    Args:
        file: the pairs.
        lines: what is typed.
        console: where to show them.
        seed: of the order.

    Returns:
        How many pairs have an answer now that had none, skips included.
    """
    waiting = [index for index, row in enumerate(file.rows) if row.is_open]
    if waiting:
        console.print(_KEYS)
    position = 0
    while position < len(waiting):
        index = waiting[position]
        row = file.rows[index]
        is_turned = bool(np.random.default_rng((seed, zlib.crc32(row.id.encode()))).integers(2))
        _show(console, row, is_turned, f"{position + 1:,} of {len(waiting):,}")
        word = _next_word(lines, console)
        if word == "quit":
            break
        if word == "undo":
            if not position:
                console.print("nothing to undo.")
                continue
            position -= 1
            before = file.rows[waiting[position]]
            file.label(waiting[position], before.labelled(None, None, skipped=False))
            continue
        if word == "skip":
            file.label(index, row.labelled(None, "person", skipped=True))
        else:
            file.label(index, row.labelled(_TURNED[word] if is_turned else word, "person"))
        position += 1
    return position


def _next_word(lines: Iterator[str], console: Console) -> str:
    """What the next line that makes sense asks for; the end of the input is `quit`."""
    for line in lines:
        word = _WORDS.get(line.strip().lower())
        if word is not None:
            return word
        console.print(literal(f"{line.strip()[:40]!r} is no answer. {_KEYS}"))
    return "quit"


def _show(console: Console, row: PairRow, is_turned: bool, count: str) -> None:
    if isinstance(row.prompt, str):
        prompt = row.prompt
    else:
        prompt = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in row.prompt)
    console.print(Text.assemble((f"\n{count}  ", "dim"), literal(prompt)))
    shown = (row.response_a, row.finish_a), (row.response_b, row.finish_b)
    for name, (text, finish) in zip("AB", reversed(shown) if is_turned else shown, strict=True):
        cut = " …" if finish == "length" else ""
        console.print(Panel(literal(text + cut), title=name, title_align="left"))
