"""The agent's side of the KL penalty where that is no sum of two halves: k2, k3 and full.

Axes: `n` tokens, `V` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.kl_settings import KLPenalty
from agents.new_steps import per_new_step
from agents.packing import PackedSequences
from agents.segments import Segment
from tokenenv.language_model import load_frozen, trunk_hidden_states
from tokenenv.log_probs import log_softmax, rows_at_once
from tokenenv.reference import Reference
from tokenenv.settings import EnvSettings
from tokenenv.shaping import full_kl, kl_estimate

__all__ = ["ReferencedSamples", "kl_loss", "load_reference", "pay_full_kl", "token_penalties"]


class ReferencedSamples(NamedTuple):
    """SB3's `RolloutBufferSamples`, and log π_ref of the actions, (n,) float32."""

    observations: PackedSequences
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    ref_log_prob: torch.Tensor


def load_reference(settings: EnvSettings) -> Reference:
    """The reference of an environment, from its resolved settings and the cached models."""
    assert settings.reference is not None
    language_model = load_frozen(settings.reference, settings.device, settings.dtype)
    return Reference(language_model, settings.temperature)


def token_penalties(
    penalty: KLPenalty,
    log_probs: np.ndarray,
    ref_log_probs: np.ndarray,
    kl_coefs: float | np.ndarray,
) -> np.ndarray:
    """(n,) float64 β·k2 or β·k3 of tokens, from their log-probabilities under π and π_ref."""
    log_ratio = np.asarray(log_probs, dtype=np.float64) - ref_log_probs
    return kl_coefs * kl_estimate(penalty.estimator, log_ratio)


# Whole distributions, in the reward ---------------------------------------------------------------


def pay_full_kl(segments: Sequence[Segment], actor: Any, reference: Reference) -> None:
    """Subtract β·KL(π ‖ π_ref) at their states from the rewards of the last rollout's steps.

    Called before the weights change, so that π is the policy that sampled the steps; those that an
    earlier rollout left waiting were paid for then.

    Args:
        segments: of the last rollout; their rewards change in place.
        actor: the causal LM that sampled them.
        reference: whose temperature is the actor's, too.
    """
    found = per_new_step(
        segments, actor.device, lambda packed, _: _full_kls(packed, actor, reference)
    )
    for segment, kls in zip(segments, found, strict=True):
        new = slice(-segment.new_steps, None)
        segment.rewards[new] -= (segment.kl_coefs[new] * kls).astype(np.float32)


def _full_kls(packed: PackedSequences, actor: Any, reference: Reference) -> torch.Tensor:
    """(n,) KL(π ‖ π_ref) at states; never more than a chunk of (n, V) at a time."""
    hidden = _hidden_states(packed, actor)
    ref_hidden = _hidden_states(packed, reference.language_model.model)
    size = rows_at_once(hidden.device, reference.language_model.vocabulary_size)
    found = [
        full_kl(
            log_softmax(actor, own, reference.temperature),
            log_softmax(reference.language_model.model, ref, reference.temperature).to(own.device),
        )
        for own, ref in zip(hidden.split(size), ref_hidden.split(size), strict=True)
    ]
    return torch.cat(found)


def _hidden_states(packed: PackedSequences, model: Any) -> torch.Tensor:
    """(n, h) of states, on the model's own device."""
    hidden = trunk_hidden_states(model, packed.tokens.to(model.device))
    return hidden[packed.rows.to(model.device), packed.columns.to(model.device)]


# As a loss ----------------------------------------------------------------------------------------


def kl_loss(
    penalty: KLPenalty,
    samples: Any,
    log_probs: torch.Tensor,
    logits: torch.Tensor | None,
    reference: Reference | None,
) -> torch.Tensor:
    """The mean over tokens of k2, k3 or the full KL, differentiable in the actor.

    Its gradient is that of Σ_s d(s)·D(s), where d are the states that π_old, the policy which
    sampled the tokens, visits: with D = KL(π ‖ π_ref) for k2 and full, D = KL(π_ref ‖ π) for k3.

    After the first step the actions are another policy's, too: π has moved on from π_old. So the
    estimate of a sampled action is weighted by w = π(a|s)/π_old(a|s), held fixed: with ρ =
    log π(a|s)/π_ref(a|s) and f = k2, where f′(ρ) = ρ,

        E_{a~π_old}[w·∇f(ρ)] = Σ_a π_old·(π/π_old)·ρ·∇log π = Σ_a π·ρ·∇log π = ∇KL(π ‖ π_ref),

    as Σ_a π·∇log π = 0. For k3, f′(ρ) = 1 − exp(−ρ), and Σ_a (π − π_ref)·∇log π = −Σ_a
    π_ref·∇log π = ∇KL(π_ref ‖ π). With its gradient, w would add that of f·∇log π: for k3 the sum
    is ∇KL(π ‖ π_ref), the gradient that k2 and full have already. The full KL sums over all actions
    and needs no weight. On-policy, w = 1.

    Args:
        penalty: whose `as_loss` is set.
        samples: a minibatch, or a part of one, with the log-probabilities under π_old and π_ref.
        log_probs: (n,) log π of the actions.
        logits: (n, V) of the actor, divided by the temperature; only for full.
        reference: only for full: one forward of it without gradient, whose (n, V) live as long as
            the actor's; micro-batches bound both.
    """
    if penalty.estimator != "full":
        return _weighted_estimates(penalty.estimator, samples, log_probs).mean()
    assert logits is not None and reference is not None
    with torch.no_grad():
        model = reference.language_model.model
        hidden = _hidden_states(samples.observations, model)
        ref_log_probs = log_softmax(model, hidden, reference.temperature).to(logits.device)
    return full_kl(torch.log_softmax(logits, dim=-1), ref_log_probs).mean()


def _weighted_estimates(estimator: str, samples: Any, log_probs: torch.Tensor) -> torch.Tensor:
    """(n,) estimates of tokens that π_old sampled, weighted to be those of π; see `kl_loss`."""
    weights = torch.exp(log_probs.detach() - samples.old_log_prob)
    return weights * kl_estimate(estimator, log_probs - samples.ref_log_prob)
