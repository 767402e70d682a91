"""The gradient of one minibatch's loss, added up over micro-batches and clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.ppo.losses import LOGGED_NAMES, kl_loss, ppo_losses, split_minibatch
from agents.ppo.precision import computing_in
from agents.settings import KLPenalty
from tokenenv.maths import ROUNDING
from tokenenv.models import Reference

__all__ = [
    "LossSettings",
    "NonFiniteStep",
    "accumulate_gradients",
    "clip_gradients",
    "why_not_finite",
]


class NonFiniteStep(ValueError):
    """The loss of a minibatch or its gradient is not finite, so that no step was taken."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the loss of a minibatch is made of, and how it is computed.

    Attributes:
        clip_range: of the ratio.
        clip_range_vf: of the value's change, in units of `return_deviation`; None for none.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        normalize_advantage: whether advantages are normalised within the minibatch.
        divisor: what the advantages of the rollout were divided by.
        magnitude: of what they were computed from; within a minibatch, they are normalised where
            they differ by more than that rounded.
        return_deviation: what values and returns are divided by in the value loss.
        penalty: the KL loss; None for none.
        kl_coef: β, its weight.
        reference: for the estimator `"full"`.
        micro_batch_tokens: tokens per forward and backward pass; None for all.
        precision: `"float32"` or `"bfloat16"`.
    """

    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool = False
    divisor: float = 1.0
    magnitude: float = 0.0
    return_deviation: float | torch.Tensor = 1.0
    penalty: KLPenalty | None = None
    kl_coef: float = 0.0
    reference: Reference | None = None
    micro_batch_tokens: int | None = None
    precision: str = "float32"


def accumulate_gradients(
    policy: Any, batch: RolloutBufferSamples, settings: LossSettings, sets_old: bool = False
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Leave the gradient of a minibatch's loss in the policy's parameters, which had none.

    Args:
        policy: with `evaluate_actions`; for the KL loss `"full"`, with `evaluate_with_logits`.
        batch: of n tokens.
        settings: of the loss.
        sets_old: take this pass's own log-probabilities for the old ones.

    Returns:
        The parts of the loss, () means over the tokens; and the (n,) old log-probabilities.
    """
    advantages, divisor = batch.advantages, torch.as_tensor(settings.divisor)
    if settings.normalize_advantage and len(advantages) > 1:
        advantages, divisor = normalized(advantages, settings.magnitude)
    old_log_probs = batch.old_log_prob.clone() if sets_old else batch.old_log_prob
    sums: dict[str, torch.Tensor] = {}
    for part, index in split_minibatch(batch, settings.micro_batch_tokens):
        chosen = slice(None) if index is None else index
        values, log_probs, entropies, logits = _evaluate(policy, part, settings)
        if sets_old:
            old_log_probs[chosen] = log_probs.detach()
            part = part._replace(old_log_prob=old_log_probs[chosen])
        losses = ppo_losses(
            values.flatten(),
            log_probs,
            log_probs.neg() if entropies is None else entropies,
            part,
            advantages[chosen],
            settings.clip_range,
            settings.clip_range_vf,
            settings.return_deviation,
        )
        share = len(log_probs) / len(advantages)
        loss = losses.total(settings.ent_coef, settings.vf_coef)
        parts = losses.detached()
        if settings.penalty is not None:
            with computing_in(settings.precision, log_probs.device):
                kl = kl_loss(settings.penalty, part, log_probs, logits, settings.reference)
            # Divided as the advantages are, or β would weigh against another score.
            loss = loss + settings.kl_coef / divisor * kl
            parts["kl"] = kl.detach()
        (share * loss).backward()
        parts["loss"] = loss.detach()
        sums = {name: sums.get(name, 0.0) + share * own for name, own in parts.items()}
    return sums, old_log_probs


def clip_gradients(
    policy: Any, parts: dict[str, torch.Tensor], max_grad_norm: float
) -> dict[str, float]:
    """Clip a policy's gradients to a norm, and bring the numbers of a minibatch to the host.

    One wait for the device, not one per number: so it costs nothing to know the norm.

    Args:
        policy: with gradients.
        parts: of the loss, () each.
        max_grad_norm: the largest norm that is left.

    Returns:
        The parts, and `grad_norm` before it was clipped.
    """
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    numbers = {**parts, "grad_norm": norm.to(parts["loss"].device)}
    found = torch.stack(list(numbers.values())).tolist()
    return dict(zip(numbers, found, strict=True))


def why_not_finite(numbers: Mapping[str, float]) -> str | None:
    """What of a minibatch's loss and gradient is not finite, in words; None where both are.

    Args:
        numbers: what `clip_gradients` gave.
    """
    if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
        return None
    words = {LOGGED_NAMES.get(name, name): number for name, number in numbers.items()}
    wrong = ", ".join(f"{name}={x:g}" for name, x in words.items() if not math.isfinite(x))
    finite = ", ".join(f"{name}={x:.3g}" for name, x in words.items() if math.isfinite(x))
    return f"{wrong} (finite: {finite or 'nothing'})"


def normalized(advantages: torch.Tensor, magnitude: float) -> tuple[torch.Tensor, torch.Tensor]:
    """SB3's normalised (n,) advantages, and what they were divided by; 0 where all are equal.

    Equal to rounding, that is: SB3 divides by about 1e-8 there, and makes advantages of errors.

    Args:
        advantages: (n,).
        magnitude: of what they were computed from; see `tokenenv.maths.advantages.rounding_floor`.
    """
    size = torch.clamp(advantages.abs().max(), min=magnitude)
    deviation = advantages.std()
    is_flat = deviation <= ROUNDING * size
    divisor = torch.where(is_flat, torch.where(size > 0, size, 1.0), deviation + 1e-8)
    centred = torch.where(is_flat, 0.0, advantages - advantages.mean())
    return centred / divisor, divisor


def _evaluate(policy: Any, part: RolloutBufferSamples, settings: LossSettings) -> tuple[Any, ...]:
    """Values, log-probabilities, entropies; and logits, where the KL loss needs them all."""
    states, actions = part.observations, part.actions.long().flatten()
    with computing_in(settings.precision, actions.device):
        if settings.penalty is not None and settings.penalty.estimator == "full":
            return policy.evaluate_with_logits(states, actions)
        return (*policy.evaluate_actions(states, actions), None)
