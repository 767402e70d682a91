"""The precision in which forward and backward passes compute: float32, or bfloat16 by autocast.

Weights, their gradients and the optimiser's state stay float32: autocast runs the matrix products
of the trunk in bfloat16. On processors that multiply bfloat16 in hardware this is faster, elsewhere
slower; `seconds_by_precision` measures it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

__all__ = ["computing_in", "seconds_by_precision"]

TURNS = 3
"""Measurements that a median is taken of, after one to warm up."""


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device | str) -> Iterator[None]:
    """Let forward passes in the block compute in `precision`, `"float32"` or `"bfloat16"`."""
    if precision == "float32":
        yield
        return
    kind = torch.device(device).type
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(kind, torch.bfloat16))
        if kind == "cpu":
            stack.enter_context(_WideAttention())
        yield


class _WideAttention(TorchFunctionMode):
    """Attention in float32: torch's CPU kernel has a backward pass four times slower in bfloat16.

    Measured on torch 2.13, (64 × 4 heads × 63 tokens × 64): 31 ms a layer against 7 ms.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            attended = function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
            return attended.to(args[0].dtype)


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_narrow else value


def seconds_by_precision(
    step: Callable[[], torch.Tensor], parameters: Sequence[torch.nn.Parameter]
) -> dict[str, float]:
    """`"float32"`, `"bfloat16"` → seconds of a forward and backward pass, in alternating turns.

    Args:
        step: a forward pass; its result is differentiated.
        parameters: their gradients are forgotten afterwards.
    """
    device = parameters[0].device
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(1 + TURNS):
        for precision, durations in seconds.items():
            start = _now(device)
            with computing_in(precision, device):
                loss = step()
            loss.backward()
            durations.append(_now(device) - start)
            for parameter in parameters:
                parameter.grad = None
    return {precision: statistics.median(durations[1:]) for precision, durations in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
