"""Preference pairs as token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenenv.data import PreferencePair, read_pairs
from tokenenv.models import as_turn_messages, prompt_ids, seam_differences, texts_at_the_seam
from tokenenv.rewards.reward_model import RewardModel

__all__ = ["PreferencePair", "TokenPair", "as_token_pair", "read_pairs", "seam_differences_of"]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair as the reward model reads it.

    Attributes:
        chosen: (n,) int64, prompt and response in one.
        rejected: (m,) int64.
        prompt: identifies the prompt, so that held-out prompts are really held out.
        margin: how much better the chosen one is at least.
        preference: probability that the chosen one is the better one.
        prompt_tokens: how many of the tokens are the prompt's; None: as many as both sides have in
            common.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    prompt: str
    margin: float = 0.0
    preference: float = 1.0
    prompt_tokens: int | None = None


def as_token_pair(pair: PreferencePair | TokenPair, reward_model: RewardModel) -> TokenPair:
    """The pair as `reward_model` reads it; one of tokens is left as it is.

    A response that ran out of room has no EOS, as in scoring. Conversations are rendered whole by
    the model's chat template, as scoring renders them.

    Raises:
        ValueError: it is no pair, or a conversation that the template does not take.
    """
    if isinstance(pair, TokenPair):
        return pair
    if not isinstance(pair, PreferencePair):
        raise ValueError(f"{pair!r:.80} is no pair: give PreferencePair or TokenPair objects.")
    turns = (pair.prompt, pair.chosen, pair.rejected)
    if all(isinstance(part, str) for part in turns):
        prompt = prompt_ids(reward_model.tokenizer, str(pair.prompt), reward_model.eos_token_ids)
        chosen, rejected = (
            reward_model.join(
                prompt,
                reward_model.tokenizer(str(answer), add_special_tokens=False)["input_ids"],
                stopped,
            )
            for answer, stopped in (
                (pair.chosen, pair.chosen_stopped),
                (pair.rejected, pair.rejected_stopped),
            )
        )
        return TokenPair(
            chosen, rejected, str(pair.prompt), pair.margin, pair.preference, len(prompt)
        )
    before = as_turn_messages(pair.prompt, "user")
    chosen, rejected = (
        reward_model.encode_messages([*before, *as_turn_messages(answer, "assistant")])
        for answer in (pair.chosen, pair.rejected)
    )
    key = json.dumps([dict(message) for message in before], sort_keys=True)
    return TokenPair(chosen, rejected, key, pair.margin, pair.preference)


MOST_COUNTED = 10_000
"""Pairs that `seam_differences_of` looks at: a share is known well enough from them."""


def seam_differences_of(
    pairs: Sequence[PreferencePair | TokenPair], reward_model: RewardModel
) -> tuple[int, int]:
    """How many answers have other ids when they are tokenised together with their prompt.

    Args:
        pairs: those of tokens have no seam.
        reward_model: whose tokenizer is meant.

    Returns:
        The number, and of how many; the first `MOST_COUNTED` pairs are looked at.
    """
    texts = [
        text
        for pair in pairs[:MOST_COUNTED]
        if isinstance(pair, PreferencePair)
        for text in texts_at_the_seam(reward_model.chat, pair.prompt, (pair.chosen, pair.rejected))
    ]
    eos = reward_model.eos_token_ids
    return seam_differences(reward_model.tokenizer, texts, eos), len(texts)
