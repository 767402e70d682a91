"""A key-value cache with separate positions per slot, for transformers' models.

`N` episodes of different age share one batch (continuous batching): each occupies a slot, a new
token costs one forward of one token for all, and an episode that starts refills only its slot.
Sequences are stored from column 0 of their slot, so positions are 0, 1, … as in a plain forward.

Axes: `N` slots, `B` of them in a forward, `q` tokens per sequence of a forward, `h` hidden units.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["SlotCache", "cache_argument"]


@dataclass(slots=True)
class _WriteTarget:
    """The cells that the next forward writes, and the columns that it sees; see `write_at`."""

    num_slots: int
    columns_per_slot: int
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    width: int | None = None


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (N, heads, columns, size)."""

    is_sliding = False

    def __init__(self, target: _WriteTarget) -> None:
        super().__init__()
        self._target = target

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on the first forward, when heads, head size, dtype and device are known."""
        slots, columns = self._target.num_slots, self._target.columns_per_slot
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (slots, states.shape[1], columns, states.shape[3])  # (N, heads, columns, size)
            with torch.inference_mode(False):  # the storage outlives the mode of this forward
                setattr(self, name, states.new_zeros(shape))
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, q, size) states to the target; return the states attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, columns, width = self._target.rows, self._target.columns, self._target.width
        # rows (B, 1) and columns (B, q) broadcast to (B, q), so the indexed cells are
        # (B, q, heads, size): (B, heads, q, size) with the middle axes swapped.
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        if width is None:  # a prefill starts at position 0 and attends only to its tokens
            return key_states, value_states  # (B, heads, q, size)
        return self.keys[:, :, :width], self.values[:, :, :width]  # (N, heads, width, size)

    def copy_to(self, other: SlotLayer) -> None:
        """Let another layer hold the same states, in memory of its own."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            with torch.inference_mode(False):  # as in `lazy_initialization`
                other.keys, other.values = self.keys.clone(), self.values.clone()
            other.dtype, other.device = self.dtype, self.device
            other.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) for the causal mask of transformers, used in a prefill only."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """0: a prefill starts an empty slot, and a decode step passes its positions itself."""
        return 0

    def get_max_length(self) -> int:
        """Columns per slot."""
        return self._target.columns_per_slot


class SlotCache(Cache):
    """The keys and values of N slots, through transformers' public cache interface.

    Args:
        num_layers: layers of the model.
        num_slots: N.
        columns: tokens per slot.
    """

    def __init__(self, num_layers: int, num_slots: int, columns: int) -> None:
        self._target = _WriteTarget(num_slots, columns)
        super().__init__(layers=[SlotLayer(self._target) for _ in range(num_layers)])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the keys; known from the first forward on."""
        layer = self.layers[0]
        assert isinstance(layer, SlotLayer) and layer.dtype is not None
        return layer.dtype

    def fork(self) -> SlotCache:
        """A copy: what is written to one does not appear in the other."""
        target = self._target
        twin = SlotCache(len(self.layers), target.num_slots, target.columns_per_slot)
        for layer, copied in zip(self.layers, twin.layers, strict=True):
            assert isinstance(layer, SlotLayer) and isinstance(copied, SlotLayer)
            layer.copy_to(copied)
        return twin

    def state_dict(self, columns: int) -> dict[str, torch.Tensor]:
        """The first columns of all slots as tensors, by name; empty before the first forward.

        Args:
            columns: how many hold tokens.
        """
        return {
            f"{name}.{number}": getattr(layer, name)[:, :, :columns].clone()
            for number, layer in enumerate(self.layers)
            if isinstance(layer, SlotLayer) and layer.is_initialized
            for name in ("keys", "values")
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Hold what `state_dict` gave in the first columns.

        Args:
            state: of a cache with as many slots and layers.
            device: where the model is.
        """
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, SlotLayer)
            both = [state[f"{name}.{number}"].to(device) for name in ("keys", "values")]
            if not layer.is_initialized:
                layer.lazy_initialization(*both)
            for name, stored in zip(("keys", "values"), both, strict=True):
                getattr(layer, name)[:, :, : stored.shape[2]] = stored

    def write_at(self, rows: torch.Tensor, columns: torch.Tensor, width: int | None) -> None:
        """Set the cells that the next forward writes, and the columns that attention sees.

        Args:
            rows: (B, 1) int64 slots.
            columns: (B, q) int64 columns.
            width: columns that attention sees; None: a prefill, which sees only its tokens.
        """
        self._target.rows, self._target.columns, self._target.width = rows, columns, width


def cache_argument(trunk: torch.nn.Module) -> str:
    """The name of the cache argument of a trunk: transformers 5.24 renamed `past_key_values`.

    Raises:
        ValueError: the forward takes no cache.
    """
    for module in trunk.modules():
        parameters = inspect.signature(module.forward).parameters
        for name in ("past_key_values", "cache"):
            if name in parameters:
                return name
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break  # with **kwargs it passes everything on to the module inside it
    raise ValueError(f"the forward of {type(trunk).__name__} takes no cache of keys and values")
