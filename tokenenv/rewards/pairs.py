"""Preference pairs as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenenv.data import PreferencePair, read_pairs
from tokenenv.rewards.reward_model import RewardModel

__all__ = ["PreferencePair", "TokenPair", "as_token_pair", "read_pairs"]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair as the reward model reads it.

    Attributes:
        chosen: (n,) int64, prompt and response in one.
        rejected: (m,) int64.
        prompt: identifies the prompt, so that held-out prompts are really held out.
        margin: how much better the chosen one is at least.
        preference: probability that the chosen one is the better one.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    prompt: str
    margin: float = 0.0
    preference: float = 1.0


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
        pair.preference,
    )
