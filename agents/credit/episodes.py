"""Responses to look at: given as text, or sampled from the policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.policy import LMActorCriticPolicy
from tokenenv.data import Prompt
from tokenenv.mdp import TokenMDP
from tokenenv.models import sample_responses
from tokenenv.rewards import Episode, episodes_of

__all__ = ["given_response", "sampled_responses"]


def given_response(
    text: str, prompt: np.ndarray, mdp: TokenMDP, origin: Prompt | None = None
) -> Episode:
    """A response that was given as text; it ends with EOS where it is shorter than T tokens.

    Args:
        text: of the response, with its spaces as the policy writes them.
        prompt: token ids.
        mdp: of the environment.
        origin: the prompt as it was given.

    Raises:
        ValueError: it is longer than T, or the tokenizer does not give it back.
    """
    language_model = mdp.language_model
    tokens = language_model.encode_response(text)
    if len(tokens) > mdp.max_new_tokens:
        raise ValueError(
            f"the response {text[:60]!r} has {len(tokens)} tokens, more than max_new_tokens="
            f"{mdp.max_new_tokens} of the run: shorten it."
        )
    stops = len(tokens) < mdp.max_new_tokens
    if stops:
        tokens = np.append(tokens, language_model.eos_token_ids[0])
    return Episode(prompt, tokens, stops, origin)


def sampled_responses(
    policy: LMActorCriticPolicy,
    mdp: TokenMDP,
    prompts: list[np.ndarray],
    seed: int,
    origins: Sequence[Prompt | None] | None = None,
) -> list[Episode]:
    """One response of the policy to each prompt.

    Args:
        policy: whose actor is sampled from.
        mdp: of the environment.
        prompts: arrays of token ids; there may be none.
        seed: of the sampling.
        origins: the prompts as they were given.
    """
    if not prompts:
        return []
    sampled = sample_responses(
        policy.actor,
        mdp.language_model.eos_token_ids,
        prompts,
        mdp.max_new_tokens,
        temperature=policy.temperature,
        seed=seed,
    )
    return episodes_of(prompts, sampled, origins)
