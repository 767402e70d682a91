"""The loss of supervised fine-tuning, and the forward passes that it is computed in.

Examples are packed as `tokenenv.models.pack` does: whole sequences in rows of their own, of like
length, so that none attends to another, with any architecture, and little is padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from agents.policy import score_tokens
from agents.ppo import computing_in
from agents.sft.encoding import TokenExample
from tokenenv.models import hidden_states, pack, response_log_probs

__all__ = ["FEW_TOKENS", "held_out_loss", "micro_batches", "token_losses"]

LIKE = 0.8
"""Share of the longest example's tokens that the others of its forward pass have at least, so that
little is padding, where the pass has `FEW_TOKENS` without them."""

FEW_TOKENS = 256
"""Tokens below which a forward pass is not worth its overhead; on a GPU `GPU_FACTOR` times as
many."""


def token_losses(model: Any, examples: Sequence[TokenExample]) -> torch.Tensor:
    """(n,) −log π of every learned token of some examples, in their order, with gradient."""
    targets = [example.targets for example in examples]
    packed = pack([example.prefix for example in examples], targets, model.device)
    actions = torch.as_tensor(np.concatenate(targets), dtype=torch.int64, device=model.device)
    hidden = hidden_states(model, packed)  # (n, h)
    log_probs, _ = score_tokens(model, hidden, actions, 1.0, entropy_needs_gradient=False)
    return -log_probs  # (n,)


def held_out_loss(
    model: Any, examples: Sequence[TokenExample], max_tokens: int, precision: str = "float32"
) -> float:
    """Mean −log π per learned token, in nats; NaN without examples.

    Args:
        model: a causal LM.
        examples: what is measured.
        max_tokens: of one forward pass, padding included.
        precision: as `SFTSettings.precision`.
    """
    if not examples:
        return math.nan
    with computing_in(precision, model.device):
        log_probs = response_log_probs(
            model,
            [example.prefix for example in examples],
            [example.targets for example in examples],
            1.0,
            max_tokens,
        )
    return -float(np.concatenate(log_probs).mean())


def micro_batches(lengths: np.ndarray, max_tokens: int, few_tokens: int) -> Iterator[np.ndarray]:
    """Index arrays over all sequences, the longest first, of at most `max_tokens` padded tokens.

    Args:
        lengths: (S,) tokens per sequence.
        max_tokens: a single longer sequence is a batch by itself.
        few_tokens: see `FEW_TOKENS`.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + max(1, max_tokens // max(1, longest))
        enough = start + -(-few_tokens // max(1, longest))
        like = start + int(np.count_nonzero(lengths[order[start:]] >= LIKE * longest))
        end = min(end, max(enough, like))
        yield order[start:end]
        start = end
