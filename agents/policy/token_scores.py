"""Log-probabilities and entropies from hidden states, with the logits of one chunk at a time.

Autograd would store the (n, V) logits, their softmax and the gradients of both. Here one function
computes the output layer, the softmax and the gather together, chunk by chunk. Its backward pass
needs one (n, V) tensor where that is small, and none where it is large: then it computes the logits
of each chunk again. The gradients are exact in both cases:

    ∂ log p_a / ∂z = 1_a − p          ∂H / ∂z = −p · (log p + H)

Axes: `n` states, `h` hidden size, `V` the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tokenenv.models import GPU_FACTOR, tempered_logits

__all__ = ["CHUNK_LOGITS", "KEPT_LOGITS", "score_tokens", "scores_of_logits"]

CHUNK_LOGITS = 2**22
"""Logits of one chunk: 16 MiB of float32; on a GPU `GPU_FACTOR` times as many."""

KEPT_LOGITS = 2**24
"""At most so many log-probabilities (64 MiB) are saved for the backward pass, else none; on a GPU
`GPU_FACTOR` times as many."""

_MULTIPLIES_INTO_FLOAT32 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether `torch.mm` takes `out_dtype`, which it does on GPUs alone."""


def score_tokens(
    model: Any,
    hidden: torch.Tensor,
    actions: torch.Tensor,
    temperature: float,
    entropy_needs_gradient: bool = True,
    chunk_factor: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `actions` and entropies at hidden states, with gradient.

    Under autocast the backward pass multiplies matrices in autocast's precision; logits and softmax
    are float32 at least.

    Args:
        model: the causal LM whose output layer is applied.
        hidden: (n, h) last hidden states of its trunk.
        actions: (n,) int64.
        temperature: divides the logits.
        entropy_needs_gradient: whether the entropies carry gradient.
        chunk_factor: multiplies the logits of a chunk; `GPU_FACTOR` on a GPU and 1 elsewhere unless
            given.

    Returns:
        (n,) log-probabilities, (n,) entropies in nats.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or getattr(model.config, "final_logit_softcapping", None):
        logits = tempered_logits(model, hidden, temperature)
        return scores_of_logits(logits, actions, entropy_needs_gradient)
    factor = chunk_factor or (GPU_FACTOR if hidden.is_cuda else 1)
    small = len(hidden) * len(layer.weight) <= KEPT_LOGITS * factor
    saves_log_probs = small and torch.is_grad_enabled()  # off inside of the function, always
    return _TokenScores.apply(
        hidden,
        layer.weight,
        layer.bias,
        actions,
        temperature,
        entropy_needs_gradient,
        saves_log_probs,
        CHUNK_LOGITS * factor,
    )


def scores_of_logits(
    logits: torch.Tensor, actions: torch.Tensor, entropy_needs_gradient: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `score_tokens`, from (n, V) logits that were divided by the temperature, by autograd."""
    log_normalizer = torch.logsumexp(logits, dim=-1)  # (n,)
    log_probs = logits.gather(-1, actions[:, None]).squeeze(-1) - log_normalizer  # (n,)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_needs_gradient):
        probabilities = torch.exp(logits - log_normalizer[:, None])  # (n, V)
        entropies = log_normalizer - (probabilities * logits).sum(dim=-1)  # (n,)
    return log_probs, entropies


class _TokenScores(torch.autograd.Function):
    """(n,) log-probabilities and (n,) entropies from (n, h) hidden states, m states at a time.

    The last arguments say whether the (m, V) log-probabilities of every chunk are saved for the
    backward pass, or computed again in it, and how many logits a chunk has. Gradients go to
    hidden states, weight and bias.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        actions: torch.Tensor,
        temperature: float,
        entropy_needs_gradient: bool,
        saves_log_probs: bool,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        ctx.narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        ctx.temperature, ctx.entropy_needs_gradient = temperature, entropy_needs_gradient
        ctx.rows = max(1, chunk // len(weight))
        log_probs, entropies, saved_log_probs = [], [], []
        with torch.autocast(device, enabled=False):
            layer = _Layer(weight, bias, temperature, ctx.narrow)
            for states, chunk_actions in zip(
                hidden.split(ctx.rows), actions.split(ctx.rows), strict=True
            ):
                chunk_log_probs = layer.log_softmax(states)  # (m, h) → (m, V)
                chosen_log_probs = chunk_log_probs.gather(-1, chunk_actions[:, None])  # (m, 1)
                log_probs.append(chosen_log_probs.squeeze(-1))  # (m,)
                entropies.append(-(chunk_log_probs.exp() * chunk_log_probs).sum(dim=-1))  # (m,)
                if saves_log_probs:
                    saved_log_probs.append(chunk_log_probs)
        entropy = torch.cat(entropies)  # (n,)
        if not entropy_needs_gradient:
            ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(hidden, weight, bias, actions, entropy, *saved_log_probs)
        return torch.cat(log_probs), entropy  # (n,), (n,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, actions, entropy, *saved_log_probs = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wide = torch.promote_types(weight.dtype, torch.float32)  # sums over chunks
        narrow = ctx.narrow or weight.dtype
        narrow_weight = weight.to(narrow)
        # Gradients of the loss by the hidden states (n, h), the weight (V, h) and the bias (V,).
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        to_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            layer = None if saved_log_probs else _Layer(weight, bias, ctx.temperature, ctx.narrow)
            for index, start in enumerate(range(0, len(hidden), ctx.rows)):
                part = slice(start, start + ctx.rows)
                chunk_log_probs = (
                    saved_log_probs[index] if layer is None else layer.log_softmax(hidden[part])
                )
                entropy_gradient = gradients[1][part] if ctx.entropy_needs_gradient else None
                to_logits = _to_logits(
                    chunk_log_probs,
                    actions[part],
                    entropy[part],
                    gradients[0][part],
                    entropy_gradient,
                ).div_(ctx.temperature)  # (m, V)
                if to_bias is not None:
                    to_bias += to_logits.sum(dim=0)  # (V,)
                to_logits = to_logits.to(narrow)
                if to_hidden is not None:
                    to_hidden[part] = to_logits @ narrow_weight  # (m, V) @ (V, h) → (m, h)
                if to_weight is not None:
                    to_weight += to_logits.T @ hidden[part].to(narrow)  # (V, m) @ (m, h) → (V, h)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if bias is None or to_bias is None else to_bias.to(bias.dtype),
            *(None,) * 5,
        )


class _Layer:
    """The output layer with log-softmax, its weight converted once for all chunks.

    Args:
        weight: (V, h).
        bias: (V,) or None.
        temperature: divides the logits.
        narrow: autocast's dtype, or None. GPUs then multiply in it and add up in float32; CPUs
            multiply in the dtype of the weights.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        temperature: float,
        narrow: torch.dtype | None,
    ) -> None:
        is_narrow = narrow is not None and weight.is_cuda and weight.dtype == torch.float32
        self.weight = weight.to(narrow) if is_narrow else weight
        self.adds_up_wide = is_narrow and _MULTIPLIES_INTO_FLOAT32
        self.bias, self.temperature = bias, temperature

    def log_softmax(self, states: torch.Tensor) -> torch.Tensor:
        """(m, V) log-probabilities, float32 at least, at (m, h) hidden states."""
        states, transposed = states.to(self.weight.dtype), self.weight.T  # (m, h), (h, V)
        if self.adds_up_wide:
            logits = torch.mm(states, transposed, out_dtype=torch.float32)
        else:
            logits = states @ transposed  # (m, V)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.bias is not None:
            logits = logits + self.bias
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1)


def _to_logits(
    log_probs: torch.Tensor,
    actions: torch.Tensor,
    entropy: torch.Tensor,
    log_prob_gradient: torch.Tensor,
    entropy_gradient: torch.Tensor | None,
) -> torch.Tensor:
    """(m, V) gradient of the tempered logits, from (m, V) log-probabilities and (m,) gradients."""
    probabilities = log_probs.exp()  # (m, V)
    if entropy_gradient is None:
        gradient = probabilities.mul_(-log_prob_gradient[:, None])
    else:
        pull = (
            (log_probs + entropy[:, None])
            .mul_(entropy_gradient[:, None])
            .add_(log_prob_gradient[:, None])
        )
        gradient = probabilities.mul_(pull.neg_())
    return gradient.scatter_add_(-1, actions[:, None], log_prob_gradient[:, None])
