"""The settings of `tokenrlhf play`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenenv.ranges import OPTIONAL_COUNT, OPTIONAL_WEIGHT, SEED, check_ranges, count

__all__ = ["PlayConfig"]

_RANGES = {
    "seed": SEED,
    "top": count(high=1000),
    "max_prompt_tokens": OPTIONAL_COUNT,
    "max_new_tokens": OPTIONAL_COUNT,
    "kl_coef": OPTIONAL_WEIGHT,
}

_OF_THE_ENVIRONMENT = (
    *("task", "reference", "reward_model", "reward_weights", "uncertainty_coef", "prompts"),
    *("max_prompt_tokens", "max_new_tokens", "kl_coef"),
)


@dataclass(frozen=True)
class PlayConfig:
    """Be the policy: choose every token yourself, and see reward, KL and score.

    Each line that you type is a number of the list, words, or a command; '?' says which.
    """

    run: Path | None = None
    """Folder of a run: play in its environment, with its policy's probabilities beside the
    reference's."""
    task: str | None = None
    """Bundled task, or 'package.module:TASK'; it fills the fields that are None. Default:
    reviews."""
    reference: str | None = None
    """Folder or hub id of the frozen reference."""
    reward_model: str | tuple[str, ...] | None = None
    """Folder or hub id of a reward model, folder of an ensemble, 'package.module:function', or the
    address of a reward server; or several of them."""
    reward_weights: tuple[float, ...] | None = None
    """Weights of several rewards, one for each; 1 each unless given."""
    combine: Literal["sum", "mean", "min", "uncertainty"] | None = None
    """How several rewards become one, as in training. Default: 'sum', or 'mean' for an ensemble's
    folder."""
    uncertainty_coef: float | None = None
    """The number c of --combine uncertainty; default: 1."""
    prompts: str | None = None
    """File of prompts (JSON Lines, CSV, Parquet, text, …: docs/data.md), or the name of a task."""
    prompt: str | None = None
    """The prompt; default: drawn from the held-out prompts."""
    prompt_json: bool = False
    """Read --prompt as JSON: a list of messages for the chat template, or a row of a prompts file,
    {"prompt": …, …}, with the columns that the reward function asks for."""
    max_prompt_tokens: int | None = None
    """Longest prompt, P."""
    max_new_tokens: int | None = None
    """Longest response, T."""
    kl_coef: float | None = None
    """β, the weight of the KL penalty."""
    top: int = 8
    """Likeliest tokens that are listed."""
    seed: int = 0
    """Seed of the prompts, and of the responses that yours is compared with."""
    device: str | None = None
    """Torch device; default: that of the run, else 'auto'."""
    trust_code: bool = False
    """Import the code that the run's files name (reward_model, task or prompts as
    'module:attribute'), and send texts to the reward server that they name ('http://…'). Without it
    such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings; those of the environment are checked when it is made."""
        check_ranges(vars(self), _RANGES)
        if self.prompt_json and self.prompt is None:
            raise ValueError(
                "--prompt-json says how to read --prompt, which is not there: give it."
            )
        names = (*_OF_THE_ENVIRONMENT, "combine")
        named = [name for name in names if getattr(self, name) is not None]
        if self.run is not None and named:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise ValueError(
                f"--run takes the environment of the run, and {options} would change it: leave out "
                "either."
            )

    def environment(self) -> dict[str, Any]:
        """The keyword arguments of the environment, where no run gives them."""
        settings = {name: getattr(self, name) for name in _OF_THE_ENVIRONMENT}
        settings["task"] = self.task or "reviews"
        return {
            **settings,
            "reward_combine": self.combine,
            "split": "eval",
            "device": self.device or "auto",
        }
