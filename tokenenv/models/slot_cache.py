"""A key-value cache with a position of its own per slot, and the decoder that keeps it up to date.

`N` episodes of different age share one batch (continuous batching): each occupies a slot, a new
token costs one forward of one token for all, and an episode that starts refills its own slot only.
Sequences are stored from column 0 of their slot, so positions are 0, 1, … as in a plain forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.decode_step import (
    CapturedSteps,
    StepCapture,
    StepInputs,
    attention_masks,
    attention_windows,
    autocast_state,
    bucket_width,
    sampling_mode,
    step_capture,
    storage_addresses,
    to_device,
)
from tokenenv.models.language_model import pad_right
from tokenenv.models.weight_watch import WeightWatch

__all__ = ["SlotCache", "SlotDecoder", "cache_argument"]


@dataclass(slots=True)
class _WriteTarget:
    """Where the next forward writes and what it sees; shared by a cache and its layers."""

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
            shape = (slots, states.shape[1], columns, states.shape[3])
            with torch.inference_mode(False):  # the storage outlives the mode of this forward
                setattr(self, name, states.new_zeros(shape))
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, q, size) states where the aim says; return what attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, columns, width = self._target.rows, self._target.columns, self._target.width
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        if width is None:  # a prefill starts at position 0: it sees its own tokens and no others
            return key_states, value_states
        return self.keys[:, :, :width], self.values[:, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) for transformers' own causal mask, used in a prefill only."""
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
        """That of the keys; known from the first forward on."""
        layer = self.layers[0]
        assert isinstance(layer, SlotLayer) and layer.dtype is not None
        return layer.dtype

    def write_at(self, rows: torch.Tensor, columns: torch.Tensor, width: int | None) -> None:
        """Say where the next forward writes, (B, 1) slots and (B, q) columns, and how many it sees.

        `width=None` is a prefill: attention sees the forward's own tokens.
        """
        self._target.rows, self._target.columns, self._target.width = rows, columns, width


