"""What a reward model says of responses that the reference samples itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenenv.models import LanguageModel, sample_responses
from tokenenv.rewards.pair_forward import common_length
from tokenenv.rewards.pairs import TokenPair
from tokenenv.rewards.reward_model import RewardModel

__all__ = ["check_shared_tokenizer", "reference_rewards"]

LONGEST = 95
"""Percentile of the pairs' response lengths that a sampled response has at most."""


def check_shared_tokenizer(reward_model: RewardModel, reference: LanguageModel) -> None:
    """Raise ValueError where the two have different tokenizers."""
    vocabulary = reference.model.get_output_embeddings().weight.shape[0]
    if not reward_model.shares_tokenizer(reference.tokenizer, vocabulary):
        raise ValueError(
            f"reference={reference.name!r} and the base have different tokenizers, so that its "
            "samples can't be scored token by token: name the model that the base was made from, "
            "or leave it out."
        )


def reference_rewards(
    reward_models: Sequence[RewardModel],
    reference: LanguageModel,
    pairs: Sequence[TokenPair],
    samples: int,
    seed: int = 0,
) -> np.ndarray:
    """(n,) mean normalised rewards of a reference's responses to the prompts of pairs.

    Each prompt is answered once; responses are as long as 95 % of those in the pairs at most, and
    without EOS where they run out of room, as in episodes. Prompts that leave no room are left out.

    Args:
        reward_models: one, or the members of an ensemble, with one tokenizer.
        reference: a causal LM that shares it.
        pairs: some.
        samples: responses at most.
        seed: of the sampling.

    Raises:
        ValueError: the tokenizers differ.
    """
    first = reward_models[0]
    check_shared_tokenizer(first, reference)
    starts = [
        common_length(pair) if pair.prompt_tokens is None else pair.prompt_tokens for pair in pairs
    ]
    sizes = [
        len(side) - start
        for pair, start in zip(pairs, starts, strict=True)
        for side in (pair.chosen, pair.rejected)
    ]
    longest = max(1, int(np.percentile(sizes, LONGEST))) if sizes else 1
    positions = getattr(reference.model.config, "max_position_embeddings", None)
    room = min(first.max_tokens, first.max_tokens if positions is None else int(positions))
    prompts: dict[bytes, np.ndarray] = {}
    for pair, start in zip(pairs, starts, strict=True):
        if 0 < start <= room - longest:
            prompts.setdefault(pair.chosen[:start].tobytes(), pair.chosen[:start])
    asked = list(prompts.values())[:samples]
    if not asked:
        return np.zeros(0)
    responses = sample_responses(
        reference.model, reference.eos_token_ids, asked, longest, seed=seed
    )
    sequences = [
        first.join(prompt, response.tokens, response.stopped)
        for prompt, response in zip(asked, responses, strict=True)
    ]
    return np.mean(
        [model.normalize(model.raw_rewards(sequences)) for model in reward_models], axis=0
    )
