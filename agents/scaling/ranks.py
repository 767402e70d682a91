"""`Ranks`: this process among those that train one model, or alone.

What ranks tell each other goes through here: numbers of a rollout, texts, states. It is small and
stays on the host. Gradients and weights go another way (`agents.scaling.trained`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

__all__ = ["ALONE", "AgreedError", "RankLost", "Ranks", "share_of"]

T = TypeVar("T")


class RankLost(RuntimeError):
    """Another rank is gone or silent, so that this one can't go on."""


class AgreedError(ValueError):
    """An error that every rank raises alike: one of them has to say it."""


class Ranks:
    """One process alone: everything that ranks would tell each other is its own already.

    Attributes:
        rank: of this process, from 0.
        count: how many there are.
        device: where this rank computes; None: wherever the settings say.
    """

    rank = 0
    count = 1
    device: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks to people."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        return [value]

    def of_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        return value

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """The sums over the ranks, element by element, in float64 and in the order of ranks."""
        wide = [np.asarray(own, dtype=np.float64) for own in self.gather(np.asarray(numbers))]
        return np.sum(wide, axis=0)

    def largest(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        return max(self.gather(float(number)))

    def joined(self, array: np.ndarray) -> np.ndarray:
        """(n,) the ranks' 1-D arrays behind each other; the array itself for one rank."""
        return array if self.count == 1 else np.concatenate(self.gather(np.ravel(array)))

    def own_part(self, joined: np.ndarray, size: int) -> np.ndarray:
        """(size,) this rank's part of what `joined` gave, or of as many numbers made of it."""
        if self.count == 1:
            return joined
        start = sum(self.gather(size)[: self.rank])
        return joined[start : start + size]

    def agree(self, act: Callable[[], T]) -> T:
        """What `act` returns, where it raises on no rank.

        Args:
            act: called on every rank.

        Raises:
            AgreedError: it raised a ValueError or an OSError on some rank; every rank raises it,
                with the names of the ranks unless all of them had the same. (Alone, what it
                raised.)
        """
        return act()

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """A block with communication in it: RankLost, with the reason, where another is gone."""
        yield

    def why_stopped(self) -> str | None:
        """What is known of another rank that is gone, in a sentence; None: nothing."""
        return None

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank ends, and why."""

    def leave(self, is_done: bool = True) -> None:
        """Stop watching the others.

        Args:
            is_done: whether this rank has done its part, and will not be missed.
        """


ALONE = Ranks()
"""The ranks of a process that nobody has launched as one of several."""


def share_of(total: int, ranks: Ranks, what: str) -> int:
    """A rank's share of a number of things.

    Args:
        total: over all ranks.
        ranks: each of which gets as many.
        what: the name of the setting, for messages.

    Raises:
        ValueError: there are more ranks than things, or they can't be shared evenly.
    """
    if total < ranks.count:
        raise ValueError(
            f"{what}={total} for {ranks.count} ranks: every rank needs at least one. Start at most "
            f"{total} processes, or give a larger {what}."
        )
    if total % ranks.count:
        below = total - total % ranks.count
        raise ValueError(
            f"{what}={total} can't be shared evenly by {ranks.count} ranks: give {below} or "
            f"{below + ranks.count}."
        )
    return total // ranks.count
