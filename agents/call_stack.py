"""Which method of an algorithm is running: what is lent to it ends with it, by an error too."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_running"]


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
