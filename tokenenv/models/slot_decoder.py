"""`SlotDecoder`: keeps a slot cache up to date with observations, one forward of one token for all.

Axes: `N` slots, `B` of them in a forward, `q` tokens per sequence of a forward, `h` hidden units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.decode_step import (
    CapturedSteps,
    StepCapture,
    StepInputs,
    attention_masks,
    attention_windows,
    autocast_state,
    bucket_width,
    eager_capture,
    graph_capture,
    sampling_mode,
    storage_addresses,
    to_device,
)
from tokenenv.models.packing import pad_right
from tokenenv.models.slot_cache import SlotCache, cache_argument
from tokenenv.models.weight_watch import WeightWatch

__all__ = ["SlotDecoder"]

_ARRAYS = ("seen", "lengths", "starts")
"""What is known of the slots' sequences, in arrays of numpy."""


class SlotDecoder:
    """Follows N observations of the token MDP with one forward per new token.

    The decoder is a cache and nothing else: it compares every observation with the last one of that
    slot. One more token is a decode step, the same observation is answered from memory, anything
    else refills the slot. So it can be dropped at any time without changing a result, and it drops
    itself when the weights of the trunk have changed (see `WeightWatch`).

    On a GPU the decode step is a CUDA graph, one per bucket of columns. A graph reads the weights
    at fixed addresses: weights changed in place need no new capture, moved ones do. A model that
    can't be captured runs eagerly, with one line in the log.

    Args:
        model: a transformers model with a trunk.
        num_slots: N.
        width: P+T, the columns of an observation. Its tokens are contiguous, so the end of the
            prompt doesn't matter.
        capture: device → the `StepCapture` of the decode step, None for eager steps:
            `graph_capture` (CUDA graphs, on a CPU none) or `no_capture`.

    Raises:
        ValueError: the architecture mixes attention kinds that the cache doesn't support, or its
            forward takes no cache. `check_cached_step` tests everything else.
    """

    def __init__(
        self,
        model: Any,
        num_slots: int,
        width: int,
        capture: Callable[[torch.device], StepCapture | None] = graph_capture,
    ) -> None:
        self.model = model
        self.num_slots = num_slots
        self.width = width
        self.forwards = 0
        self._capture = capture
        self._steps = CapturedSteps()
        self._adopt(model.base_model)
        self._slots = np.arange(num_slots)
        self._is_same = np.empty((num_slots, width), dtype=bool)
        self._made_for: tuple[Any, ...] = ()
        self._cache: SlotCache
        self._hidden: torch.Tensor | None = None
        self.drop()

    def _adopt(self, trunk: Any) -> None:
        """Follow a trunk: that of the model, or its replacement."""
        self.trunk = trunk
        config = self.model.config.get_text_config()
        self._windows = attention_windows(config)
        self._num_layers = int(config.num_hidden_layers)
        self._cache_argument = cache_argument(trunk)
        self._mode = sampling_mode(trunk)
        self._weights = WeightWatch(trunk)

    def drop(self) -> None:
        """Invalidate the cache.

        Memory and captured steps stay for the next call, which checks whether they still fit.
        """
        self._is_current = False

    def refill(self) -> None:
        """Let the next call prefill all slots in one forward, as after a reset of all episodes."""
        if self._is_current:
            self._lengths[:] = 0

    def fork(self) -> SlotDecoder:
        """A decoder that has seen the same sequences and goes on apart from this one.

        The model is shared, keys and values are copied: the next token costs one decode step, as it
        would here. On a GPU the copy's steps run eagerly, as `eager_capture` says.
        """
        twin = copy.copy(self)
        twin._is_same = np.empty_like(self._is_same)
        twin._weights = copy.copy(self._weights)  # it replaces its lists and never changes them
        twin._capture, twin._steps = eager_capture(self._capture), self._steps.fork()
        if not self._is_current:
            twin._made_for = ()  # its first call allocates memory of its own
            return twin
        for name in ("_seen", "_lengths", "_starts"):
            setattr(twin, name, getattr(self, name).copy())
        with torch.inference_mode(False):  # as where they were made
            twin._hidden = None if self._hidden is None else self._hidden.clone()
        twin._cache, twin._inputs = self._cache.fork(), StepInputs(self.num_slots, self._device)
        return twin

    def state_dict(self) -> dict[str, Any]:
        """What the decoder holds, as arrays; empty where it would begin anew.

        A cache that is filled again has other last bits than one that grew token by token.
        """
        if not self._is_current or self._hidden is None:
            return {}
        arrays = {name: getattr(self, f"_{name}").copy() for name in _ARRAYS}
        columns = int(self._lengths.max())
        return {**arrays, "hidden": self._hidden.clone(), "cache": self._cache.state_dict(columns)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what `state_dict` gave of a decoder of the same model, slots and width."""
        self.drop()
        if not state:
            return
        self._reset()
        for name in _ARRAYS:
            setattr(self, f"_{name}", np.array(state[name]))
        with torch.inference_mode(False):
            if self._hidden is None:
                self._hidden = state["hidden"].to(self._device, copy=True)
            else:  # a captured step writes to this very tensor
                self._hidden.copy_(state["hidden"])
        self._cache.load_state_dict(state["cache"], self._device)
        self._is_current = True

    @torch.no_grad()
    def hidden_states(self, observations: np.ndarray, thorough: bool = False) -> torch.Tensor:
        """The trunk's last hidden state at every s_t.

        Args:
            observations: (N, P+T) int64.
            thorough: read all weights to detect changes; see `WeightWatch`.

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
        self._is_current = False  # an exception below invalidates the cache
        is_decode, refilled = self._compare(observations)
        if len(refilled):
            self._prefill(observations, refilled)
        if is_decode.any():
            self._decode(is_decode)
        self._is_current = True
        assert self._hidden is not None
        return self._hidden

    def _reset(self) -> None:
        """Empty all slots; reuse the memory if neither weights nor autocast have moved."""
        self._seen = np.full((self.num_slots, self.width), NO_TOKEN, dtype=np.int64)
        self._lengths = np.zeros(self.num_slots, dtype=np.int64)
        self._starts = np.zeros(self.num_slots, dtype=np.int64)
        self._device = device = self.trunk.device
        self._autocast = autocast_state(device.type)
        weights = chain(self.trunk.parameters(), self.trunk.buffers())
        made_for = (self._autocast, storage_addresses(weights))
        if made_for == self._made_for:
            # Masking does not remove NaNs: clear what diverged weights may have left.
            self._cache.reset()
            return
        self._made_for = made_for
        capture = self._capture(device) if self._steps.works else None
        self._steps.reset(capture)
        # One more column: the scratch column, written by slots without a new token.
        columns = self.width + 1 if capture is None else bucket_width(self.width + 1)
        self._cache = SlotCache(self._num_layers, self.num_slots, columns)
        self._hidden = None
        self._inputs = StepInputs(self.num_slots, device)
        with torch.inference_mode(False):
            self._rows = torch.arange(self.num_slots, device=device)[:, None]  # (N, 1)

    def _compare(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Update the sequences of the slots by (N, P+T) observations.

        Returns:
            (N,) bool, the slots with exactly one new token; and (r,) int64, the r slots with any
            other change.
        """
        ends = self._starts + self._lengths  # (N,), the column after the last token
        newest = observations[self._slots, np.minimum(ends, self.width - 1)]  # (N,)
        is_decode = (newest != NO_TOKEN) & (ends < self.width) & (self._lengths > 0)  # (N,)
        grown = np.flatnonzero(is_decode)  # (slots with a new token,)
        self._seen[grown, ends[grown]] = newest[grown]
        self._lengths[grown] += 1
        is_same = np.equal(observations, self._seen, out=self._is_same)  # (N, P+T)
        if is_same.all() and self._lengths.all():  # nearly always, and cheaper than row by row
            return is_decode, np.empty(0, dtype=np.int64)
        is_known = is_same.all(axis=1) & (self._lengths > 0)  # (N,)
        refilled = np.flatnonzero(~is_known)  # (r,)
        self._seen[refilled] = observations[refilled]  # (r, P+T)
        is_token = observations[refilled] != NO_TOKEN  # (r, P+T)
        self._starts[refilled] = is_token.argmax(axis=1)  # (r,), column of the first token
        self._lengths[refilled] = is_token.sum(axis=1)  # (r,)
        return is_decode & is_known, refilled

    def _prefill(self, observations: np.ndarray, slots: np.ndarray) -> None:
        """Refill r slots by one forward over their whole sequences, padded on the right."""
        # (r, q) and (r,), joined to (r, q+2) for a single transfer.
        sequences, lengths = pad_right([row[row != NO_TOKEN] for row in observations[slots]])
        packed = to_device(np.column_stack([sequences, slots, lengths - 1]), self._device)
        tokens, rows, last = packed[:, :-2], packed[:, -2], packed[:, -1:]  # (r, q), (r,), (r, 1)
        columns = torch.arange(tokens.shape[1], device=self._device)  # (q,)
        columns = columns.expand(len(slots), -1)  # (r, q)
        self._cache.write_at(rows[:, None], columns, None)
        self.forwards += 1
        hidden = self._forward(tokens, columns, None)  # (r, q, h)
        # Index (r, 1, 1) broadcasts over h: (r, q, h) → (r, 1, h) → (r, h).
        last_hidden = hidden.take_along_dim(last[:, :, None], dim=1)[:, 0]
        if self._hidden is None:
            with torch.inference_mode(False):
                shape = (self.num_slots, last_hidden.shape[1])  # (N, h)
                self._hidden = last_hidden.new_zeros(shape)
        self._hidden[rows] = last_hidden  # (r, h)

    def _decode(self, is_decode: np.ndarray) -> None:
        """Decode a token in the slots of (N,) `is_decode`; others write to the scratch column."""
        newest = self._seen[self._slots, self._starts + self._lengths - 1]  # (N,), the last tokens
        positions = np.where(is_decode, self._lengths - 1, 0)  # (N,)
        self._inputs.upload(
            np.where(is_decode, newest, 0), positions, np.where(is_decode, positions, self.width)
        )
        self.forwards += 1
        filled = int(positions.max()) + 1  # columns that hold tokens
        width = bucket_width(filled)
        if not self._steps.run(width, partial(self._step, width)):
            self._step(filled)

    def _step(self, width: int) -> None:
        """The decode step on the device; it neither waits for the host nor depends on it."""
        inputs = self._inputs  # tokens, positions and columns are (N, 1)
        # (N, 1, 1, width), for each layer type where there are several
        masks = attention_masks(inputs.positions, width, self._windows, self._cache.dtype)
        self._cache.write_at(self._rows, inputs.columns, width)
        hidden = self._forward(inputs.tokens, inputs.positions, masks)[:, 0]  # (N, 1, h) → (N, h)
        assert self._hidden is not None
        is_decode = inputs.columns < self.width  # (N, 1), broadcast over h; false: scratch column
        torch.where(is_decode, hidden, self._hidden, out=self._hidden)  # (N, h)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any) -> torch.Tensor:
        """(B, q, h) hidden states of (B, q) tokens at (B, q) positions, through the cache."""
        with self._mode():
            return self.trunk(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
                **{self._cache_argument: self._cache},
            ).last_hidden_state
