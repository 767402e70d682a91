"""The precision in which an update computes: float32, or bfloat16 where that is faster.

Weights, gradients of weights, Adam's state, logits, softmax and values stay float32: autocast runs
the matrix products of the trunk and of the backward pass in bfloat16. On processors that multiply
bfloat16 in hardware this makes an update faster, elsewhere slower, and one measurement tells.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

__all__ = ["computing_in"]


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device | str) -> Iterator[None]:
    """Forward passes inside compute in `precision`, `"float32"` (as ever) or `"bfloat16"`."""
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
            found = function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
            return found.to(args[0].dtype)


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_narrow else value
