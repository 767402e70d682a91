"""Log-probabilities of tokens and of whole responses, without ever padding on the left.

The logits at position i score token i + 1. One temperature divides the logits everywhere: in
sampling, in the scored log-probabilities and in the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tokenenv.models.forward import output_logits
from tokenenv.models.packing import MICRO_BATCH_TOKENS, hidden_states, pack, token_batches

__all__ = [
    "GPU_FACTOR",
    "LOGITS_AT_ONCE",
    "NonFiniteNumbers",
    "log_softmax",
    "refuse_nan",
    "response_log_probs",
    "rows_at_once",
    "sample_tokens",
    "tempered_logits",
    "token_log_probs",
]

LOGITS_AT_ONCE = 2**22
"""Logits in memory at once without a gradient: 16 MiB of float32; on a GPU `GPU_FACTOR` times as
many."""

GPU_FACTOR = 16
"""Factor for GPUs, which have the memory, and for which starting work costs more."""


BLOCK = 64
"""Tokens whose probabilities are added up before one of them is drawn."""


def rows_at_once(device: torch.device, vocabulary: int) -> int:
    """Rows of `vocabulary` logits that may live at once on `device`, without gradient."""
    return max(1, LOGITS_AT_ONCE * (GPU_FACTOR if device.type == "cuda" else 1) // vocabulary)


def tempered_logits(model: Any, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """(…, V) logits of (…, h) hidden states, float32 at least, divided by the temperature."""
    logits = output_logits(model, hidden)
    return logits if temperature == 1.0 else logits / temperature


def log_softmax(model: Any, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n, V) log-probabilities, float32 at least, of the next token at (n, h) hidden states."""
    return torch.log_softmax(tempered_logits(model, hidden, temperature), dim=-1)


def token_log_probs(
    model: Any, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(n,) log π(token | state) for (n, h) hidden states of the states and (n,) tokens.

    For use without gradient: never more than `LOGITS_AT_ONCE` logits live at a time.
    """
    size = rows_at_once(hidden.device, model.get_output_embeddings().weight.shape[0])
    parts = []
    for states, actions in zip(hidden.split(size), tokens.split(size), strict=True):
        logits = tempered_logits(model, states, temperature)  # (m, V), m ≤ size
        token_logits = logits.gather(-1, actions[:, None]).squeeze(-1)  # (m, V) → (m, 1) → (m,)
        parts.append(token_logits - torch.logsumexp(logits, dim=-1))  # (m,)
    return torch.cat(parts) if len(parts) > 1 else parts[0]  # (n,)


def sample_tokens(
    log_probs: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row of (n, V) log-probabilities: (n,) tokens and their log-probabilities.

    By inversion, with one random number per row and not one per token of the vocabulary, as
    `torch.multinomial` takes: the first token at which the cumulative probability exceeds a uniform
    number of [0, 1). The search takes two steps, the block of `BLOCK` tokens and the token in it,
    so that rounding is relative to the probability of a token; probability 0 is never drawn.
    """
    largest = log_probs.shape[1] - 1  # V − 1, the largest token id
    probabilities = log_probs.exp()  # (n, V)
    blocks = _block_sums(probabilities).double().cumsum(dim=-1)  # (n, ⌈V/BLOCK⌉)
    uniform = torch.rand(
        (len(log_probs), 1), dtype=torch.float64, device=log_probs.device, generator=generator
    )  # (n, 1)
    uniform = uniform * blocks[:, -1:]  # (n, 1)
    block = torch.searchsorted(blocks, uniform, right=True)  # (n, 1), index of a block
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)  # (n, 1)
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)  # (n, BLOCK), token ids
    is_token = tokens <= largest  # (n, BLOCK)
    in_block = probabilities.gather(-1, tokens.clamp(max=largest)) * is_token  # (n, BLOCK)
    cumulative = in_block.double().cumsum(dim=-1)  # (n, BLOCK)
    position = torch.searchsorted(cumulative, uniform - before, right=True)  # (n, 1), in the block
    # The two sums of a block may differ by rounding: stop at the last token that adds to it.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())  # (n, 1)
    sampled = block * BLOCK + torch.minimum(position, last)  # (n, 1), token ids
    # Only NaN leads beyond V − 1: it shows in the log-probability, but the index would stop a GPU.
    sampled = sampled.clamp(max=largest)
    return sampled.squeeze(-1), log_probs.gather(-1, sampled).squeeze(-1)  # (n,), (n,)


def _block_sums(probabilities: torch.Tensor) -> torch.Tensor:
    """(n, ⌈V/BLOCK⌉) sums of (n, V) over blocks of tokens."""
    whole = probabilities.shape[1] // BLOCK * BLOCK  # tokens in full blocks
    sums = None
    if whole:  # (n, whole) → (n, whole/BLOCK, BLOCK) → (n, whole/BLOCK)
        sums = probabilities[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=-1)
    if whole == probabilities.shape[1]:
        assert sums is not None
        return sums
    rest = probabilities[:, whole:].sum(dim=-1, keepdim=True)  # (n, 1)
    return rest if sums is None else torch.cat([sums, rest], dim=-1)  # (n, ⌈V/BLOCK⌉)


class NonFiniteNumbers(ValueError):
    """Numbers that follow from a model's weights are NaN or infinite."""


def refuse_nan(log_probs: torch.Tensor, whose: str) -> None:
    """Raise NonFiniteNumbers where the log-probabilities of sampled tokens, on the host, are NaN.

    Args:
        log_probs: (n,).
        whose: which model's, for the message.
    """
    if bool(torch.isnan(log_probs).any()):
        raise NonFiniteNumbers(
            f"the logits of {whose} are NaN: its weights have diverged. Go back to an earlier "
            "checkpoint, and train with a lower learning_rate or max_grad_norm."
        )


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
    log_probs = [np.zeros(len(response)) for response in responses]
    # The last response token is scored but never read, so it is left out of the forward.
    lengths = np.array(
        [len(p) + max(0, len(r) - 1) for p, r in zip(prompts, responses, strict=True)]
    )
    for batch in token_batches(lengths, max_tokens):
        actions = [responses[i] for i in batch]
        packed = pack([prompts[i] for i in batch], actions, model.device)
        tokens = torch.as_tensor(np.concatenate(actions), device=model.device)  # (n,)
        hidden = hidden_states(model, packed)  # (n, h)
        packed_log_probs = token_log_probs(model, hidden, tokens, temperature)  # (n,)
        bounds = np.cumsum([len(a) for a in actions])[:-1]
        parts = np.split(packed_log_probs.double().cpu().numpy(), bounds)
        for i, response_part in zip(batch, parts, strict=True):
            log_probs[i] = response_part
    return log_probs
