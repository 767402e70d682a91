"""The settings of `tokenrlhf data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tokenenv.data import parse_columns

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """Say what a file of prompts, preference pairs or examples holds, as training would read it.

    Shows its layout, the lengths, duplicates, ties, empty answers, labels that contradict each
    other, prompts in both splits, whether the longer answer wins, three examples, and bad rows.
    """

    action: Annotated[Literal["inspect"], tyro.conf.Positional]
    """What to do with the file."""
    file: Annotated[Path, tyro.conf.Positional]
    """JSON Lines, JSON, CSV, TSV, Parquet or text, packed by gzip or not; a folder of datasets; or
    a hub id (docs/data.md)."""
    tokenizer: str | None = None
    """Task name, folder or hub id of the model whose tokens are counted; characters without it."""
    columns: tuple[str, ...] = ()
    """What columns mean and their names in the file: prompt=question chosen=good."""
    kind: Literal["auto", "prompts", "pairs", "examples"] = "auto"
    """What the file holds; by its columns unless given."""
    ratings: Literal["all", "best-worst"] = "all"
    """Where several responses to a prompt have ratings: all pairs of them, or the best against the
    worst."""
    documents: str = "lines"
    """Where a document of plain text ends, of examples: lines, paragraphs, whole, or a marker such
    as '<|endoftext|>'."""
    json: bool = False
    """Print it as JSON."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        parse_columns(self.columns)
