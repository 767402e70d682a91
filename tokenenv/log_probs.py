"""Log-probabilities of tokens and of whole responses, without ever padding on the left.

The logits at position i score token i + 1. One temperature divides the logits everywhere: in
sampling, in the scored log-probabilities and in the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tokenenv.language_model import output_logits, pad_right, trunk_hidden_states

__all__ = ["log_softmax", "micro_batches", "response_log_probs", "sample_tokens", "token_log_probs"]

MICRO_BATCH_TOKENS = 8192
"""Tokens, padding included, that one no-gradient forward takes at most."""


def log_softmax(model: Any, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n, V) log-probabilities, float32 at least, of the next token at (n, h) hidden states."""
    return torch.log_softmax(output_logits(model, hidden) / temperature, dim=-1)


def token_log_probs(
    model: Any, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(n,) log π(token | state) for (n, h) hidden states of the states and (n,) tokens."""
    logits = output_logits(model, hidden) / temperature
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


def sample_tokens(
    log_probs: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row of (n, V) log-probabilities: (n,) tokens and their log-probabilities."""
    tokens = torch.multinomial(log_probs.exp(), 1, generator=generator)
    return tokens.squeeze(-1), log_probs.gather(-1, tokens).squeeze(-1)


def micro_batches(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Index arrays over all sequences, longest first, each of ≤ `max_tokens` padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


@torch.no_grad()
def response_log_probs(
    model: Any,
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    temperature: float,
    max_tokens: int = MICRO_BATCH_TOKENS,
) -> list[np.ndarray]:
    """Log π(a_t | s_t) of every response token, by full forwards over length-sorted batches.

    Args:
        model: a causal LM.
        prompts: B arrays of token ids.
        responses: B arrays of token ids; an empty one yields an empty array.
        temperature: divides the logits.
        max_tokens: padded tokens per forward.

    Returns:
        B float64 arrays, as long as the responses.
    """
    results = [np.zeros(len(response)) for response in responses]
    # The last response token is scored but never read, so it need not be fed.
    fed = [np.concatenate([p, r[:-1]]) for p, r in zip(prompts, responses, strict=True)]
    lengths = np.array([len(sequence) for sequence in fed])
    device = model.device
    for batch in micro_batches(lengths, max_tokens):
        tokens, _ = pad_right([fed[i] for i in batch])
        hidden = trunk_hidden_states(model, torch.as_tensor(tokens, device=device))
        sizes = [len(responses[i]) for i in batch]
        rows = np.repeat(np.arange(len(batch)), sizes)
        columns = np.concatenate(
            [len(prompts[i]) - 1 + np.arange(n) for i, n in zip(batch, sizes, strict=True)]
        )
        picked = hidden[
            torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)
        ]
        targets = torch.as_tensor(np.concatenate([responses[i] for i in batch]), device=device)
        found = token_log_probs(model, picked, targets, temperature).double().cpu().numpy()
        for i, values in zip(batch, np.split(found, np.cumsum(sizes)[:-1]), strict=True):
            results[i] = values
    return results
