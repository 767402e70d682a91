"""The numbers of a rollout: whether they are finite, and their magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.scaling import ALONE, Ranks
from tokenenv.models import NonFiniteNumbers

__all__ = ["NonFiniteRollout", "advantage_magnitude", "refuse_non_finite_rollout"]

_NAMES = ("rewards", "values", "log_probs", "advantages", "returns")


class NonFiniteRollout(NonFiniteNumbers):
    """A rollout holds a number that is not finite, so that nothing was learned from it.

    Attributes:
        is_of_rewards: whether rewards are the cause, and not what the policy computed.
    """

    def __init__(self, message: str, is_of_rewards: bool = False) -> None:
        super().__init__(message)
        self.is_of_rewards = is_of_rewards


def refuse_non_finite_rollout(buffer: Any, ranks: Ranks = ALONE) -> None:
    """Raise NonFiniteRollout where a rollout holds a number that is not finite; on all ranks.

    Rewards, values, advantages and returns are float32: a finite sum of finite rewards can lie
    beyond it. One such number makes all weights NaN.

    Args:
        buffer: a rollout buffer, SB3's or ours, whose advantages have been computed.
        ranks: each with its part of the rollout.
    """
    for rank, fault in enumerate(ranks.gather(_fault(buffer))):
        if fault is not None:
            message, is_of_rewards = fault
            raise NonFiniteRollout(f"rank {rank}: {message}" if rank else message, is_of_rewards)


def _fault(buffer: Any) -> tuple[str, bool] | None:
    """What of a rollout is not finite: a sentence, and whether rewards are the cause.

    They are, too, where sums of finite rewards are not, and values are no larger.
    """
    for name in _NAMES:
        numbers = np.ravel(getattr(buffer, name))
        if np.isfinite(numbers).all():
            continue
        wrong = ~np.isfinite(numbers)
        said, reward = getattr(buffer, "reward_fault", None), _largest(buffer.rewards)
        return (
            f"{name} of {int(wrong.sum())} of the {numbers.size} tokens of this rollout are not "
            f"finite ({numbers[wrong][0]:g}); its largest finite reward is "
            f"{reward:.3g}, its largest value {_largest(buffer.values):.3g}. "
            "Nothing was learned from it. Rewards and their sums must lie within float32 (3.4e38): "
            "scale the scores down, or look for the reward that is NaN or infinite."
            + (f" The first: {said}" if said and name == "rewards" else ""),
            name == "rewards"
            or (name in ("advantages", "returns") and reward >= _largest(buffer.values)),
        )
    return None


def advantage_magnitude(buffer: Any, kl_coef: float) -> float:
    """The magnitude of the numbers that advantages are sums of; their rounding is relative to it.

    Rewards, values, and β·log π, which cancels against β·log π_ref as long as actor and reference
    agree. The errors of a sequence's terms are independent, so that of their sum is relative to the
    root of the sum of their squares; one large score among small terms is rounded once.

    Args:
        buffer: a rollout buffer, SB3's or ours.
        kl_coef: β.
    """
    squares = sum(
        np.square(np.asarray(numbers, dtype=np.float64))
        for numbers in (buffer.rewards, buffer.values, kl_coef * buffer.log_probs)
    )
    lengths = getattr(buffer, "lengths", None)
    if lengths is None:  # SB3's: (steps, N), where episodes are at most as long as the rollout
        sums = np.sum(squares, axis=0)
    else:
        sums = np.add.reduceat(squares, np.cumsum(lengths) - lengths) if len(lengths) else [0.0]
    return max(float(np.sqrt(np.max(sums, initial=0.0))), _largest(buffer.returns))


def _largest(numbers: np.ndarray) -> float:
    """The largest finite absolute value; 0 where there is none."""
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0))
