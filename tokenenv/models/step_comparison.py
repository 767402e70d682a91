"""A model's cached steps and padded batches against its plain forward, and against its rounding.

The effect of rounding on the outputs of a model depends on its weights, its depth and its dtype. So
it is measured: the same forward, with every module's result moved by about one rounding, differs by
as much as two right ways of computing it may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.decode_step import no_capture
from tokenenv.models.forward import output_logits, trunk_hidden_states
from tokenenv.models.packing import pad_right
from tokenenv.models.slot_decoder import SlotDecoder

__all__ = ["Fault", "StepComparison", "makes_logits"]

_LEAST_TOLERANCE = 1e-4
"""Least tolerance, in units of the outputs, or a few roundings of the dtype."""

_LARGEST_TOLERANCE = 1e-2
"""Largest tolerance, however badly conditioned a model is, in the same units."""

_TIMES_ROUNDING = 4.0
"""A difference may be larger than the measured rounding by this factor: right models of the tests
reach 1.4 in float32, where kernels round inside of their sums."""

_TIMES_HALF_ROUNDING = 1.5
"""The same in half precision, where sums are float32 and only results are rounded: they reach 0.4
in float16, 0.25 in bfloat16."""

_MEAN_KL = {torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""In half precision, besides: the mean KL of the cached from the plain distribution, in nats."""

_POSITIONS_AT_ONCE = 32
"""Positions whose log-probabilities of all tokens are in memory at once."""


