"""Trainings on batches of examples by all ranks: each has a part of every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from agents.scaling.ranks import Ranks
from agents.scaling.trained import InDDP
from tokenenv.models import OneProcess

__all__ = ["DataParallel", "data_parallel"]

T = TypeVar("T")


def data_parallel(ranks: Ranks) -> OneProcess:
    """How ranks share a training on batches; alone, not at all."""
    return OneProcess() if ranks.count == 1 else DataParallel(ranks)


class DataParallel(OneProcess):
    """Several ranks, with the model whole on each (DDP).

    Args:
        ranks: with the same examples and settings; each knows every batch, so that a loss is
            divided by the counts of the whole batch without a word between them.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.factor = ranks, float(ranks.count)

    def prepare(self, model: Any, optimizer: Any) -> None:
        """Begin a training; the first rank's weights are taken by all."""
        super().prepare(model, optimizer)
        self._trained = InDDP(model, optimizer, self.ranks)

    def share(self, batch: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, float]:
        """This rank's examples of a batch: dealt out by size, so that ranks have as much to do.

        The longest goes to the first rank, the next to the second, …, and back again.
        """
        count, rank = self.ranks.count, self.ranks.rank
        order = np.argsort(-np.asarray(sizes), kind="stable")
        place = np.arange(len(order)) % (2 * count)
        owner = np.minimum(place, 2 * count - 1 - place)
        own = np.asarray(batch)[order[owner == rank]]
        return (own, 1.0) if len(own) else (np.asarray(batch)[:1], 0.0)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, *args)`, differentiable, within DDP's forward."""
        return self._trained.call(function, *args)

    @contextlib.contextmanager
    def one_pass(self, is_last: bool) -> Iterator[None]:
        """A forward and backward pass; only the last one communicates."""
        with self._trained.one_pass(is_last):
            yield

    def sum(self, number: float) -> float:
        """The sum over all ranks."""
        return float(self.ranks.sum(np.array([number]))[0])

    def decide(self, function: Callable[[], T]) -> T:
        """What the first rank computes; the others wait for it."""
        return self.ranks.of_first(function() if self.ranks.is_first else None)  # type: ignore

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.ranks.largest(float(flag)))
