"""The typed settings of the commands that read a run.

Every field's text is its `--help`. Importing this loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.runs.reward_model_config import RewardModelConfig
from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_RESPONSES,
    SEED,
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
    'module:attribute'), and send texts to the reward server that they name ('http://…'). Without it
    such a run is refused: it could run any code."""

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
    'module:attribute'), and send texts to the reward server that they name ('http://…'). Without it
    such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), {"n": COUNT, "seed": SEED})


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
    'module:attribute'), and send texts to the reward server that they name ('http://…'). Without it
    such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges({"seed": self.seed}, {"seed": SEED})
