"""`LiveMemory`: the most bytes that tensors hold at once during a computation of fake tensors.

torch's `FakeTensorMode` runs a program on tensors that have a shape, a dtype and a device and no
memory. What the program keeps alive is what it would keep in earnest: saved activations, gradients,
intermediate results. So memory is counted by the very code that trains, for any architecture.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveMemory"]


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that are made in it and still alive.

    Args:
        known: tensors that are there before, and are not counted: the weights.
        vocabulary: V; tensors whose last axis is so long are counted as logits.

    Attributes:
        now: bytes alive.
        peak: the most that `now` was.
        gradients: bytes of the gradients of weights that are watched.
        gradients_at_peak: of them at the peak.
        logits_at_peak: bytes of logits, probabilities and their gradients at the peak.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), vocabulary: int = 0) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
        self.logits_at_peak = self._logits = 0
        self._vocabulary = vocabulary
        self._alive = {_key(tensor): (0, False) for tensor in known}

    def start_again(self) -> None:
        """Let the peak be that of what follows."""
        self.peak = self.now

    def watch(self, weights: Iterable[torch.Tensor]) -> None:
        """Tell the gradients of weights from everything else.

        Args:
            weights: that are trained; none of them has a gradient yet.
        """
        for weight in weights:
            weight.register_post_accumulate_grad_hook(self._accumulated)

    def _accumulated(self, weight: torch.Tensor) -> None:
        if weight.grad is not None and not getattr(weight, "has_counted_gradient", False):
            weight.has_counted_gradient = True  # type: ignore[attr-defined]
            self.gradients += weight.grad.nbytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        key = _key(tensor)
        if key in self._alive:
            return
        storage = tensor.untyped_storage()
        is_logits = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
        self._alive[key] = (storage.nbytes(), is_logits)
        self.now += storage.nbytes()
        self._logits += is_logits * storage.nbytes()
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients
            self.logits_at_peak = self._logits
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        count, is_logits = self._alive.pop(key, (0, False))
        self.now -= count
        self._logits -= is_logits * count


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
