"""`OneProcess`: how a training on batches shares its work among processes; here, not at all.

Trainings of models on batches of examples (reward models, supervised fine-tuning) ask it which
examples are theirs, pass through it, and sum through it. `agents.scaling.data_parallel` has one for
many processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

__all__ = ["OneProcess"]

T = TypeVar("T")


class OneProcess:
    """One process that does everything.

    Attributes:
        factor: what a loss is multiplied by before `backward`.
    """

    factor = 1.0

    def prepare(self, model: Any, optimizer: Any) -> None:
        """Begin a training of a model, whose weights an optimiser steps."""
        self.model = model

    def share(self, batch: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, float]:
        """This process's examples of a batch, and what their loss counts.

        Args:
            batch: (b,) indices of examples.
            sizes: (b,) of these examples.

        Returns:
            1 or more indices, and 1.0; or, where there are more processes than examples, one index
            and 0.0: every process makes a pass.
        """
        return batch, 1.0

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, *args)`, differentiable."""
        return function(self.model, *args)

    @contextlib.contextmanager
    def one_pass(self, is_last: bool) -> Iterator[None]:
        """A forward and backward pass; gradients of all processes are there after the last one."""
        yield

    def sum(self, number: float) -> float:
        """The sum over all processes."""
        return number

    def decide(self, function: Callable[[], T]) -> T:
        """What one process computes, and all go by."""
        return function()

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag
