"""The stages of a training as computations of fake tensors, which say how much they would hold.

Axes: `B` sequences of `L` tokens, `s` states at the end of each, `N` slots.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agents.plan.live_memory import LiveMemory
from agents.plan.models import bytes_of, materialise, weights
from agents.policy import score_tokens
from tokenenv.models import (
    GPU_FACTOR,
    PackedSequences,
    SlotCache,
    attention_masks,
    attention_windows,
    bucket_width,
    cache_argument,
    computing_in,
    hidden_states,
    log_softmax,
    sample_tokens,
)

__all__ = ["Decoding", "Forward", "Sampling", "UpdateMemory", "update_memory"]


@dataclass(frozen=True, slots=True)
class UpdateMemory:
    """What a micro-batch holds at its peak, in bytes, besides weights and optimiser.

    Attributes:
        gradients: of the weights.
        activations: kept by the forward passes for the backward passes, and what these hold.
        logits: over the vocabulary, with probabilities and gradients of the same size.
    """

    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.gradients + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class Decoding:
    """What sampling holds, in bytes, besides weights.

    Attributes:
        cache: keys and values.
        work: the rest, at the peak: activations, logits and probabilities.
    """

    cache: int
    work: int


def update_memory(
    models: list[Any],
    sequences: int,
    length: int,
    states: int,
    device: str,
    precision: str,
    accumulates: bool,
) -> UpdateMemory:
    """The peak of a micro-batch: forward passes, losses, backward pass.

    Args:
        models: the actor, and the trunk of a separate critic where there is one; on the meta
            device. Copies of them are traced.
        sequences: B.
        length: L.
        states: s.
        device: `"cpu"` or `"cuda"`, whose chunks of logits are larger.
        precision: of the passes.
        accumulates: whether there are gradients of another micro-batch already.
    """
    with _fake(models) as (actor, *critics):
        trained = [w for model in (actor, *critics) for w in weights(model, trained=True)]
        for model in (actor, *critics):
            model.train()
        vocabulary = actor.get_output_embeddings().weight.shape[0]
        live = LiveMemory(_tensors(actor, *critics), vocabulary)
        with live:
            if accumulates:
                for weight in trained:
                    weight.grad = torch.empty_like(weight)
                live.gradients = bytes_of(trained)
            else:
                live.watch(trained)
            packed, tokens = _packed(sequences, length, states)
            with _autocast(device, precision):
                hidden = hidden_states(actor, packed)
                values = hidden_states(critics[0], packed) if critics else hidden
                factor = GPU_FACTOR if device == "cuda" else 1
                scores = score_tokens(actor, hidden, tokens, 1.0, False, factor)
                loss = scores[0].sum() + values.float().sum()
            del hidden, values, scores
            loss.backward()
    rest = live.peak - live.gradients_at_peak
    return UpdateMemory(live.gradients_at_peak, rest - live.logits_at_peak, live.logits_at_peak)


class Forward:
    """The peak of a forward pass of a trunk without gradient, for any number of sequences.

    Memory is affine in that number: it is traced for two.

    Args:
        model: on the meta device.
        length: L.
    """

    def __init__(self, model: Any, length: int) -> None:
        self._peak = _Affine(*(_forward_bytes(model, count, length) for count in _TRACED))

    def bytes(self, sequences: int) -> int:
        """Bytes at the peak, with B sequences."""
        return self._peak.at(sequences)


def _forward_bytes(model: Any, sequences: int, length: int) -> int:
    with _fake([model]) as (traced,), torch.no_grad():
        live = LiveMemory(_tensors(traced))
        with live:
            tokens = torch.zeros((sequences, length), dtype=torch.int64)
            traced.base_model(input_ids=tokens, use_cache=False)
    return live.peak


class Sampling:
    """What sampling holds, for any number of slots: traced for two, since it is affine in it.

    Args:
        model: a causal LM on the meta device.
        prompt: P.
        tokens: P + T.
        device: `"cpu"` or `"cuda"`, whose caches are a little wider.
    """

    def __init__(self, model: Any, prompt: int, tokens: int, device: str) -> None:
        traced = [_decoding(model, slots, prompt, tokens, device) for slots in _TRACED]
        self._cache, self._prefill, self._last_step = (
            _Affine(*values) for values in zip(*traced, strict=True)
        )

    def decoding(self, slots: int) -> Decoding:
        """What N slots hold."""
        work = max(self._prefill.at(slots), self._last_step.at(slots))
        return Decoding(self._cache.at(slots), work)


_TRACED = (2, 4)
"""Sequences, or slots, of the two traces that all numbers of them follow from."""


class _Affine:
    """The line through two values at `_TRACED`."""

    def __init__(self, first: int, second: int) -> None:
        low, high = _TRACED
        self._slope = (second - first) / (high - low)
        self._start = first - self._slope * low

    def at(self, count: int) -> int:
        return max(0, round(self._start + self._slope * count))


def _decoding(
    model: Any, slots: int, prompt: int, tokens: int, device: str
) -> tuple[int, int, int]:
    """Bytes of the cache; what else the prompts of all slots in one pass hold; and the last step.

    The cache holds nothing else than its keys and values.
    """
    columns = bucket_width(tokens + 1) if device == "cuda" else tokens + 1
    with _fake([model]) as (traced,), torch.no_grad():
        config = traced.config.get_text_config()
        rows = torch.arange(slots)[:, None]
        cache = SlotCache(int(config.num_hidden_layers), slots, columns)
        live = LiveMemory(_tensors(traced))
        with live:
            every = torch.arange(prompt).expand(slots, -1)
            cache.write_at(rows, every, None)
            _step(traced, cache, torch.zeros_like(every), every, None)
            layers: list[Any] = cache.layers
            held = bytes_of([t for layer in layers for t in (layer.keys, layer.values)])
            prefill = live.peak - held
            live.start_again()
            newest = torch.full((slots, 1), tokens - 1)
            masks = attention_masks(newest, tokens, attention_windows(config), cache.dtype)
            cache.write_at(rows, newest, tokens)
            hidden = _step(traced, cache, newest, newest, masks)[:, -1]
            sample_tokens(log_softmax(traced, hidden, 1.0))
    return held, prefill, live.peak - held


def _step(model: Any, cache: SlotCache, tokens: Any, positions: Any, mask: Any) -> torch.Tensor:
    trunk = model.base_model
    return trunk(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=mask,
        use_cache=True,
        **{cache_argument(trunk): cache},
    ).last_hidden_state


@contextlib.contextmanager
def _fake(models: list[Any]) -> Iterator[list[Any]]:
    """Copies of models of the meta device as fake ones of a CPU, and fake tensors from here on."""
    copies = copy.deepcopy(models)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shared: dict[int, torch.Tensor] = {}
        for model in copies:
            materialise(model, shared)
        yield copies


def _tensors(*models: Any) -> list[torch.Tensor]:
    return [t for model in models for t in (*model.parameters(), *model.buffers())]


@contextlib.contextmanager
def _autocast(device: str, precision: str) -> Iterator[None]:
    """Autocast of a device; on a CPU alone attention in bfloat16 is computed in float32."""
    if device == "cuda" and precision == "bfloat16":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    else:
        with computing_in(precision, "cpu"):
            yield


def _packed(sequences: int, length: int, states: int) -> tuple[PackedSequences, torch.Tensor]:
    """B sequences of L tokens with s states at the end of each, and (B·s,) actions."""
    rows = torch.arange(sequences).repeat_interleave(states)
    columns = torch.arange(length - states, length).repeat(sequences)
    tokens = torch.zeros((sequences, length), dtype=torch.int64)
    return PackedSequences(tokens, rows, columns), torch.zeros_like(rows)
