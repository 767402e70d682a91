"""Prompts from files: one prompt per line of text, or JSON Lines with a `"prompt"` field."""

from __future__ import annotations

import os
from pathlib import Path

from tokenenv.json_files import parse_json, read_lines

__all__ = ["SPLITS", "check_split", "read_prompts"]

SPLITS = ("train", "eval")

_EVAL_EVERY = 10
"""Without a `"split"` field, every tenth prompt of a file is held out for evaluation."""


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(
            f"split={split!r} is unknown: choose one of {', '.join(map(repr, SPLITS))}."
        )


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
