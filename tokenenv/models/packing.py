"""Packed sequences: whole sequences for one forward, and the positions of the states in them.

Axes: `B` sequences, `L` columns, `n` states over all sequences, in the order of evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.forward import trunk_hidden_states

__all__ = [
    "MICRO_BATCH_TOKENS",
    "PackedSequences",
    "hidden_states",
    "minibatch_indices",
    "pack",
    "pack_observations",
    "pad_right",
    "token_batches",
]

MICRO_BATCH_TOKENS = 8192
"""Tokens, padding included, that one no-gradient forward takes at most."""


def pad_right(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) int64 with each sequence from column 0, and their (B,) lengths.

    Each row is filled up with its first token: no pad token is needed, none can be mistaken.
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    tokens = np.empty((len(sequences), int(lengths.max(initial=1))), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row] = sequence[0]
        tokens[row, : len(sequence)] = sequence
    return tokens, lengths


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """States inside sequences.

    Attributes:
        tokens: (B, L) int64, each sequence from column 0; columns behind it are filler.
        rows: (n,) int64, the sequence of each state.
        columns: (n,) int64, the last token of each state.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __len__(self) -> int:
        """n, the number of states."""
        return len(self.rows)


def pack(
    prefixes: Sequence[np.ndarray], actions: Sequence[np.ndarray], device: torch.device | str
) -> PackedSequences:
    """The states in which `actions` were taken after `prefixes`.

    Args:
        prefixes: B arrays of the tokens before the first action.
        actions: B arrays of response tokens; the k-th state, from 0, is the prefix and the first k
            actions.
        device: where the tensors go.
    """
    tokens, _ = pad_right(
        [np.concatenate([p, a[:-1]]) for p, a in zip(prefixes, actions, strict=True)]
    )  # (B, L)
    sizes = [len(a) for a in actions]  # B counts, n in all
    columns = [len(p) - 1 + np.arange(k) for p, k in zip(prefixes, sizes, strict=True)]
    rows = np.repeat(np.arange(len(sizes)), sizes)  # (n,)
    return PackedSequences(
        torch.as_tensor(tokens, device=device),
        torch.as_tensor(rows, device=device),
        torch.as_tensor(np.concatenate(columns), device=device),  # (n,)
    )


def pack_observations(observations: torch.Tensor) -> PackedSequences:
    """One state per (P+T,) observation: the last token of each row of (B, P+T) observations."""
    is_token = observations != NO_TOKEN  # (B, P+T)
    lengths = is_token.sum(dim=1)  # (B,)
    starts = is_token.int().argmax(dim=1)  # (B,), column of the first token
    offsets = torch.arange(int(lengths.max()), device=observations.device)[None, :]  # (1, L)
    # Columns behind a sequence repeat its first token, as `pad_right` does.
    source = torch.where(
        offsets < lengths[:, None], starts[:, None] + offsets, starts[:, None]
    )  # (B, L), columns of the observations
    tokens = observations.gather(1, source)  # (B, L)
    rows = torch.arange(len(observations), device=observations.device)  # (B,), here n = B
    return PackedSequences(tokens, rows, lengths - 1)


def minibatch_indices(
    sizes: np.ndarray,
    batch_size: int | None,
    rng: np.random.Generator,
    count: int | None = None,
) -> Iterator[np.ndarray]:
    """Random groups of whole sequences with about `batch_size` states each, all of them once.

    A single group holds them in their original order.

    Args:
        sizes: (S,) states per sequence.
        batch_size: states per group; None for one group.
        rng: of the order.
        count: of groups, instead of their size; where there are fewer sequences, some are empty.
    """
    order = rng.permutation(len(sizes))  # (S,)
    total = int(sizes.sum())
    groups = 1 if batch_size is None else min(len(sizes), max(1, -(-total // batch_size)))
    groups = groups if count is None else count
    if groups == 1:
        order = np.arange(len(sizes))
    # A sequence belongs to the group in which its middle state falls.
    middles = np.cumsum(sizes[order]) - sizes[order] / 2  # (S,)
    group_of = np.minimum((middles * groups / max(total, 1)).astype(int), groups - 1)  # (S,)
    for group in range(groups):
        members = order[group_of == group]  # (sequences of the group,)
        if len(members) or count is not None:
            yield members


def token_batches(lengths: np.ndarray, max_tokens: int | None) -> Iterator[np.ndarray]:
    """Index arrays over all sequences, each of at most `max_tokens` padded tokens.

    The longest come first, so that sequences of a batch are of nearly the same length.

    Args:
        lengths: (S,) tokens per sequence.
        max_tokens: a single longer sequence is a batch by itself; None: all in one batch, in
            their original order.
    """
    if max_tokens is None:
        yield np.arange(len(lengths))
        return
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def hidden_states(model: Any, packed: PackedSequences) -> torch.Tensor:
    """(n, h) hidden states of packed states, by a full forward on the model's device."""
    device = model.device
    hidden = trunk_hidden_states(model, packed.tokens.to(device))  # (B, L, h)
    return hidden[packed.rows.to(device), packed.columns.to(device)]  # (n, h)
