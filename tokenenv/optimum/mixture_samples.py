"""Responses of a policy and as many of the reference, with what a bound on J* needs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenenv.data import Prompt
from tokenenv.models import SampledResponse, response_log_probs, sample_responses
from tokenenv.rewards import EpisodeScorer, episodes_of

__all__ = ["MixtureSamples", "sample_mixture"]


@dataclass(frozen=True)
class MixtureSamples:
    """Responses of the actor (index 0 of the first axis) and of the reference (index 1).

    Attributes:
        log_probs: (2, X, n) log π(y|x).
        ref_log_probs: (2, X, n) log π_ref(y|x).
        scores: (2, X, n) R(x, y).
        gold_rewards: (2, X, n), or None.
        lengths: (2, X, n) tokens.
        stopped: (2, X, n) whether the response ended with EOS.
    """

    log_probs: np.ndarray
    ref_log_probs: np.ndarray
    scores: np.ndarray
    gold_rewards: np.ndarray | None
    lengths: np.ndarray
    stopped: np.ndarray

    @property
    def log_ratios(self) -> np.ndarray:
        """(X, 2n) log π_ref − log q with q = ½π + ½π_ref; just 0 where π = π_ref."""
        moved = self.log_probs - self.ref_log_probs
        return np.concatenate(list(np.log(2.0) - np.logaddexp(0.0, moved)), axis=-1)

    def log_weights(self, kl_coef: float) -> np.ndarray:
        """(X, 2n) R/β + log π_ref − log q."""
        return np.concatenate(list(self.scores), axis=-1) / kl_coef + self.log_ratios


def sample_mixture(
    actor: Any,
    scorer: EpisodeScorer,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    responses_per_prompt: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    origins: Sequence[Prompt | None] | None = None,
) -> MixtureSamples:
    """Sample half of the responses from `actor` and half from the reference, and score them all.

    Args:
        actor: a causal LM over the reference's vocabulary.
        scorer: of the environment; its temperature is used throughout.
        prompts: X arrays of token ids.
        max_new_tokens: T.
        responses_per_prompt: of both kinds together.
        seed: of the sampling.
        on_progress: called with (responses done, all).
        origins: X prompts as they were given, where the reward asks for messages or columns.
    """
    n = responses_per_prompt // 2
    repeated = [prompt for prompt in prompts for _ in range(n)]
    shape = (2, len(prompts), n)
    sampled = _responses_of_both(actor, scorer, repeated, max_new_tokens, seed, on_progress)
    of_prompts = [None] * len(prompts) if origins is None else origins
    repeated_origins = [origin for origin in of_prompts for _ in range(n)]
    episodes = episodes_of(repeated * 2, sampled, repeated_origins * 2)
    scores = scorer.score(episodes)
    responses = [e.response for e in episodes]
    log_probs = response_log_probs(actor, repeated * 2, responses, scorer.reference.temperature)
    ref_log_probs = scorer.ref_log_probs(episodes)

    def stack(values: Any) -> np.ndarray:
        return np.array(values).reshape(shape)

    return MixtureSamples(
        stack([per_token.sum() for per_token in log_probs]),
        stack([per_token.sum() for per_token in ref_log_probs]),
        stack(scores.score),
        None if scores.gold_reward is None else stack(scores.gold_reward),
        stack([len(response) for response in responses]),
        stack([e.stopped for e in episodes]),
    )


def _responses_of_both(
    actor: Any,
    scorer: EpisodeScorer,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[SampledResponse]:
    """A response of the actor to each prompt, then one of the reference to each."""
    reference = scorer.reference
    models = (actor, reference.language_model.model)
    sampled: list[SampledResponse] = []
    for index, model in enumerate(models):
        done = index * len(prompts)
        sampled += sample_responses(
            model,
            reference.language_model.eos_token_ids,
            prompts,
            max_new_tokens,
            temperature=reference.temperature,
            seed=seed + index,
            on_finished=None
            if on_progress is None
            else lambda k, d=done: on_progress(d + k, 2 * len(prompts)),  # type: ignore[misc]
        )
    return sampled
