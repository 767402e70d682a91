"""The policy gradient of single tokens over all trainable parameters, by autograd.

For models of some millions of parameters: the gradient of one token has the size of the model.

Axes: `n` tokens, `m` of a chunk, `p` trainable parameters of the actor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents.credit.output_layer import normalized_shares
from agents.policy import LMActorCriticPolicy
from tokenenv.models import pack

__all__ = [
    "MAX_PARAMETERS",
    "check_size",
    "differentiable_log_probs",
    "exact_norms_and_shares",
    "token_gradients",
    "trainable",
]

MAX_PARAMETERS = 10_000_000
"""Largest number of trainable parameters for which exact gradients are computed."""

CHUNK = 2**25
"""Entries of the per-token gradients that live at once: 128 MiB of float32."""


def exact_norms_and_shares(
    policy: LMActorCriticPolicy,
    prefixes: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float64 ‖∇ log π(a|s)‖ and (n,) shares, as `output_layer_shares` defines them.

    Args:
        policy: whose actor's trainable parameters are meant.
        prefixes: B arrays of the token ids before each response.
        responses: B arrays of token ids, n in all.
        weights: (n,) w_t.

    Raises:
        ValueError: the actor has more than `MAX_PARAMETERS` trainable parameters.
    """
    check_size(policy)
    total = _sum_of_terms(policy, prefixes, responses, weights)  # (p,)
    norms, projections = [], []
    for gradients in token_gradients(policy, prefixes, responses):
        norms.append(gradients.double().norm(dim=-1))
        projections.append(gradients.double() @ total)
    shares = normalized_shares(torch.cat(projections).cpu().numpy() * weights)
    return torch.cat(norms).cpu().numpy(), shares


def check_size(policy: LMActorCriticPolicy) -> None:
    """Raise ValueError where exact gradients would take too much."""
    size = sum(p.numel() for p in trainable(policy))
    if size > MAX_PARAMETERS:
        raise ValueError(
            f"exact update strengths of an actor with {size:,} trainable parameters take a "
            f"gradient of that size for every token; they are computed up to {MAX_PARAMETERS:,}. "
            "Leave exact out: the strength in the output layer has a closed form for any size."
        )


def trainable(policy: LMActorCriticPolicy) -> list[torch.nn.Parameter]:
    """The parameters that the policy term has a gradient in: the actor's that are trained."""
    return [p for p in policy.actor.parameters() if p.requires_grad]


def token_gradients(
    policy: LMActorCriticPolicy, prefixes: Sequence[np.ndarray], responses: Sequence[np.ndarray]
) -> Iterator[torch.Tensor]:
    """∇ log π(a|s) of all tokens in their order, as (m, p) blocks.

    The gradients of a response's tokens come from one forward and one batched backward. The
    backward of fused attention has no batched form, so torch's unfused one is used. (Transformers'
    `"eager"` attention would be another function: its softmax is float32 whatever the weights are.)
    """
    parameters = trainable(policy)
    size = sum(p.numel() for p in parameters)
    rows = max(1, CHUNK // size)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for prefix, response in zip(prefixes, responses, strict=True):
            log_probs = differentiable_log_probs(policy, [prefix], [response])  # (T,)
            basis = torch.eye(len(log_probs), dtype=log_probs.dtype, device=log_probs.device)
            for part in basis.split(rows):  # (m, T)
                gradients = torch.autograd.grad(
                    log_probs,
                    parameters,
                    part,
                    is_grads_batched=True,
                    retain_graph=True,
                    allow_unused=True,
                )
                yield torch.cat(
                    [
                        torch.zeros(len(part), p.numel(), dtype=p.dtype, device=p.device)
                        if g is None
                        else g.reshape(len(part), -1)
                        for g, p in zip(gradients, parameters, strict=True)
                    ],
                    dim=-1,
                )


def _sum_of_terms(
    policy: LMActorCriticPolicy,
    prefixes: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    weights: np.ndarray,
) -> torch.Tensor:
    """(p,) float64 Σ_t w_t·∇ log π(a_t|s_t), by one backward for each response."""
    parameters = trainable(policy)
    total: torch.Tensor | None = None
    start = 0
    with torch.enable_grad():
        for prefix, response in zip(prefixes, responses, strict=True):
            log_probs = differentiable_log_probs(policy, [prefix], [response])
            weight = torch.as_tensor(weights[start : start + len(response)]).to(log_probs)
            start += len(response)
            gradients = torch.autograd.grad(
                (weight * log_probs).sum(), parameters, allow_unused=True
            )
            flat = torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1).double()
                    for g, p in zip(gradients, parameters, strict=True)
                ]
            )
            total = flat if total is None else total.add_(flat)
    assert total is not None
    return total


def differentiable_log_probs(
    policy: LMActorCriticPolicy, prefixes: Sequence[np.ndarray], responses: Sequence[np.ndarray]
) -> torch.Tensor:
    """(n,) log π(a|s) with gradient, by operations that can be differentiated in batches."""
    packed = pack(prefixes, responses, policy.device)
    actions = torch.as_tensor(np.concatenate(list(responses)), device=policy.device)
    return policy.evaluate_with_logits(packed, actions)[1]
