"""Which method of an algorithm is running, and the entropy weight that follows from it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["entropy_weight", "is_running"]


def is_running(model: Any, method: str) -> bool:
    """Whether the caller's callers include this model's method.

    Args:
        model: any object.
        method: the name of the method, a subclass's or an inherited one.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == method and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


def entropy_weight(model: Any) -> Callable[[], float] | None:
    """A function that returns the present weight of the entropy in a model's update.

    It is 1 outside of the algorithm's `train`, where entropies may be used for anything.

    Args:
        model: any SB3 algorithm.

    Returns:
        None where `train` is the user's, which may use entropies in another way.
    """
    if type(model).train.__module__.split(".")[0] not in ("stable_baselines3", "agents"):
        return None
    model_ref = weakref.ref(model)  # the policy must not keep the model alive

    def weight() -> float:
        live_model = model_ref()
        if live_model is None or not is_running(live_model, "train"):
            return 1.0
        return float(getattr(live_model, "ent_coef", 1.0))

    return weight
