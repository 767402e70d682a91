"""How the learning rate falls over a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["DECAYS", "Decay"]

Shape = Literal["linear", "cosine", "cubic"]

DECAYS: tuple[str, ...] = get_args(Shape)

_SHARES: dict[str, Callable[[float], float]] = {
    "linear": lambda remaining: remaining,
    "cosine": lambda remaining: 0.5 * (1 - math.cos(math.pi * remaining)),
    "cubic": lambda remaining: remaining**3,
}
"""Shape → share of the first rate where so much of the training, of 0 … 1, is still to come."""


@dataclass(frozen=True)
class Decay:
    """A learning rate that falls to 0 over a training; a `learning_rate` of `TokenPPO`.

    `TokenPPO` reads it at the beginning of each rollout, so that the last update still learns.

    Attributes:
        start: the rate of the first update.
        shape: linearly; along half a cosine, which is late; or with the cube of what is still to
            come, which is early: half of the rate is gone after a fifth of the training.

    Raises:
        ValueError: there is no such shape.
    """

    start: float
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        """Validate the shape."""
        if self.shape not in DECAYS:
            raise ValueError(f"shape={self.shape!r} must be one of {', '.join(map(repr, DECAYS))}.")

    def __call__(self, progress_remaining: float) -> float:
        """The rate where so much of the training, of 0 … 1, is still to come."""
        return self.start * _SHARES[self.shape](progress_remaining)
