"""The policy gradient of single tokens in the output layer, in closed form, for models of any size.

With raw logits u = W·h + b, soft-capped to c·tanh(u/c) where the model does so, divided by the
temperature τ, and π their softmax:

    ∂ log π_a / ∂u = g = (e_a − π)·(1 − tanh²(u/c))/τ     ∂/∂W = g·hᵀ     ∂/∂b = g

so that the norm over the layer's weights is ‖g‖·‖h‖, or ‖g‖·√(‖h‖² + 1) with a bias. Where W is
tied to the input embedding, this is the gradient through its use as the output layer.

Axes: `n` tokens, `m` of a chunk, `h` hidden size, `V` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from agents.credit.states import TokenStates, logit_chunks
from agents.policy import LMActorCriticPolicy

__all__ = ["normalized_shares", "output_layer_norms", "output_layer_shares"]


MAX_WEIGHTS = 2**27
"""Weights of the output layer up to which shares are computed: 1 GiB of float64."""


@torch.no_grad()
def output_layer_norms(policy: LMActorCriticPolicy, states: TokenStates) -> np.ndarray:
    """(n,) float64 ‖∇ log π(a|s)‖ over weight and bias of the output layer."""
    if getattr(policy.actor.config, "final_logit_softcapping", None):
        norms = [
            gradients.norm(dim=-1) * inputs.norm(dim=-1)
            for gradients, inputs in _factors(policy, states)
        ]
        return torch.cat(norms).cpu().numpy()
    # ‖e_a − π‖² = (1 − π_a)² + Σ_{b≠a} π_b²: without g, which has a column for every token.
    actions = torch.as_tensor(states.actions, device=states.hidden.device)
    parts = []
    for part, logits in logit_chunks(policy, states.hidden):
        probabilities = torch.softmax(logits.double(), dim=-1)  # (m, V)
        index = actions[part, None]  # (m, 1)
        missed = 1.0 - probabilities.gather(-1, index).squeeze(-1)  # (m,)
        others = probabilities.scatter_(-1, index, 0.0).norm(dim=-1)  # (m,)
        parts.append(torch.hypot(missed, others) * _input_norms(policy, states.hidden[part]))
    return (torch.cat(parts) / policy.temperature).cpu().numpy()


def _input_norms(policy: LMActorCriticPolicy, hidden: torch.Tensor) -> torch.Tensor:
    """(m,) float64 ‖h‖ of (m, h) hidden states, or √(‖h‖² + 1) where the layer has a bias."""
    norms = hidden.double().norm(dim=-1)
    has_bias = getattr(policy.actor.get_output_embeddings(), "bias", None) is not None
    return torch.hypot(norms, torch.ones_like(norms)) if has_bias else norms


@torch.no_grad()
def output_layer_shares(
    policy: LMActorCriticPolicy, states: TokenStates, weights: np.ndarray
) -> np.ndarray:
    """(n,) float64 share of each token's policy term in their sum, in the output layer.

    With terms v_t = w_t·∇ log π(a_t|s_t) and their sum G, the share is ⟨v_t, G⟩/‖G‖²: the
    projection on the direction in which all of them together move. The shares add up to 1; one
    below 0 pulls against the others. NaN where the sum is 0, and for layers of more than
    `MAX_WEIGHTS` weights: G has their size, in float64.

    Args:
        policy: whose output layer it is.
        states: of the tokens.
        weights: (n,) w_t.
    """
    if policy.actor.get_output_embeddings().weight.numel() > MAX_WEIGHTS:
        return np.full(len(states.actions), np.nan)
    weight = torch.as_tensor(np.asarray(weights, dtype=np.float64), device=states.hidden.device)
    total: torch.Tensor | None = None  # (V, h), with the bias as a further column
    start = 0
    for gradients, inputs in _factors(policy, states):
        terms = gradients * weight[start : start + len(gradients), None]  # (m, V)
        if total is None:
            total = terms.new_zeros(terms.shape[1], inputs.shape[1])
        total.addmm_(terms.T, inputs)  # (V, m) @ (m, h) → (V, h)
        start += len(gradients)
    assert total is not None
    projections = [
        (gradients @ total * inputs).sum(dim=-1)  # (m, V) @ (V, h) → (m, h) → (m,)
        for gradients, inputs in _factors(policy, states)
    ]
    return normalized_shares((torch.cat(projections) * weight).cpu().numpy())


def normalized_shares(projections: np.ndarray) -> np.ndarray:
    """(n,) shares from (n,) projections ⟨v_t, G⟩, whose sum is ‖G‖²; NaN where that is 0."""
    squared = projections.sum()
    return projections / squared if squared > 0 else np.full(len(projections), np.nan)


def _factors(
    policy: LMActorCriticPolicy, states: TokenStates
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(m, V) g and (m, h) inputs of the layer, a 1 behind them where it has a bias; float64."""
    layer = policy.actor.get_output_embeddings()
    softcap = getattr(policy.actor.config, "final_logit_softcapping", None)
    actions = torch.as_tensor(states.actions, device=states.hidden.device)
    for part, logits in logit_chunks(policy, states.hidden):
        wide = logits.double()  # (m, V)
        gradients = -torch.softmax(wide, dim=-1)
        gradients.scatter_add_(
            -1, actions[part, None], torch.ones_like(gradients[:, :1])
        )  # e_a − π
        if softcap:
            gradients *= 1.0 - (wide * policy.temperature / softcap).square()
        inputs = states.hidden[part].double()  # (m, h)
        if getattr(layer, "bias", None) is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=-1)
        yield gradients / policy.temperature, inputs