def makes_logits(model: Any) -> bool:
    """Whether a model has an output layer; a critic may have lost it."""
    return hasattr(model.get_output_embeddings(), "weight")


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault of a model.

    Attributes:
        reason: a clause on the behaviour of the model.
        extent: a clause on how large the difference is; empty where there was an error instead.
    """

    reason: str
    extent: str = ""


class _Gap:
    """The difference between two ways of computing outputs, over everything added so far.

    Args:
        has_logits: whether they are log-probabilities; hidden states otherwise.

    Attributes:
        largest: absolute difference; NaN where any is.
    """

    def __init__(self, has_logits: bool) -> None:
        self.largest = 0.0
        self._has_logits = has_logits
        self._kl = 0.0
        self._rows = 0

    def add(self, outputs: torch.Tensor, expected: torch.Tensor) -> None:
        """Take in (n, V) log-probabilities, or (n, h) hidden states."""
        if outputs.shape != expected.shape:
            raise ValueError(f"{tuple(outputs.shape)} outputs in place of {tuple(expected.shape)}")
        difference = outputs - expected
        self.largest = float(np.maximum(self.largest, float(difference.abs().max())))
        if self._has_logits:
            self._kl -= float((expected.exp() * difference).sum(-1).double().sum())
        self._rows += len(expected)

    @property
    def mean_kl(self) -> float:
        """The mean KL of the outputs from those expected, where they are log-probabilities."""
        return self._kl / max(1, self._rows)


class StepComparison:
    """One model, three sequences of different length, and its plain forward of each alone.

    Args:
        model: the model to check.
        prompt: P.
        response: T.
    """

    def __init__(self, model: Any, prompt: int, response: int) -> None:
        self.model = model
        self.width = prompt + response
        self.has_logits = makes_logits(model)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        rng = np.random.default_rng(0)
        self.prompts = [prompt, -(-prompt // 2), 1]
        self.rows = [rng.integers(0, vocabulary, size=n + response) for n in self.prompts]
        self.states = [self._states(row) for row in self.rows]
        self._largest_output = 0.0

    def fault(self, cached: bool) -> Fault | None:
        """The fault of the model, or None.

        Args:
            cached: whether to look at the cached step, too.
        """
        heads = self._heads()
        if not np.isfinite(self._largest_output):
            return None  # weights that have diverged: sampling says so
        self._tolerance = self._measured_tolerance()
        looks: list[tuple[Callable[[], _Gap], str]] = [
            (lambda: heads, "does more to its logits than tokenenv knows"),
            (
                self._prefixes,
                "makes something else of a token when others follow it: it is not causal, or its "
                "positions follow the longest sequence",
            ),
            (self._padded, "makes something else of a sequence in a batch"),
        ]
        if cached:
            reason = (
                "makes something else of a sequence token by token: it derives masks, positions "
                "or frequencies from its cache or from the longest sequence"
            )
            looks.append((self._decoded, reason))
        for look, reason in looks:
            gap = look()
            if not self._is_rounding(gap):
                return Fault(reason, self._extent(gap))
        return None

    # Outputs -------------------------------------------------------------------------------------

    def _states(self, row: np.ndarray) -> torch.Tensor:
        """(L, h) hidden states of one sequence, by a plain forward of the trunk."""
        return trunk_hidden_states(self.model, self._tokens(row))[0]

    def _tokens(self, row: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(row, device=self.model.device)[None]

    def _outputs(self, states: torch.Tensor) -> torch.Tensor:
        """(n, V) log-probabilities of hidden states; those of a model without logits as they are.

        float32, or float64 where the model is.
        """
        if self.has_logits:
            return torch.log_softmax(output_logits(self.model, states), -1)
        return states if states.dtype == torch.float64 else states.float()

    def _compare(self, gap: _Gap, states: torch.Tensor, expected: torch.Tensor) -> None:
        """Add the outputs of (L, h) hidden states, a few at a time."""
        if states.shape != expected.shape:
            raise ValueError(f"{tuple(states.shape)} states in place of {tuple(expected.shape)}")
        pieces = (states.split(_POSITIONS_AT_ONCE), expected.split(_POSITIONS_AT_ONCE))
        for some, plain in zip(*pieces, strict=True):
            gap.add(self._outputs(some), self._outputs(plain))

    def _model_outputs(self, row: np.ndarray) -> torch.Tensor:
        """(L, V) logits by the forward of transformers; (L, h) hidden states where it has none."""
        if not self.has_logits:
            return self._states(row)
        return self.model(input_ids=self._tokens(row), use_cache=False).logits[0]

    # Comparisons ---------------------------------------------------------------------------------

    def _heads(self) -> _Gap:
        """The outputs of the model against those of its hidden states; records the largest."""
        gap = _Gap(self.has_logits)
        for row, states in zip(self.rows, self.states, strict=True):
            outputs = self._model_outputs(row)
            if len(outputs) != len(states):
                raise ValueError(f"{len(outputs)} outputs of {len(states)} tokens")
            for i in range(0, len(row), _POSITIONS_AT_ONCE):
                piece = slice(i, i + _POSITIONS_AT_ONCE)
                expected = (
                    outputs[piece] if outputs.dtype == torch.float64 else outputs[piece].float()
                )
                if self.has_logits:
                    expected = torch.log_softmax(expected, -1)
                largest = float(expected.abs().max())
                self._largest_output = float(np.maximum(self._largest_output, largest))
                gap.add(self._outputs(states[piece]), expected)
        return gap

    def _prefixes(self) -> _Gap:
        gap, row = _Gap(self.has_logits), self.rows[0]
        for length in sorted({1, len(row) // 2, len(row) - 1} - {0}):
            self._compare(gap, self._states(row[:length])[-1:], self.states[0][length - 1 : length])
        return gap

    def _padded(self) -> _Gap:
        gap = _Gap(self.has_logits)
        tokens, _ = pad_right(self.rows)
        padded = trunk_hidden_states(self.model, torch.as_tensor(tokens, device=self.model.device))
        for states, plain in zip(padded, self.states, strict=True):
            self._compare(gap, states[: len(plain)], plain)
        return gap

    def _decoded(self) -> _Gap:
        gap = _Gap(self.has_logits)
        decoder = SlotDecoder(self.model, len(self.rows), self.width, capture=no_capture)
        for step, observations in enumerate(self._observations()):
            ends = [n + step - 1 for n in self.prompts]
            plain = torch.stack([s[e] for s, e in zip(self.states, ends, strict=True)])
            self._compare(gap, decoder.hidden_states(observations), plain)
        return gap

    def _observations(self) -> Iterator[np.ndarray]:
        """(3, P+T), one after the other, as an environment would show them."""
        shown = np.full((len(self.rows), self.width), NO_TOKEN, dtype=np.int64)
        start = self.prompts[0]
        for row, sequence, length in zip(shown, self.rows, self.prompts, strict=True):
            row[start - length : start] = sequence[:length]
        yield shown
        for step in range(self.width - start):
            for row, sequence, length in zip(shown, self.rows, self.prompts, strict=True):
                row[start + step] = sequence[length + step]
            yield shown

    # Rounding ------------------------------------------------------------------------------------

    @property
    def _unit(self) -> float:
        """The unit of outputs: nats, or the largest hidden state.

        Where log-probabilities reach beyond -20 it grows with them, as their rounding does.
        """
        if self.has_logits:
            return max(1.0, self._largest_output / 20.0)
        return max(self._largest_output, float(np.finfo(np.float32).tiny))

    def _measured_tolerance(self) -> float:
        """A few times the rounding of the model, within bounds that follow unit and dtype."""
        gap = _Gap(self.has_logits)
        with _rounded_once_more(self.model):
            states = self._states(self.rows[0])
        for i in range(0, len(states), _POSITIONS_AT_ONCE):
            piece = slice(i, i + _POSITIONS_AT_ONCE)
            with _rounded_once_more(self.model):
                moved = self._outputs(states[piece])
            gap.add(moved, self._outputs(self.states[0][piece]))
        times = _TIMES_HALF_ROUNDING if self.model.dtype in _MEAN_KL else _TIMES_ROUNDING
        eps = torch.finfo(self.model.dtype).eps
        least = max(_LEAST_TOLERANCE, 8 * eps) * self._unit
        most = max(_LARGEST_TOLERANCE, 256 * eps) * self._unit
        return float(np.clip(np.nan_to_num(times * gap.largest, nan=most), least, most))

    def _is_rounding(self, gap: _Gap) -> bool:
        limit = _MEAN_KL.get(self.model.dtype)
        if limit is not None and self.has_logits and not abs(gap.mean_kl) <= limit:
            return False
        return gap.largest <= self._tolerance

    def _extent(self, gap: _Gap) -> str:
        if self.has_logits:
            return f", by {gap.largest:.2g} nats at the most"
        return f", by {gap.largest / self._unit:.2g} of its largest hidden state"


@contextlib.contextmanager
def _rounded_once_more(model: nn.Module) -> Iterator[None]:
    """Within the block, results of every innermost module are moved by an ulp or so."""
    generator = torch.Generator().manual_seed(0)
    innermost = [module for module in model.modules() if not list(module.children())]
    hook = partial(_rounded, generator)
    handles = [module.register_forward_hook(hook) for module in innermost]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded(generator: torch.Generator, _module: nn.Module, _inputs: Any, result: Any) -> Any:
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return result
    signs = torch.randint(0, 2, result.shape, generator=generator, dtype=torch.int8) * 2 - 1
    eps = torch.finfo(result.dtype).eps
    return result * (1.0 + eps * signs.to(result.device)).to(result.dtype)
