"""Where the time of a run goes: exclusive seconds of methods that call one another."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the time of watched methods; what a watched callee takes is not its caller's.

    Args:
        device: where the models compute; a GPU is waited for at both ends of every call.

    Attributes:
        seconds: name → exclusive seconds so far.
    """

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._waits = device.startswith("cuda")
        self._in_callees: list[float] = []

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count the calls of `owner.method` under `name`, from now on."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            self._in_callees.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                whole = self._now() - start
                self.seconds[name] += whole - self._in_callees.pop()
                if self._in_callees:
                    self._in_callees[-1] += whole

        setattr(owner, method, timed)

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize()
        return time.perf_counter()
