"""The settings of `tokenrlhf audit`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.reward_quality.audit.files import check_place
from agents.settings import check_figure
from tokenenv.data import parse_columns
from tokenenv.ranges import COUNT, OPTIONAL_COUNT, POSITIVE_FINITE, SEED, check_ranges, count

__all__ = ["LEAST_TEXTS", "AuditConfig"]

LEAST_TEXTS = 40
"""Fewest texts of an audit: intervals by a bootstrap over fewer prompts than half of that are too
narrow."""

_RANGES = {
    "responses": COUNT,
    "max_texts": count(low=LEAST_TEXTS),
    "probed": count(low=LEAST_TEXTS // 2),
    "resamples": count(low=1000, high=100_000),
    "temperature": POSITIVE_FINITE,
    "seed": SEED,
    **dict.fromkeys(("max_prompt_tokens", "max_new_tokens"), OPTIONAL_COUNT),
}


@dataclass(frozen=True)
class AuditConfig:
    """Find out what a reward pays for besides what was meant.

    Looks whether the score follows length, punctuation, markup, exclamation, hedges, confidence or
    repetition beyond what labels or a gold reward say; whether edits that keep the meaning move it;
    and whether it depends on what is scored beside a text. Take texts that the reward model was not
    trained on.
    """

    reward_model: Annotated[str, tyro.conf.Positional]
    """Folder or hub id of a reward model, 'package.module:function', 'file.py:function', or a
    task's name."""
    pairs: Path | None = None
    """Audit on the responses of these preference pairs, and their labels; of any format that is
    read (docs/data.md)."""
    prompts: str | None = None
    """Audit on samples: file of prompts, or a task's name."""
    reference: str | None = None
    """Task name, folder or hub id of the model that answers --prompts; that of the task where
    --prompts names one."""
    gold: str | None = None
    """The true reward, given which scores are looked at: a task's name (its gold reward), or
    whatever may be a reward. That of the task where --prompts names one that has it."""
    split: Literal["train", "eval"] = "eval"
    """Which of --prompts: those to train on, or the held-out ones."""
    responses: int = 4
    """Samples for each of --prompts."""
    max_texts: int = 2000
    """Responses that are looked at, at most; of more, whole pairs or prompts are drawn."""
    max_prompt_tokens: int | None = None
    """Longest prompt of --prompts; longer ones lose their beginning, and how many is said."""
    max_new_tokens: int | None = None
    """Longest sample; that of the task where one is named, else 128."""
    temperature: float = 1.0
    """Temperature of sampling."""
    columns: tuple[str, ...] = ()
    """What columns of --pairs mean and their names in the file: prompt=question chosen=good."""
    skip_bad: bool = False
    """Leave rows of --pairs out that can't be used, instead of refusing the file."""

    word_lists: Path | None = None
    """Lists of words of your own: a file NAME.txt with a word or phrase a line, or a folder of
    such. hedges.txt and confidence.txt replace the bundled ones, others are features of their
    own."""
    probe_sentences: Path | None = None
    """Sentences of your own for the edits: a file padding.txt or openers.txt with a sentence a
    line, or a folder with one or both."""
    probed: int = 256
    """Responses that are edited, at most."""
    resamples: int = 2000
    """Bootstrap resamples for the intervals."""
    seed: int = 0
    """Seed of the sampling, of what is drawn of many texts, and of the bootstrap."""
    device: str = "auto"
    """Torch device."""
    json: bool = False
    """Print the result as JSON."""
    out: Path | None = None
    """Write the result as JSON into this file, or into audit.json of this folder: there, in a run's
    folder or in that of its reward model, `tokenrlhf report` finds it."""
    figure: Path | None = None
    """Draw the result into this file (.png, .pdf or .svg)."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        parse_columns(self.columns)
        for name in ("reward_model", "prompts", "reference", "gold"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(
                    f"{name}={value!r} is empty: give a name or a path, or leave it out."
                )
        if (self.pairs is None) == (self.prompts is None):
            given = "neither" if self.pairs is None else "both"
            raise ValueError(
                f"{given} of pairs and prompts is given: an audit looks at the responses of "
                "--pairs, or at samples of --reference for --prompts; name one."
            )
        if (self.columns or self.skip_bad) and self.pairs is None:
            raise ValueError(
                "columns and skip_bad are about the rows of pairs: give pairs, or leave them out."
            )
        check_figure(self.figure)
        if self.out is not None:
            check_place(self.out)
