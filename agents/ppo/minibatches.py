"""The minibatches of an epoch: of one process, or of all ranks at once.

Ranks take the same number of steps, whatever they have sampled: a minibatch is that of all ranks,
about `batch_size` tokens, and each rank has a part of it, from its own rollout. The parts of a
minibatch have nearly the same share of each rank's tokens, so that no rank waits long for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.scaling import Ranks

__all__ = ["Minibatch", "minibatches", "tokens_of_ranks"]


@dataclass(frozen=True, slots=True)
class Minibatch:
    """A rank's part of a minibatch.

    Attributes:
        samples: its tokens. Where it has none, one that was never sampled and counts nothing:
            every rank makes a pass.
        tokens: of the minibatch, over all ranks.
        sequences: likewise; 0 where they are not counted: alone.
        is_empty: whether this rank has none of them.
    """

    samples: RolloutBufferSamples
    tokens: int
    sequences: int = 0
    is_empty: bool = False


def tokens_of_ranks(buffer: Any, ranks: Ranks) -> int:
    """Tokens that the update will see, over all ranks."""
    return buffer.num_tokens if ranks.count == 1 else int(ranks.sum(np.array(buffer.num_tokens)))


def minibatches(buffer: Any, batch_size: int, ranks: Ranks) -> Iterator[Minibatch]:
    """The minibatches of a pass over a rollout.

    Args:
        buffer: with a complete rollout; for several ranks an `EpisodeRolloutBuffer`.
        batch_size: tokens per minibatch, over all ranks, about.
        ranks: that make the pass together.
    """
    if ranks.count == 1:
        for samples in buffer.get(batch_size):
            yield Minibatch(samples, len(samples.advantages))
        return
    tokens, sequences = ranks.sum(np.array([buffer.num_tokens, len(buffer.lengths)])).astype(int)
    shares = buffer.shares(int(min(sequences, max(1, -(-tokens // batch_size)))))
    own = [[int(buffer.lengths[share].sum()), len(share)] for share in shares]
    for share, (tokens, sequences) in zip(
        shares, ranks.sum(np.array(own)).astype(int), strict=True
    ):
        if not tokens:  # of no rank
            continue
        is_empty = not len(share)
        samples = buffer.nothing() if is_empty else buffer.minibatch(share)
        yield Minibatch(samples, int(tokens), int(sequences), is_empty)
