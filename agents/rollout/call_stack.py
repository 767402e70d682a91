"""Which method of an algorithm is running, and what follows for the entropies of its policy."""

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
    """A function that gives the weight which a model's update gives the entropy, now.

    It is 1 outside of the algorithm's own `train`, where entropies may be for anything.

    Args:
        model: any SB3 algorithm.

    Returns:
        None where an update of the user's own might use entropies otherwise.
    """
    if type(model).train.__module__.split(".")[0] not in ("stable_baselines3", "agents"):
        return None
    model_ref = weakref.ref(model)  # the policy would keep a model alive that is gone

    def weight() -> float:
        live_model = model_ref()
        if live_model is None or not is_running(live_model, "train"):
            return 1.0
        return float(getattr(live_model, "ent_coef", 1.0))

    return weight
