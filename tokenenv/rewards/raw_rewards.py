"""Finished episodes in, raw rewards out: what every source of rewards takes and gives.

Rewards end up in float32: one beyond its range would be infinite there, and the weights NaN after
the first update. So it is refused here, like one that is not finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tokenenv.data import Prompt

__all__ = [
    "MAX_REWARD",
    "Episode",
    "NonFiniteReward",
    "RawRewards",
    "RewardSource",
    "check_rewards",
    "episodes_of",
]

MAX_REWARD = float(np.finfo(np.float32).max)
"""The greatest absolute value of a reward."""


class NonFiniteReward(ValueError):
    """A reward is NaN or infinite."""


def check_rewards(values: np.ndarray, said: str, where: Callable[[int], str]) -> None:
    """Refuse rewards that float32 can't hold.

    Args:
        values: (B,) rewards.
        said: the source, such as "f returned"; begins the message.
        where: index → the place of the reward, for the message.

    Raises:
        NonFiniteReward: one is NaN or infinite.
        ValueError: one is beyond ±`MAX_REWARD`.
    """
    is_good = np.abs(values) <= MAX_REWARD
    if is_good.all():
        return
    index = int(np.flatnonzero(~is_good)[0])
    value = float(values[index])
    if not math.isfinite(value):
        raise NonFiniteReward(f"{said} {value} for {where(index)}; a reward must be finite.")
    raise ValueError(
        f"{said} {value:.4g} for {where(index)}; a reward must lie within ±{MAX_REWARD:.2e}, the "
        "range of float32, in which advantages and losses are computed: scale it."
    )


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and a response, finished or not.

    Attributes:
        prompt: (n,) int64 token ids.
        response: (m,) int64 token ids, EOS included.
        stopped: whether the response ended with EOS.
        origin: the prompt as it was given, with its messages and the columns beside it; None where
            it was a text and nothing else.
    """

    prompt: np.ndarray
    response: np.ndarray
    stopped: bool
    origin: Prompt | None = None

    @property
    def prompt_key(self) -> tuple[bytes, str]:
        """The same for two episodes only if they answer one prompt: equal ids, equal columns."""
        columns = self.origin.columns if self.origin else {}
        return self.prompt.tobytes(), json.dumps(columns, sort_keys=True, default=repr)


def episodes_of(
    prompts: Sequence[np.ndarray],
    responses: Sequence[Any],
    origins: Sequence[Prompt | None] | None = None,
) -> list[Episode]:
    """B episodes of prompts and sampled responses.

    Args:
        prompts: B arrays of token ids.
        responses: B `tokenenv.models.SampledResponse`s.
        origins: B prompts as they were given; None: texts.
    """
    sources = [None] * len(prompts) if origins is None else origins
    return [
        Episode(prompt, response.tokens, response.stopped, origin)
        for prompt, response, origin in zip(prompts, responses, sources, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class RawRewards:
    """Rewards of B finished episodes, from a source.

    Attributes:
        raw: (B,) float64 as the source gave them (summed where they are per token).
        normalized: (B,) float64 after the reward model's normalisation; raw, for a function.
        per_token: B float64 arrays as long as the responses, or None.
        parts: of several rewards, each one's raw numbers by its name, (B,); NaN where it said that
            it does not apply.
        disagreement: (B,) of several reward models, the standard deviation over them of their
            normalised rewards; None where there are fewer than two.
    """

    raw: np.ndarray
    normalized: np.ndarray
    per_token: list[np.ndarray] | None = None
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    disagreement: np.ndarray | None = None


class RewardSource(Protocol):
    """Finished episodes in, raw rewards out."""

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`, in their order."""
        ...

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Raise ValueError where a prompt can't be rewarded, before there is an episode."""
        ...
