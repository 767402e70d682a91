"""Rewards of preference pairs, both responses in one forward, and which pairs go together.

The responses of a pair have a prompt in common, most of the tokens in a dialogue. Where the model
allows it a pair is one row, [prompt, chosen, rejected]: the rejected response sees the prompt and
itself, and has the positions that it would have behind the prompt. So the prompt is computed once.
Whether the model computes the same is tried on its own pairs; where not, or where prompts are
short, each side is a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenenv.memory import is_out_of_memory
from tokenenv.models import computing_in, pad_right
from tokenenv.rewards.pairs import TokenPair
from tokenenv.rewards.reward_model import sequence_rewards

__all__ = [
    "can_share_prompts",
    "length_batches",
    "micro_batches",
    "pair_rewards",
    "rewards_of_pairs",
]

WORTH_SHARING = 0.25
"""Share of all tokens that a shared row saves at least: its attention is over a longer row."""

TOLERANCE = 1e-3
"""Of the hidden states in shared rows, relative to their largest number."""


def common_length(pair: TokenPair) -> int:
    """Tokens that both sides begin with, without the last one of the shorter side."""
    size = min(len(pair.chosen), len(pair.rejected)) - 1
    differs = np.flatnonzero(pair.chosen[:size] != pair.rejected[:size])
    return int(differs[0]) if len(differs) else size


def pair_rewards(
    model: Any, pairs: Sequence[TokenPair], may_share: bool, precision: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) float32 rewards of the chosen and of the rejected responses, with gradient where on.

    Args:
        model: a transformers classifier with one output.
        pairs: B of them.
        may_share: what `can_share_prompts` says.
        precision: `"float32"` or `"bfloat16"`, of the trunk.
    """
    if may_share:
        common = np.array([common_length(pair) for pair in pairs])
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        if common.sum() >= WORTH_SHARING * tokens:
            with computing_in(precision, model.device):
                hidden = _shared_hidden_states(model, pairs, common)
            rewards = model.score(hidden if precision == "float32" else hidden.float()).squeeze(-1)
            rewards = rewards if rewards.dtype == torch.float64 else rewards.float()
            return rewards[: len(pairs)], rewards[len(pairs) :]
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    chosen, rejected = sequence_rewards(model, sides, precision).chunk(2)
    return chosen, rejected


def _shared_hidden_states(
    model: Any, pairs: Sequence[TokenPair], common: np.ndarray
) -> torch.Tensor:
    """(2B, h) last hidden states of the chosen and the rejected sides, from one row per pair."""
    rows = [
        np.concatenate([pair.chosen, pair.rejected[start:]])
        for pair, start in zip(pairs, common, strict=True)
    ]
    tokens, lengths = pad_right(rows)  # (B, L)
    device = model.device
    start = torch.as_tensor(common, device=device)[:, None]  # (B, 1)
    end = torch.as_tensor([len(p.chosen) for p in pairs], device=device)[:, None]  # (B, 1)
    column = torch.arange(tokens.shape[1], device=device)[None, :]  # (1, L)
    is_rejected = column >= end  # (B, L)
    positions = torch.where(is_rejected, column - end + start, column)
    # Columns behind a row's end are seen by none of its tokens; their positions must exist.
    last = torch.as_tensor(lengths, device=device)[:, None] - 1
    positions = torch.where(column > last, 0, positions)
    is_chosen = (column >= start) & ~is_rejected
    is_seen = column[:, None, :] <= column[:, :, None]  # (1, L, L): [query, key]
    is_seen = is_seen & ~(is_rejected[:, :, None] & is_chosen[:, None, :])
    hidden = model.base_model(
        input_ids=torch.as_tensor(tokens, device=device),
        position_ids=positions,
        attention_mask=_mask(model, is_seen[:, None]),
        use_cache=False,
    ).last_hidden_state  # (B, L, h)
    row = torch.arange(len(pairs), device=device)
    ends = torch.cat([end[:, 0] - 1, last[:, 0]])
    return hidden[torch.cat([row, row]), ends]


