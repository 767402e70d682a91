"""Preference pairs: as texts, as token ids, and as the files that hold them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenenv.json_files import parse_json, read_lines
from tokenenv.rewards.reward_model import RewardModel

__all__ = ["MOST_MARGIN", "PreferencePair", "TokenPair", "as_token_pair", "read_pairs"]

MOST_MARGIN = 1e6
"""Largest margin of a pair: rewards differ by a few units; beyond float32 a loss is infinite."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt, as text; `chosen` is the preferred one."""

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair as the reward model reads it.

    Attributes:
        chosen: (n,) int64, prompt and response in one.
        rejected: (m,) int64.
        prompt: identifies the prompt, so that held-out prompts are really held out.
        margin: how much better the chosen one is at least.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    prompt: str
    margin: float = 0.0


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


def as_token_pair(pair: PreferencePair | TokenPair, reward_model: RewardModel) -> TokenPair:
    """The pair as `reward_model` reads it; one of tokens is left as it is."""
    if isinstance(pair, TokenPair):
        return pair
    if not isinstance(pair, PreferencePair):
        raise ValueError(f"{pair!r:.80} is no pair: give PreferencePair or TokenPair objects.")
    encode = reward_model.encode
    return TokenPair(
        encode(pair.prompt, pair.chosen),
        encode(pair.prompt, pair.rejected),
        pair.prompt,
        pair.margin,
    )
