"""Critic warm-up: the first updates teach the critic alone; the actor then starts with values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from agents.checks import check_warmup
from agents.policy import LMActorCriticPolicy

__all__ = ["check_critic_warmup", "only_the_critic_learns"]


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


def check_critic_warmup(updates: int, policy: Any, estimator: str, vf_coef: float) -> None:
    """Refuse a warm-up in which nothing would learn, or more than the critic.

    Args:
        updates: `critic_warmup`.
        policy: the agent's.
        estimator: the buffer's `advantage_estimator`.
        vf_coef: weight of the value loss.

    Raises:
        ValueError: it says which, and what to do.
    """
    if not updates:
        return
    if not isinstance(policy, LMActorCriticPolicy):
        raise ValueError(
            f"critic_warmup={updates} holds the actor's weights, and of {type(policy).__name__} it "
            "is not known which they are: use LMActorCriticPolicy, or critic_warmup=0."
        )
    check_warmup(updates, estimator, vf_coef)
