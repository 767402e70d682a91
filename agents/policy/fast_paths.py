"""Faster equivalents that torch offers: optimisers in one kernel, fewer transfers."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fused_where_possible", "in_one_transfer"]


def fused_where_possible(
    kind: type[torch.optim.Optimizer], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """`kwargs` of an optimiser; torch's Adam in one kernel unless they choose an implementation."""
    implementations = {"fused", "foreach", "capturable", "differentiable"} & set(kwargs)
    is_adam = kind in (torch.optim.Adam, torch.optim.AdamW)
    return {**kwargs, "fused": True} if is_adam and not implementations else kwargs


def in_one_transfer(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Copies on the host of tensors of N numbers each, by one transfer instead of one for each.

    In float64, which holds token ids, float32 and narrower numbers without rounding.
    """
    fetched = torch.stack([tensor.flatten().double() for tensor in tensors]).cpu()  # (k, N)
    return tuple(
        numbers.reshape(tensor.shape).to(tensor.dtype)
        for numbers, tensor in zip(fetched, tensors, strict=True)
    )
