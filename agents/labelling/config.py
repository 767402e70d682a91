"""The settings of `tokenrlhf sample-pairs`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    POSITIVE_FINITE,
    SEED,
    WEIGHT,
    check_ranges,
)

__all__ = ["LabelsAskConfig", "SamplePairsConfig"]

_RANGES = {
    **{"n": COUNT, "seed": SEED, "temperature": POSITIVE_FINITE, "label_noise": WEIGHT},
    **dict.fromkeys(("max_prompts", "max_prompt_tokens", "max_new_tokens"), OPTIONAL_COUNT),
}


@dataclass(frozen=True)
class SamplePairsConfig:
    """Draw pairs of a model's responses, and label which one is better: what reward-model reads.

    Where the file is there already, what is missing in it is drawn and labelled: a command that was
    stopped goes on, and pairs can be drawn now and labelled later.
    """

    model: str
    """Task name, folder or hub id of the causal LM that responds; for instance policy/ of a run."""
    prompts: str
    """File of prompts, or the name of a task."""
    out: Path
    """File to write, JSON Lines of {"prompt", "response_a", "response_b", "label", …}."""
    overwrite: bool = False
    """Replace a file that is there, instead of going on with it."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Pairs for each prompt."""
    split: Literal["train", "eval"] = "train"
    """Which prompts: those to train on, or the held-out ones."""
    max_prompts: int | None = None
    """The first so many prompts alone."""
    max_prompt_tokens: int | None = None
    """Longest prompt, P; longer ones lose their beginning, and how many is said."""
    max_new_tokens: int | None = None
    """Longest response, T; that of the task where one is named, else 128."""
    temperature: float = 1.0
    """Temperature of sampling."""
    seed: int = 0
    """Seed of the sampling, of noisy labels and of the order on the screen."""

    reward: str | None = None
    """Label by a reward: 'package.module:function', 'file.py:function', the folder or hub id of a
    reward model, or a task's name. The response with the higher one is better; equal is a tie."""
    label_noise: float = 0.0
    """Temperature τ of labels drawn from the rewards r, as people differ: a is better with the
    probability 1 / (1 + exp(-(r_a - r_b) / τ)). 0: the higher reward always is."""
    labels: Path | None = None
    """Label by a file in which people have filled in the column 'label' (a, b or tie) of the pairs
    of --out; of any format that is read, CSV for instance."""
    ask: bool = False
    """Label by asking: shows the two responses in random order and reads a, b, t (tie), s (skip),
    u (undo) or q (quit). Every answer is in the file at once."""
    device: str = "auto"
    """Torch device."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        for name in ("model", "prompts", "reward"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(
                    f"{name}={value!r} is empty: give a name or a path, or leave it out."
                )
        named = [name for name in ("reward", "labels", "ask") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(
                f"{' and '.join(named)} are two sources of labels: give one of reward, labels and "
                "ask, or none for pairs without labels."
            )
        if self.label_noise and self.reward is None:
            raise ValueError(
                f"label_noise={self.label_noise} is for labels from rewards: give a reward, or "
                "leave it out."
            )


@dataclass(frozen=True)
class LabelsAskConfig:
    """Ask at the terminal which response is better, for the pairs of a file that have no label.

    Such files are written by sample-pairs, labels select, and train --refresh-labels people, which
    waits for the answers. Every answer is in the file at once.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """File of pairs, JSON Lines of {"prompt", "response_a", "response_b", "label", …}."""
    seed: int = 0
    """Seed of the order in which the two responses are shown."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges({"seed": self.seed}, {"seed": SEED})
