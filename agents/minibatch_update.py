"""The gradient of one minibatch's loss, added up over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.kl_penalty import kl_loss
from agents.kl_settings import KLPenalty
from agents.losses import micro_batches, ppo_losses
from agents.precision import computing_in
from tokenenv.reference import Reference

__all__ = ["LossSettings", "accumulate_gradients"]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the loss of a minibatch is made of, and how it is computed.

    Attributes:
        clip_range: of the ratio.
        clip_range_vf: of the value's change; None for none.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        normalize_advantage: whether advantages are normalised within the minibatch.
        divisor: what the advantages of the rollout were divided by.
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
    penalty: KLPenalty | None = None
    kl_coef: float = 0.0
    reference: Reference | None = None
    micro_batch_tokens: int | None = None
    precision: str = "float32"


def accumulate_gradients(
    policy: Any, batch: RolloutBufferSamples, settings: LossSettings, tells: bool = False
) -> tuple[dict[str, float], torch.Tensor]:
    """Leave the gradient of a minibatch's loss in the policy's parameters, which had none.

    Args:
        policy: with `evaluate_actions`; for the KL loss `"full"`, with `evaluate_with_logits`.
        batch: of n tokens.
        settings: of the loss.
        tells: take this pass's own log-probabilities for the old ones.

    Returns:
        The parts of the loss, means over the tokens; and the (n,) old log-probabilities.
    """
    advantages, divisor = batch.advantages, torch.as_tensor(settings.divisor)
    if settings.normalize_advantage and len(advantages) > 1:
        divisor = advantages.std() + 1e-8
        advantages = (advantages - advantages.mean()) / divisor
    old_log_probs = batch.old_log_prob.clone() if tells else batch.old_log_prob
    sums: dict[str, torch.Tensor] = {}
    for part, index in micro_batches(batch, settings.micro_batch_tokens):
        chosen = slice(None) if index is None else index
        values, log_probs, entropies, logits = _evaluate(policy, part, settings)
        if tells:
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
    # One wait for the device, not one per number.
    numbers = torch.stack(list(sums.values())).tolist()
    return dict(zip(sums, numbers, strict=True)), old_log_probs


def _evaluate(policy: Any, part: RolloutBufferSamples, settings: LossSettings) -> tuple[Any, ...]:
    """Values, log-probabilities, entropies; and logits, where the KL loss needs them all."""
    states, actions = part.observations, part.actions.long().flatten()
    with computing_in(settings.precision, actions.device):
        if settings.penalty is not None and settings.penalty.estimator == "full":
            return policy.evaluate_with_logits(states, actions)
        return (*policy.evaluate_actions(states, actions), None)
