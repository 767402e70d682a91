"""Sampling from a causal LM outside an environment, with slots refilled as responses end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import EpisodeBatch
from tokenenv.models.cache_check import check_cached_step
from tokenenv.models.log_probs import log_softmax, refuse_nan, sample_tokens
from tokenenv.models.slot_decoder import SlotDecoder

__all__ = ["SampledResponse", "sample_responses"]


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """A response with the log-probabilities it was sampled with.

    Attributes:
        tokens: (n,) int64, EOS included where it was sampled.
        log_probs: (n,) float64.
        stopped: whether it ended with EOS, rather than by its length.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    stopped: bool


@torch.no_grad()
def sample_responses(
    model: Any,
    eos_token_ids: Sequence[int],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
    num_slots: int = 256,
    on_finished: Callable[[int], None] | None = None,
) -> list[SampledResponse]:
    """One response for each prompt.

    Args:
        model: a causal LM in eval mode.
        eos_token_ids: the ids that end a response.
        prompts: B arrays of token ids.
        max_new_tokens: the longest response.
        temperature: divides the logits, here and in the returned log-probabilities.
        greedy: take the most likely token instead of sampling.
        seed: of the sampling; None draws from torch's global generator.
        num_slots: responses that are sampled side by side.
        on_finished: called with the number of responses finished so far.

    Returns:
        B responses, in the order of the prompts.

    Raises:
        ValueError: the model can't be decoded token by token.
    """
    slots = max(1, min(num_slots, len(prompts)))
    longest = max((len(p) for p in prompts), default=1)
    vocabulary_size = model.get_output_embeddings().weight.shape[0]
    episodes = EpisodeBatch(slots, longest, max_new_tokens, vocabulary_size, eos_token_ids)
    check_cached_step(model, longest, max_new_tokens, "model to sample from")
    decoder = SlotDecoder(model, slots, longest + max_new_tokens)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    log_probs = np.zeros((slots, max_new_tokens))
    results: list[SampledResponse | None] = [None] * len(prompts)
    serving = np.arange(slots)
    started, finished = min(slots, len(prompts)), 0
    for slot in range(started):
        episodes.start(slot, prompts[slot])
    while episodes.running.any():
        distribution = log_softmax(model, decoder.hidden_states(episodes.observations), temperature)
        tokens, token_log_probs = _draw(distribution, greedy, generator)
        rows = np.flatnonzero(episodes.running)
        log_probs[rows, episodes.response_lengths[rows]] = token_log_probs[rows]
        for slot in rows[episodes.append(tokens, rows)]:
            results[serving[slot]] = _finished(episodes, slot, log_probs[slot])
            finished += 1
            if on_finished is not None:
                on_finished(finished)
            if started < len(prompts):
                serving[slot] = started
                episodes.start(slot, prompts[started])
                started += 1
    return [result for result in results if result is not None]


def _draw(
    log_probs: torch.Tensor, greedy: bool, generator: torch.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) tokens of (N, V) log-probabilities, the likeliest or drawn, and (N,) their own.

    Raises:
        ValueError: one is NaN.
    """
    if greedy:
        token_log_probs, tokens = log_probs.max(dim=-1)
    else:
        tokens, token_log_probs = sample_tokens(log_probs, generator)
    token_log_probs = token_log_probs.cpu()
    refuse_nan(token_log_probs, "the model to sample from")
    return tokens.cpu().numpy(), token_log_probs.numpy()


def _finished(episodes: EpisodeBatch, slot: int, log_probs: np.ndarray) -> SampledResponse:
    """The response that has ended in a slot, from the (T,) log-probabilities of its tokens."""
    length = episodes.response_lengths[slot]
    stopped = bool(episodes.stopped[slot])
    return SampledResponse(episodes.response(slot), log_probs[:length].copy(), stopped)