class SlotDecoder:
    """Follows N observations of the token MDP with one forward per new token.

    The decoder is a cache and nothing else: it compares every observation with the one that it has
    seen in that slot. One token more is a decode step, the same observation is answered from
    memory, anything else refills the slot. So it can be dropped at any time without changing a
    result, and it is dropped by itself where the trunk's weights have changed (see `WeightWatch`).

    On a GPU the decode step is a CUDA graph, one per bucket of columns. It reads the weights where
    they lie: changed in place they are used as they are, moved they are captured anew. A model that
    can't be captured is run eagerly, with one line in the log.

    Args:
        model: a transformers model with a trunk.
        num_slots: N.
        width: P+T, the columns of an observation. Its tokens are contiguous, so where the prompt
            ends need not be known.
        graphs: whether to capture the decode step: None where the model is on a CUDA device, True
            everywhere (without CUDA by the stand-in, which is slower than no graph), False nowhere;
            or what makes the `StepCapture` of a device.

    Raises:
        ValueError: the architecture mixes attention kinds that the cache can't follow, or its
            forward takes no cache. What else it may do is found out by `check_cached_step`.
    """

    def __init__(
        self,
        model: Any,
        num_slots: int,
        width: int,
        graphs: bool | Callable[[torch.device], StepCapture] | None = None,
    ) -> None:
        self.model = model
        self.num_slots = num_slots
        self.width = width
        self.forwards = 0
        self._graphs = graphs
        self._steps = CapturedSteps()
        self._adopt(model.base_model)
        self._slots = np.arange(num_slots)
        self._is_same = np.empty((num_slots, width), dtype=bool)
        self._made_for: tuple[Any, ...] = ()
        self._cache: SlotCache
        self._hidden: torch.Tensor | None = None
        self.drop()

    def _adopt(self, trunk: Any) -> None:
        """Take a trunk: the model's at first, and what was put in its place since."""
        self.trunk = trunk
        config = self.model.config.get_text_config()
        self._windows = attention_windows(config)
        self._num_layers = int(config.num_hidden_layers)
        self._cache_argument = cache_argument(trunk)
        self._mode = sampling_mode(trunk)
        self._weights = WeightWatch(trunk)

    def drop(self) -> None:
        """Forget what was seen.

        Memory and captured steps stay for the next call, which finds out whether they still fit.
        """
        self._is_current = False

    def refill(self) -> None:
        """Let the next call read all sequences anew; for a moment at which it would anyway."""
        if self._is_current:
            self._lengths[:] = 0

    @torch.no_grad()
    def hidden_states(self, observations: np.ndarray, thorough: bool = False) -> torch.Tensor:
        """The trunk's last hidden state at every s_t.

        Args:
            observations: (N, P+T) int64.
            thorough: read all weights to find out whether one has changed; see `WeightWatch`.

        Returns:
            (N, h): owned by the decoder and overwritten by the next call.
        """
        if self.model.base_model is not self.trunk:
            self._adopt(self.model.base_model)
            self._is_current = False
        if self._weights.changed(thorough):
            self._is_current = False
        if not self._is_current or autocast_state(self._device.type) != self._autocast:
            self._reset()
        self._is_current = False  # an exception below leaves a cache that nobody may trust
        is_decode, refilled = self._compare(observations)
        if len(refilled):
            self._prefill(observations, refilled)
        if is_decode.any():
            self._decode(is_decode)
        self._is_current = True
        assert self._hidden is not None
        return self._hidden

    def _reset(self) -> None:
        """Nothing seen, in the memory there is where model and autocast are as they were."""
        self._seen = np.full((self.num_slots, self.width), NO_TOKEN, dtype=np.int64)
        self._lengths = np.zeros(self.num_slots, dtype=np.int64)
        self._starts = np.zeros(self.num_slots, dtype=np.int64)
        self._device = device = self.trunk.device
        self._autocast = autocast_state(device.type)
        weights = chain(self.trunk.parameters(), self.trunk.buffers())
        made_for = (self._autocast, storage_addresses(weights))
        if made_for == self._made_for:
            self._cache.reset()  # a masked NaN is a NaN still: keep none of weights that diverged
            return
        self._made_for = made_for
        graphs = self._graphs
        if graphs is None:
            graphs = device.type == "cuda"
        make_capture = step_capture if isinstance(graphs, bool) else graphs
        use_graphs = graphs is not False and self._steps.works
        self._steps.reset(make_capture(device) if use_graphs else None)
        # one more column, the scratch that slots without a new token write to
        columns = bucket_width(self.width + 1) if use_graphs else self.width + 1
        self._cache = SlotCache(self._num_layers, self.num_slots, columns)
        self._hidden = None
        self._inputs = StepInputs(self.num_slots, device)
        with torch.inference_mode(False):
            self._rows = torch.arange(self.num_slots, device=device)[:, None]

    def _compare(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Note what is new: (N,) whether exactly one token, and the slots with anything else."""
        ends = self._starts + self._lengths
        newest = observations[self._slots, np.minimum(ends, self.width - 1)]
        is_decode = (newest != NO_TOKEN) & (ends < self.width) & (self._lengths > 0)
        grown = np.flatnonzero(is_decode)
        self._seen[grown, ends[grown]] = newest[grown]
        self._lengths[grown] += 1
        is_same = np.equal(observations, self._seen, out=self._is_same)
        if is_same.all() and self._lengths.all():  # nearly always, and cheaper than row by row
            return is_decode, np.empty(0, dtype=np.int64)
        is_known = is_same.all(axis=1) & (self._lengths > 0)
        refilled = np.flatnonzero(~is_known)
        self._seen[refilled] = observations[refilled]
        is_token = observations[refilled] != NO_TOKEN
        self._starts[refilled] = is_token.argmax(axis=1)
        self._lengths[refilled] = is_token.sum(axis=1)
        return is_decode & is_known, refilled

    def _prefill(self, observations: np.ndarray, slots: np.ndarray) -> None:
        sequences, lengths = pad_right([row[row != NO_TOKEN] for row in observations[slots]])
        packed = to_device(np.column_stack([sequences, slots, lengths - 1]), self._device)
        tokens, rows, last = packed[:, :-2], packed[:, -2], packed[:, -1:]
        columns = torch.arange(tokens.shape[1], device=self._device).expand(len(slots), -1)
        self._cache.write_at(rows[:, None], columns, None)
        self.forwards += 1
        hidden = self._forward(tokens, columns, None)
        picked = hidden.take_along_dim(last[:, :, None], dim=1)[:, 0]
        if self._hidden is None:
            with torch.inference_mode(False):
                self._hidden = picked.new_zeros((self.num_slots, picked.shape[1]))
        self._hidden[rows] = picked

    def _decode(self, is_decode: np.ndarray) -> None:
        """One token for the slots of `is_decode`; the others run along, into the scratch column."""
        newest = self._seen[self._slots, self._starts + self._lengths - 1]
        positions = np.where(is_decode, self._lengths - 1, 0)
        self._inputs.upload(
            np.where(is_decode, newest, 0), positions, np.where(is_decode, positions, self.width)
        )
        self.forwards += 1
        seen = int(positions.max()) + 1
        width = bucket_width(seen)
        if not self._steps.run(width, partial(self._step, width)):
            self._step(seen)

    def _step(self, width: int) -> None:
        """The decode step on the device: nothing in it waits for the host, or depends on it."""
        inputs = self._inputs
        masks = attention_masks(inputs.positions, width, self._windows, self._cache.dtype)
        self._cache.write_at(self._rows, inputs.columns, width)
        hidden = self._forward(inputs.tokens, inputs.positions, masks)[:, 0]
        assert self._hidden is not None
        torch.where(inputs.columns < self.width, hidden, self._hidden, out=self._hidden)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any) -> torch.Tensor:
        with self._mode():
            return self.trunk(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
                **{self._cache_argument: self._cache},
            ).last_hidden_state


def cache_argument(trunk: torch.nn.Module) -> str:
    """What a trunk's forward calls its cache: transformers 5.24 renamed `past_key_values`.

    Raises:
        ValueError: it takes none.
    """
    for module in trunk.modules():
        parameters = inspect.signature(module.forward).parameters
        for name in ("past_key_values", "cache"):
            if name in parameters:
                return name
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break  # else it hands everything on to the module in it
    raise ValueError(f"the forward of {type(trunk).__name__} takes no cache of keys and values")
