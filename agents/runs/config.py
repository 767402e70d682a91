"""The typed settings of the commands that read a run, and of `tokenrlhf reward-model`.

Every field's text is its `--help`. Importing this loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tokenenv.data import parse_columns
from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_RESPONSES,
    SEED,
    WEIGHT,
    check_ranges,
)

__all__ = ["EvaluateConfig", "ExplainConfig", "RewardModelConfig", "SampleConfig"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a run again on held-out prompts: J, the bound on J*, KL, score, gold reward."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    seed: int = 1
    """Seed of the sampling."""
    eval_prompts: int | None = None
    """Held-out prompts; as in the run unless given."""
    eval_responses: int | None = None
    """Responses for each; as the run was asked for unless given, and 256 where it was not."""
    trust_code: bool = False
    """Import the code that the run's files name (reward_model, task or prompts as
    'module:attribute'). Without it such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        ranges = {"eval_prompts": OPTIONAL_COUNT, "eval_responses": OPTIONAL_RESPONSES}
        check_ranges(vars(self), {"seed": SEED, **ranges})


@dataclass(frozen=True)
class SampleConfig:
    """Sample responses to a prompt from a run's policy, and from the reference."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    prompt: str
    """The prompt."""
    prompt_json: bool = False
    """Read --prompt as JSON: a list of messages for the chat template, or a row of a prompts file,
    {"prompt": …, …}, with the columns that the reward function asks for."""
    n: int = 3
    """Responses of each."""
    greedy: bool = False
    """Take the most likely token instead of sampling."""
    seed: int = 0
    """Seed of the sampling."""
    trust_code: bool = False
    """Import the code that the run's files name (reward_model, task or prompts as
    'module:attribute'). Without it such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), {"n": COUNT, "seed": SEED})


@dataclass(frozen=True)
class RewardModelConfig:
    """Train a reward model on preference pairs."""

    pairs: Path
    """File of pairs: JSON Lines, JSON, CSV, TSV or Parquet, packed by gzip or not; a folder of
    datasets; or a hub id. Its rows hold chosen and rejected, with a prompt or as whole dialogues;
    response_a, response_b and a label; or responses and their ratings (docs/data.md)."""
    base: str
    """Task name, folder or hub id of the model to start from: a causal LM or a classifier."""
    out: Path
    """Folder to write it to."""
    overwrite: bool = False
    """Write into a folder that exists already."""
    epochs: int = 2
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per step."""
    learning_rate: float = 3e-4
    """AdamW's peak, with warm-up and linear decay."""
    centering_coef: float = 0.0
    """Weight of the loss term that keeps rewards near 0."""
    eval_fraction: float = 0.1
    """Share of the prompts held out to choose the weights by."""
    report_fraction: float = 0.1
    """Share of the prompts held out for the report alone; 0: it is made on those of the choice."""
    columns: tuple[str, ...] = ()
    """What columns mean and their names in the file: prompt=question chosen=good."""
    skip_bad: bool = False
    """Go on without the rows that can't be used, and say how many they are."""
    ratings: Literal["all", "best-worst"] = "all"
    """Where several responses to a prompt have ratings: all pairs of them, or the best against the
    worst."""
    max_tokens: int | None = None
    """Tokens that a prompt and a response have room for together; default: the limit of the
    model."""
    truncation: Literal["keep-end", "drop", "error"] = "keep-end"
    """What is done with longer pairs: the prompt loses its beginning, and a response its end where
    it does not fit by itself; they are left out; or they are refused."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of head, split and order."""

    def __post_init__(self) -> None:
        """Validate the settings that `RewardTrainingSettings` does not."""
        parse_columns(self.columns)
        ranges = {"max_tokens": OPTIONAL_COUNT, "centering_coef": WEIGHT, "seed": SEED}
        check_ranges(vars(self), ranges)


@dataclass(frozen=True)
class ExplainConfig:
    """Show which token of a response got which update, and why: the token table.

    Numbers are those of the run's policy as it is saved; the response was in no update.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    prompt: str
    """The prompt."""
    prompt_json: bool = False
    """Read --prompt as JSON: a list of messages for the chat template, or a row of a prompts file,
    {"prompt": …, …}, with the columns that the reward function asks for."""
    response: str | None = None
    """The response; sampled from the policy unless given. It ends with EOS where it is shorter than
    the longest response."""
    exact: bool = False
    """Compute the strength over all trainable parameters too, not in the output layer alone."""
    json: bool = False
    """Print the table as JSON."""
    seed: int = 0
    """Seed of the sampling."""
    trust_code: bool = False
    """Import the code that the run's files name (reward_model, task or prompts as
    'module:attribute'). Without it such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges({"seed": self.seed}, {"seed": SEED})
