"""Critic warm-up: the first updates teach the critic alone; the actor then starts with values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["only_the_critic_learns"]


@contextlib.contextmanager
def only_the_critic_learns(actor: Any) -> Iterator[None]:
    """Hold every weight of a policy's actor, its trunk included, while this lasts.

    With a shared trunk the value head alone learns, else the critic's own trunk and head. Weights
    without a gradient are left out by the optimiser and by the clipping of the gradients' norm.
    """
    held = [weight for weight in actor.parameters() if weight.requires_grad]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)
