"""The settings of `tokenrlhf best-of-n`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.settings import check_figure
from tokenenv.data import parse_columns
from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_POSITIVE_FINITE,
    OPTIONAL_WEIGHT,
    SEED,
    check_ranges,
)

__all__ = ["DEFAULT_N", "DEFAULT_PROMPTS", "DEFAULT_SAMPLES", "BestOfNConfig"]

DEFAULT_N = (1, 2, 4, 8, 16, 64)
DEFAULT_PROMPTS = 64
DEFAULT_SAMPLES = 64

_RANGES = {
    **{"samples": OPTIONAL_COUNT, "eval_prompts": OPTIONAL_COUNT, "seed": SEED},
    **{"max_prompt_tokens": OPTIONAL_COUNT, "max_new_tokens": OPTIONAL_COUNT},
    **{"kl_coef": OPTIONAL_WEIGHT, "temperature": OPTIONAL_POSITIVE_FINITE},
}

_OF_THE_ENVIRONMENT = (
    *("task", "reference", "reward_model", "reward_weights", "prompts", "prompt_truncation"),
    *("max_prompt_tokens", "max_new_tokens", "kl_coef", "temperature"),
)


@dataclass(frozen=True)
class BestOfNConfig:
    """Measure best-of-n: take the response with the highest score among n of the reference.

    It trains nothing, and is the baseline of everything that does. Shown are its E[R], KL and J
    beside those of the tilted optimum with the same KL: exactly where all responses can be
    enumerated, elsewhere by samples.
    """

    run: Path | None = None
    """Folder of a run: measure in its environment, and say where its policy stands."""
    task: str | None = None
    """Bundled task, or 'package.module:TASK'; it fills the fields that are None. Default:
    reviews."""
    reference: str | None = None
    """Folder or hub id of the frozen reference, which is sampled from."""
    reward_model: str | tuple[str, ...] | None = None
    """Folder or hub id of a reward model, 'package.module:function', or the address of a reward
    server; or several of them."""
    reward_weights: tuple[float, ...] | None = None
    """Weights of several rewards, one for each; 1 each unless given."""
    prompts: str | None = None
    """File of prompts (JSON Lines, CSV, Parquet, text, …: docs/data.md), or the name of a task."""
    prompt_truncation: Literal["error", "keep-end", "drop"] | None = None
    """What is done with prompts of more than P tokens: refuse them ('error', the default), cut
    their beginnings off (but for BOS), or leave them out."""
    columns: tuple[str, ...] = ()
    """What columns of the file of prompts mean and their names in it: prompt=question
    answer=solution; rewards ask for columns by what they mean."""
    skip_bad: bool = False
    """Go on without the rows of that file that can't be used, and say how many they are."""
    max_prompt_tokens: int | None = None
    """Longest prompt, P."""
    max_new_tokens: int | None = None
    """Longest response, T."""
    kl_coef: float | None = None
    """β that J is measured at; that of the task unless given."""
    temperature: float | None = None
    """Temperature of sampling; 1 unless given."""

    n: Annotated[tuple[int, ...] | None, tyro.conf.arg(aliases=["-n"])] = None
    """Samples that the best is taken of, one row for each. Default: 1 2 4 8 16 64, up to
    --samples."""
    samples: int | None = None
    """Estimate from so many samples of the reference for each prompt, at least the largest n.
    Default: in closed form where all responses can be enumerated, else from 64."""
    closed_form: bool = False
    """Enumerate all responses even where that takes long; refused where there are too many."""
    eval_prompts: int | None = None
    """Held-out prompts; default: those of the run, else 64."""
    seed: int = 0
    """Seed of the sampling and of the intervals."""
    json: Path | None = None
    """File to write the numbers to, as JSON."""
    figure: Path | None = None
    """File for a figure (.png, .pdf or .svg): E[R], J and gold reward against the root of the
    KL."""
    device: str | None = None
    """Torch device; default: that of the run, else 'auto'."""
    trust_code: bool = False
    """Import the code that the run's files name (reward_model, task or prompts as
    'module:attribute'), and send texts to the reward server that they name ('http://…'). Without it
    such a run is refused: it could run any code."""

    def __post_init__(self) -> None:
        """Validate the settings; those of the environment are checked when it is made."""
        check_ranges(vars(self), _RANGES)
        for n in self.n or ():
            check_ranges({"n": n}, {"n": COUNT})
        if self.n is not None and (not self.n or len(set(self.n)) < len(self.n)):
            raise ValueError(f"n={list(self.n)!r} must be one number or more, each of them once.")
        parse_columns(self.columns)
        self._check_method()
        named = [name for name in _OF_THE_ENVIRONMENT if getattr(self, name) is not None]
        named += [name for name in ("columns", "skip_bad") if getattr(self, name)]
        if self.run is not None and named:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise ValueError(
                f"--run takes the environment of the run, and {options} would change it: leave out "
                "either."
            )
        check_figure(self.figure)

    def _check_method(self) -> None:
        if self.closed_form and self.samples is not None:
            raise ValueError(
                f"samples={self.samples} estimates what closed_form would compute: leave out "
                "either."
            )
        if self.samples is not None and self.n and max(self.n) > self.samples:
            raise ValueError(
                f"n={max(self.n)} is more than samples={self.samples}: there is no best of "
                f"{max(self.n)} among them. Take --samples {max(self.n)} or more, or a smaller n."
            )

    def sizes(self, samples: int | None) -> tuple[int, ...]:
        """The values of n, in order.

        Args:
            samples: of each prompt; None: in closed form, which has no limit.

        Raises:
            ValueError: one is more than the samples.
        """
        if self.n is None:
            return tuple(n for n in DEFAULT_N if samples is None or n <= samples)
        if samples is not None and max(self.n) > samples:
            raise ValueError(
                f"n={max(self.n)} is more than the {samples} samples of each prompt, since not all "
                f"responses are enumerated here: take --samples {max(self.n)} or more, or a "
                "smaller n."
            )
        return tuple(sorted(self.n))

    def environment(self) -> dict[str, Any]:
        """The keyword arguments of the environment, where no run gives them."""
        settings = {name: getattr(self, name) for name in _OF_THE_ENVIRONMENT}
        settings = {name: value for name, value in settings.items() if value is not None}
        return {
            "task": "reviews",
            **settings,
            **{"prompt_columns": parse_columns(self.columns) or None},
            **{"skip_bad_prompts": self.skip_bad, "device": self.device or "auto"},
            # Responses are scored whole: rewards per token need no cache of the reference.
            **{"split": "eval", "scoring": "deferred"},
        }
