"""An update whose numbers are not finite is left out; too many in a row end training."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.ppo.last_good import LastGoodPolicy
from agents.rollout import NonFiniteRollout
from tokenenv.models import NonFiniteNumbers

__all__ = ["has_last_good_policy", "skip_update"]


def skip_update(model: Any, update: Any, error: NonFiniteNumbers) -> None:
    """Leave an update out, with the weights of before it, and let training go on.

    Adam's moments keep what finite steps of the update put in: their gradients were clipped, and so
    are no harm. Weights are left as they are where a reward was the cause, which they are not.

    Args:
        model: a `TokenPPO`.
        update: the `Update` that met the numbers.
        error: what it said.

    Raises:
        NonFiniteNumbers: `error`, where `max_skipped_updates` in a row have been left out before.
    """
    model.skipped_in_a_row += 1
    model.num_skipped_updates += 1
    if model.on_skipped is not None:
        model.on_skipped(update, error)
    if model.skipped_in_a_row > model.max_skipped_updates:
        if model.max_skipped_updates:
            told = f"{model.skipped_in_a_row} updates in a row could not be made. The last: {error}"
            error.args = (told,)
        raise error
    is_of_rewards = isinstance(error, NonFiniteRollout) and error.is_of_rewards
    if model.put_back_weights is not None and not is_of_rewards:
        model.put_back_weights()
    model.policy.set_training_mode(True)  # keys and values that are stored are of other weights
    model.logger.record("train/skipped_updates", model.num_skipped_updates)


def has_last_good_policy(callback: BaseCallback | list[Any] | None) -> bool:
    """Whether there is a `LastGoodPolicy` among callbacks."""
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    if isinstance(callback, list):
        return any(has_last_good_policy(one) for one in callback)
    return isinstance(callback, LastGoodPolicy)
