"""Notices that a module's weights are no longer those that a cache was filled with.

Code that trains or swaps weights need not announce it: an optimiser's step, `.data` written or
assigned, `load_state_dict(assign=True)`, a module or parameter put in another's place, a
parametrization.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["WeightWatch", "contents_digest"]

_SAMPLES = 4
"""Elements of every tensor that the quick look compares."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightWatch:
    """Remembers the parameters and buffers of a module, and their contents.

    The quick look, some microseconds per hundred tensors, compares which modules, parameters and
    buffers there are, where their memory lies, torch's count of writes to each, and on a CPU the
    bits of four elements of each: `.data` is written without being counted. So it sees whatever
    changes a tensor as a whole. It misses a write through `.data` to a part of a tensor
    (on a GPU: to any of it, in place); the thorough look sees that, too, and reads all weights.

    Args:
        module: whose weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._contents: torch.Tensor | None = None
        self._remember()

    def changed(self, thorough: bool = False) -> bool:
        """Whether the weights have changed since the last call, or since the construction.

        Args:
            thorough: read all weights. Where nothing is known to compare them with, at the first
                thorough look or the first after a change, that counts as a change.
        """
        has_changed = not self._looks_the_same()
        if has_changed:
            self._contents = None
            self._remember()
        if thorough:
            contents = self._read_contents()
            known, self._contents = self._contents, contents
            if known is None:
                return True
            if not torch.equal(known, contents):
                self._remember()
                return True
        return has_changed

    def _remember(self) -> None:
        self._places = list(_places(self._module))
        tensors = {id(t): t for _, _, t in self._places if isinstance(t, torch.Tensor)}
        self._tensors = list(tensors.values())
        self._counted = [t for t in self._tensors if not t.is_inference()]
        self._versions = [t._version for t in self._counted]
        self._addresses = [t.data_ptr() for t in self._tensors]
        self._reads = [read for t in self._tensors for read in _sample_reads(t)]
        self._samples = [read() for read in self._reads]

    def _looks_the_same(self) -> bool:
        for owner, name, item in self._places:
            if owner.get(name) is not item:
                return False
        return (
            self._addresses == [t.data_ptr() for t in self._tensors]
            and self._versions == [t._version for t in self._counted]
            and self._samples == [read() for read in self._reads]
        )

    @torch.no_grad()
    def _read_contents(self) -> torch.Tensor:
        """(2n,) int64 sums over the bits of n tensors: of all of it, and along its diagonal.

        Exact, so that a change of one bit shows; the diagonal shows elements that only changed
        places.
        """
        return _read_contents(self._tensors)


@torch.no_grad()
def contents_digest(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hexadecimal digest of named tensors, the same on every device."""
    ordered = sorted(weights, key=lambda named: named[0])
    digest = hashlib.sha256("\n".join(name for name, _ in ordered).encode())
    for _, weight in ordered:
        digest.update(_read_contents([weight]).numpy().tobytes())
    return digest.hexdigest()[:32]


def _read_contents(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        flat = _as_integers(tensor)
        last = tensor.shape[-1] if tensor.ndim else 1
        step = last * tensor.element_size() // flat.element_size() + 1
        tensor_sums = [flat.sum(dtype=torch.int64), flat[::step].sum(dtype=torch.int64)]
        sums.setdefault(tensor.device, []).extend(tensor_sums)
    read = [torch.stack(on_device).cpu() for on_device in sums.values()]
    return torch.cat(read) if read else torch.zeros(0)


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(dictionary, key, value) of every parameter, buffer and module in a module.

    Without buffers that are no part of a state dict: a forward may rewrite those, as rotary
    embeddings do that grow with the sequence.
    """
    for part in module.modules():
        owners: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, part._modules)
        for owner in owners:
            for name, item in owner.items():
                if owner is not part._buffers or name not in part._non_persistent_buffers_set:
                    yield owner, name, item


def _sample_reads(tensor: torch.Tensor) -> list[Callable[[], int]]:
    """Functions that read the bits of a few elements of a tensor, as they are when called."""
    if tensor.device.type != "cpu" or not tensor.numel() or tensor.layout != torch.strided:
        return []
    kind = _INTEGERS.get(tensor.element_size())
    if kind is None:
        return []
    last = tensor.numel() - 1
    indices = sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)})
    whole = tensor.detach()
    elements = (whole[tuple(map(int, np.unravel_index(i, whole.shape)))] for i in indices)
    return [element.view(kind).numpy().item for element in elements]


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits, flat, as the widest integers that they make."""
    flat = tensor.detach().reshape(-1)
    size = flat.element_size()
    aligned = flat.storage_offset() * size % 8 == 0 and flat.numel() * size % 8 == 0
    return flat.view(torch.int64 if aligned else _INTEGERS.get(size, torch.uint8))
