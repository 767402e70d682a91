"""Prompts from files: one prompt per line of text, or JSON Lines with a `"prompt"` field."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenenv.data.messages import Message
from tokenenv.json_files import parse_json, read_lines
from tokenenv.tasks import SPLITS, check_split

__all__ = ["Prompt", "read_prompts"]

_EVAL_EVERY = 10
"""Without a `"split"` field, every tenth prompt of a file is held out for evaluation."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an episode starts from, and what else its row holds.

    Attributes:
        content: a text, or the messages of a conversation, to which the response is the next turn.
        columns: the other fields of its row, by name; reward functions ask for them.
    """

    content: str | tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path, split: str) -> list[str]:
    """The prompts of one split of a file.

    A `.jsonl` file holds an object per line with a string `"prompt"` and, if wanted, a `"split"`
    (`"train"` or `"eval"`); any other file holds one prompt per line. Blank lines are skipped.
    Where no line names a split, every tenth prompt is held out as `"eval"`; a file of fewer than
    ten prompts serves whole as both.

    Raises:
        ValueError: the file is missing or empty, a line is malformed (its number is named), or the
            split holds no prompt.
    """
    check_split(split)
    file = Path(path)
    if not os.path.isfile(file):
        raise ValueError(
            f"prompts={str(path)!r} is no file and no task: give a .jsonl file with a 'prompt' per "
            "line, a text file with one prompt per line, a list of strings, or the name of a task."
        )
    parse = _parse_json_line if file.suffix == ".jsonl" else _parse_text_line
    rows = [
        parse(line, f"{file}, line {number}")
        for number, line in enumerate(read_lines(file), 1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"prompts file {file} is empty: it needs at least one prompt.")
    if any(named is not None for _, named in rows):
        prompts = [prompt for prompt, named in rows if (named or "train") == split]
    elif len(rows) < _EVAL_EVERY:
        prompts = [prompt for prompt, _ in rows]
    else:
        held_out = split == "eval"
        prompts = [
            prompt
            for index, (prompt, _) in enumerate(rows)
            if (index % _EVAL_EVERY == _EVAL_EVERY - 1) == held_out
        ]
    if not prompts:
        raise ValueError(f"prompts file {file} has no prompt whose 'split' is {split!r}.")
    return prompts


def _parse_text_line(line: str, _where: str) -> tuple[str, str | None]:
    return line, None


def _parse_json_line(line: str, where: str) -> tuple[str, str | None]:
    row = parse_json(line, where)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(
            f"{where}: needs an object with a string 'prompt', got {line.strip()[:80]!r}."
        )
    if not row["prompt"].strip():
        raise ValueError(f"{where}: the prompt is empty.")
    named = row.get("split")
    if named is not None and (not isinstance(named, str) or named not in SPLITS):
        raise ValueError(f"{where}: 'split' is {named!r}, it must be one of {', '.join(SPLITS)}.")
    return row["prompt"], named