def _mask(model: Any, is_seen: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L) mask in the form that the model's attention takes."""
    if getattr(model.config, "_attn_implementation", None) != "eager":
        return is_seen
    least = torch.finfo(model.dtype).min
    return torch.zeros(is_seen.shape, dtype=model.dtype, device=is_seen.device).masked_fill(
        ~is_seen, least
    )


@torch.no_grad()
def can_share_prompts(model: Any, pairs: Sequence[TokenPair]) -> bool:
    """Whether shared rows give the model's own hidden states, on the longest row and prompt."""
    if not isinstance(getattr(model, "score", None), nn.Linear):
        return False  # an encoder pools elsewhere, and sees what is behind
    ordered = sorted(
        pairs, key=lambda pair: len(pair.chosen) + len(pair.rejected) - common_length(pair)
    )
    tried = [ordered[-1], max(pairs, key=common_length)]
    common = np.array([common_length(pair) for pair in tried])
    try:
        shared = _shared_hidden_states(model, tried, common)
        sides = [pair.chosen for pair in tried] + [pair.rejected for pair in tried]
        tokens, lengths = pad_right(sides)
        plain = model.base_model(
            input_ids=torch.as_tensor(tokens, device=model.device), use_cache=False
        ).last_hidden_state
        rows = torch.arange(len(sides), device=model.device)
        plain = plain[rows, torch.as_tensor(lengths - 1, device=model.device)]
    except Exception as error:  # models refuse masks and positions in many ways
        if is_out_of_memory(error):
            raise
        return False
    difference = float((shared - plain).abs().max())
    return difference <= TOLERANCE * float(plain.abs().max())


@torch.no_grad()
def rewards_of_pairs(
    model: Any, pairs: Sequence[TokenPair], may_share: bool, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) float64 rewards of the chosen and of the rejected responses.

    Args:
        model: a transformers classifier with one output.
        pairs: B of them.
        may_share: what `can_share_prompts` says.
        max_tokens: of one forward pass, padding included.
    """
    rewards = np.zeros((2, len(pairs)))
    for part in micro_batches(pairs, np.arange(len(pairs)), max_tokens):
        sides = pair_rewards(model, [pairs[i] for i in part], may_share)
        rewards[:, part] = torch.stack(sides).double().cpu().numpy()
    return rewards[0], rewards[1]


def _longest(pairs: Sequence[TokenPair]) -> np.ndarray:
    """(B,) tokens of the longer side."""
    return np.array([max(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=np.int64)


def micro_batches(
    pairs: Sequence[TokenPair], batch: np.ndarray, max_tokens: int
) -> Iterator[np.ndarray]:
    """Parts of a batch for one forward each, of like length, the longest first.

    Args:
        pairs: all pairs.
        batch: (b,) which of them.
        max_tokens: of one forward, padding included; a longer pair is a part by itself.
    """
    longest = _longest([pairs[i] for i in batch])
    order = np.argsort(-longest, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, 2 * int(longest[order[start]])))
        yield batch[order[start : start + size]]
        start += size


def length_batches(
    pairs: Sequence[TokenPair], batch_size: int, batch_tokens: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Random batches of pairs, in random order, all pairs once.

    Pairs are not sorted by length over several batches, which would save padding: a batch of like
    length is a worse sample. Of the pairs held out by `examples/07_own_task.py`, whose preference
    is about length, 84 % were ordered rightly with 4 or 32 batches sorted together, 91 % with this.

    Args:
        pairs: all pairs.
        batch_size: pairs per batch at most.
        batch_tokens: tokens per batch at most, both sides, padding included; a longer pair is a
            batch by itself.
        rng: of the order.
    """
    tokens: np.ndarray = 2 * _longest(pairs)
    order = rng.permutation(len(pairs))
    per_batch = min(batch_size, max(1, int(batch_tokens / max(1.0, tokens.mean()))))
    batches = []
    for first in range(0, len(order), per_batch):
        window = order[first : first + per_batch]
        window = window[np.argsort(-tokens[window], kind="stable")]
        start = 0
        while start < len(window):
            size = min(batch_size, max(1, batch_tokens // max(1, int(tokens[window[start]]))))
            batches.append(window[start : start + size])
            start += size
    return [batches[i] for i in rng.permutation(len(batches))]
