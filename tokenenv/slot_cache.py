"""A key-value cache with a position of its own per slot, and the decoder that keeps it up to date.

`N` episodes of different age share one batch (continuous batching): each occupies a slot, a new
token costs one forward of one token for all, and an episode that starts refills its own slot only.
Sequences are stored from column 0 of their slot, so positions are 0, 1, … as in a plain forward.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from tokenenv.episodes import NO_TOKEN
from tokenenv.language_model import pad_right

__all__ = ["SlotCache", "SlotDecoder"]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (N, heads, capacity + 1, size); the last column is scratch."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on the first forward, when heads, head size, dtype and device are known."""
        slots, columns = self.owner.num_slots, self.owner.capacity + 1
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (slots, states.shape[1], columns, states.shape[3])
            setattr(self, name, states.new_zeros(shape))
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, q, size) states where the owner says; return what attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, columns, width = self.owner.rows, self.owner.columns, self.owner.width
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
        return self.owner.capacity


class SlotCache(Cache):
    """N slots of `capacity` tokens each, through transformers' public cache interface.

    Args:
        num_layers: layers of the model.
        num_slots: N.
        capacity: tokens per slot.
    """

    def __init__(self, num_layers: int, num_slots: int, capacity: int) -> None:
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])
        self.num_slots = num_slots
        self.capacity = capacity
        self.rows: torch.Tensor
        self.columns: torch.Tensor
        self.width: int | None = None

    def aim(self, rows: torch.Tensor, columns: torch.Tensor, width: int | None) -> None:
        """Say where the next forward writes, (B, 1) slots and (B, q) columns, and how many it sees.

        `width=None` is a prefill: attention sees the forward's own tokens.
        """
        self.rows, self.columns, self.width = rows, columns, width


class SlotDecoder:
    """Follows N observations of the token MDP with one forward per new token.

    The decoder is a cache and nothing else: it compares every observation with the one that it has
    seen in that slot. One token more is a decode step, the same observation is answered from
    memory, anything else refills the slot. So it can be dropped at any time without changing a
    result.

    Args:
        model: a transformers model with a trunk; its weights must not change without `drop()`.
        num_slots: N.
        width: P+T, the columns of an observation. Its tokens are contiguous, so where the prompt
            ends need not be known.

    Raises:
        ValueError: the architecture mixes attention kinds that the cache can't follow.
    """

    def __init__(self, model: Any, num_slots: int, width: int) -> None:
        self.trunk = model.base_model
        self.num_slots = num_slots
        self.width = width
        config = model.config.get_text_config()
        self._mask_windows = _attention_windows(config, self.width)
        self._needs_float_mask = config._attn_implementation != "sdpa"
        self._num_layers = int(config.num_hidden_layers)
        self.forwards = 0
        self.drop()

    def drop(self) -> None:
        """Forget everything: call it when weights may have changed."""
        self._cache: SlotCache | None = None
        self._hidden: torch.Tensor | None = None
        self._seen = np.full((self.num_slots, self.width), NO_TOKEN, dtype=np.int64)
        self._lengths = np.zeros(self.num_slots, dtype=np.int64)
        self._starts = np.zeros(self.num_slots, dtype=np.int64)

    @torch.no_grad()
    def hidden_states(self, observations: np.ndarray) -> torch.Tensor:
        """The trunk's last hidden state at every s_t.

        Args:
            observations: (N, P+T) int64.

        Returns:
            (N, h): owned by the decoder and overwritten by the next call.
        """
        if self._cache is None:
            self._cache = SlotCache(self._num_layers, self.num_slots, self.width)
        is_token = observations != NO_TOKEN
        lengths = is_token.sum(axis=1)
        starts = is_token.argmax(axis=1)
        known = ((observations == self._seen) | (self._seen == NO_TOKEN)).all(axis=1)
        follows = known & (starts == self._starts) & (self._lengths > 0)
        steps = lengths - self._lengths
        is_decode = follows & (steps == 1)
        is_refill = ~(is_decode | (follows & (steps == 0)))
        if is_refill.any():
            self._prefill(observations, np.flatnonzero(is_refill), lengths)
        if is_decode.any():
            newest = observations[np.arange(self.num_slots), starts + lengths - 1]
            self._decode(newest, is_decode, lengths)
        self._seen[...] = observations
        self._starts, self._lengths = starts, lengths
        assert self._hidden is not None
        return self._hidden

    def _prefill(self, observations: np.ndarray, rows: np.ndarray, lengths: np.ndarray) -> None:
        assert self._cache is not None
        tokens, _ = pad_right([row[row != NO_TOKEN] for row in observations[rows]])
        device = self.trunk.device
        columns = torch.arange(tokens.shape[1], device=device).expand(len(rows), -1)
        slots = torch.as_tensor(rows, device=device)
        self._cache.aim(slots[:, None], columns, None)
        hidden = self._forward(torch.as_tensor(tokens, device=device), columns, None)
        last = torch.as_tensor(lengths[rows] - 1, device=device)
        picked = hidden[torch.arange(len(rows), device=device), last]
        if self._hidden is None:
            self._hidden = picked.new_zeros((self.num_slots, picked.shape[1]))
        self._hidden[slots] = picked

    def _decode(self, newest: np.ndarray, is_decode: np.ndarray, lengths: np.ndarray) -> None:
        """One token for the rows of `is_decode`; the others run along, into the scratch column."""
        assert self._cache is not None and self._hidden is not None
        device = self.trunk.device
        tokens = np.where(is_decode, newest, 0)
        positions = np.where(is_decode, lengths - 1, 0)
        columns = np.where(is_decode, positions, self.width)
        seen = int(positions.max()) + 1
        position_ids = torch.as_tensor(positions, device=device)[:, None]
        rows = torch.arange(self.num_slots, device=device)[:, None]
        self._cache.aim(rows, torch.as_tensor(columns, device=device)[:, None], seen)
        hidden = self._forward(
            torch.as_tensor(tokens, device=device)[:, None],
            position_ids,
            self._masks(position_ids, seen),
        )[:, 0]
        if is_decode.all():
            self._hidden = hidden
        else:
            index = torch.as_tensor(np.flatnonzero(is_decode), device=device)
            self._hidden[index] = hidden[index]

    def _masks(self, positions: torch.Tensor, seen: int) -> Any:
        """(N, 1, 1, seen) masks, one for all layers or one per layer type; true or 0.0: attend."""
        column = torch.arange(seen, device=positions.device)[None, :]
        masks = {}
        for layer_type, window in self._mask_windows.items():
            allowed = column <= positions
            if window is not None:
                allowed = allowed & (column > positions - window)
            mask = allowed[:, None, None, :]
            if self._needs_float_mask:
                dtype = self.trunk.dtype
                mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
                    ~mask, torch.finfo(dtype).min
                )
            masks[layer_type] = mask
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any) -> torch.Tensor:
        self.forwards += 1
        return self.trunk(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state


def _attention_windows(config: Any, width: int) -> dict[str, int | None]:
    """Layer type → sliding window (None: sees everything), for the layer types that a model has."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types:
        layer_types = {"sliding_attention"} if window else {"full_attention"}
    unknown = layer_types - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"{config.model_type} has layers of type {', '.join(sorted(unknown))}, which the slot "
            "cache can't follow; it knows full and sliding attention."
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(layer_types)}
