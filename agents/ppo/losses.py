"""PPO's losses on 1-D tensors, and the split of a minibatch into parts whose gradients add up.

Axes: `n` tokens of a minibatch, in the order in which `evaluate_actions` answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.nn.functional import mse_loss

from agents.settings import KLPenalty
from tokenenv.maths import ROUNDING, full_kl, kl_estimate, sample_deviation
from tokenenv.models import (
    PackedSequences,
    Reference,
    hidden_states,
    log_softmax,
    token_batches,
)

__all__ = [
    "LOGGED_NAMES",
    "PPOLosses",
    "aggregation_weights",
    "explained_variance",
    "kl_loss",
    "normalized",
    "ppo_losses",
    "split_minibatch",
    "whiten",
    "whitening_divisor",
]


LOGGED_NAMES = {
    "policy": "policy_gradient_loss",
    "value": "value_loss",
    "entropy": "entropy_loss",
    "kl": "kl_loss",
}
"""SB3's names of the parts of a loss under `train/`; the others keep their name."""


@dataclass(frozen=True, slots=True)
class PPOLosses:
    """The parts of PPO's loss on one (micro-)batch: means over its tokens.

    Those that move the actor, policy and entropy, are weighted means where the loss is not
    aggregated by token: see `aggregation_weights`.

    Attributes:
        policy: clipped surrogate, negated.
        value: squared error against the returns, in units of their deviation where it is given;
            None where the critic does not learn from the batch.
        entropy: mean entropy, negated.
        approx_kl: E[(r − 1) − log r], of the ratio r to the sampling policy; no gradient.
        clip_fraction: share of ratios outside of the clip range, on either side; no gradient.
    """

    policy: torch.Tensor
    value: torch.Tensor | None
    entropy: torch.Tensor
    approx_kl: torch.Tensor
    clip_fraction: torch.Tensor

    def detached(self) -> dict[str, torch.Tensor]:
        """Name → value, without gradient."""
        names = ("policy", "value", "entropy", "approx_kl", "clip_fraction")
        parts = {name: getattr(self, name) for name in names}
        return {name: part.detach() for name, part in parts.items() if part is not None}

    def total(self, ent_coef: float, vf_coef: float) -> torch.Tensor:
        """The loss that is minimised; a critic of weight 0 is left out, and gets no gradient."""
        loss = self.policy + ent_coef * self.entropy
        return loss + vf_coef * self.value if vf_coef and self.value is not None else loss


def ppo_losses(
    values: torch.Tensor | None,
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    batch: RolloutBufferSamples,
    advantages: torch.Tensor,
    clip_range: float,
    clip_range_vf: float | None,
    return_deviation: float | torch.Tensor = 1.0,
    clip_range_high: float | None = None,
    weights: torch.Tensor | None = None,
) -> PPOLosses:
    """PPO's losses from (n,) tensors; Schulman et al. 2017, eq. 7 and 9.

    With `clip_range_high` the ratio is clipped to [1 − `clip_range`, 1 + `clip_range_high`]: DAPO's
    clip-higher, Yu et al. 2025, https://arxiv.org/abs/2503.14476. A token of small probability may
    then gain as much in an update as one of large probability does anyway.

    Args:
        values: V now, in units of the reward, like the batch's old values and returns; None where
            the critic does not learn.
        log_probs: log π of the actions.
        entropies: of the distributions.
        batch: old log-probabilities, old values and returns.
        advantages: (n,) of the policy's loss.
        clip_range: of the ratio.
        clip_range_vf: of the value's change, in units of `return_deviation`; None for none.
        return_deviation: what values and returns are divided by in the value loss.
        clip_range_high: of a ratio above 1; None: `clip_range`.
        weights: (n,) of `aggregation_weights`; None: 1 each.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    log_ratio = log_probs - batch.old_log_prob
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + high)
    with torch.no_grad():
        approx_kl = torch.mean((ratio - 1) - log_ratio)
        is_outside = (ratio - 1 > high) | (1 - ratio > clip_range)
        clip_fraction = torch.mean(is_outside.float())
    return PPOLosses(
        policy=-_mean(torch.min(advantages * ratio, advantages * clipped), weights),
        value=None
        if values is None
        else _value_loss(values, batch, clip_range_vf, return_deviation),
        entropy=-_mean(entropies, weights),
        approx_kl=approx_kl,
        clip_fraction=clip_fraction,
    )


def _value_loss(
    values: torch.Tensor,
    batch: RolloutBufferSamples,
    clip_range: float | None,
    deviation: float | torch.Tensor,
) -> torch.Tensor:
    values, old_values, returns = (
        numbers / deviation for numbers in (values, batch.old_values, batch.returns)
    )
    if clip_range is not None:
        values = old_values + torch.clamp(values - old_values, -clip_range, clip_range)
    return mse_loss(returns.to(values.dtype), values)  # before 2.12, torch differentiates no other


def aggregation_weights(
    rows: torch.Tensor, aggregation: str, divisor: float
) -> torch.Tensor | None:
    """What the n tokens of a minibatch count, so that a mean over tokens is the loss asked for.

    With S sequences of l_i tokens and x_it at the t-th token of the i-th, the loss is

        "token":     Σ_it x_it / n                     every token counts the same
        "sequence":  (1/S)·Σ_i (1/l_i)·Σ_t x_it        every sequence does
        "constant":  (1/S)·Σ_i (1/divisor)·Σ_t x_it    every token does, whatever the lengths

    By sequence, a token of a long response counts less than one of a short response: the bias that
    Liu et al. 2025 (Dr. GRPO, https://arxiv.org/abs/2503.20783) name, and remove with the constant.
    By token, too, all tokens of a minibatch count the same; but where its responses are long, each
    one counts less than in a minibatch of as many short ones.

    A weight is n/(S·l_i), or n/(S·divisor). n, S and l_i are the whole minibatch's, so that the
    parts it is split into add up to its loss.

    A sequence is what of an episode is in the update: the whole response with `cut="carry"`; with
    `cut="bootstrap"` the part inside of the rollout, so that a cut response is two sequences, in
    two updates.

    The weights are for what moves the actor: the policy term, the entropy bonus and the KL loss,
    whose weights beside each other then stay as they are. The value loss is a regression, in which
    every state counts the same, and approximate KL and clip fraction describe tokens: they are
    plain means.

    Args:
        rows: (n,) the sequence that each token belongs to, 0 … S−1, each of which has some.
        aggregation: one of `LOSS_AGGREGATIONS`.
        divisor: tokens, of `"constant"`.

    Returns:
        (n,) float64; None, for 1 each, by token.
    """
    if aggregation == "token":
        return None
    lengths = torch.bincount(rows).double()  # (S,)
    per_token = lengths[rows] if aggregation == "sequence" else torch.full_like(rows, divisor)
    return len(rows) / (len(lengths) * per_token.double())


def _mean(numbers: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """() the mean of (n,) numbers, weighted where there are weights."""
    return numbers.mean() if weights is None else (weights.to(numbers.dtype) * numbers).mean()


def kl_loss(
    penalty: KLPenalty,
    samples: Any,
    log_probs: torch.Tensor,
    logits: torch.Tensor | None,
    reference: Reference | None,
    weights: torch.Tensor | None = None,
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
        weights: (n,) of `aggregation_weights`; None: 1 each.
    """
    if penalty.estimator != "full":
        return _mean(_weighted_estimates(penalty.estimator, samples, log_probs), weights)
    assert logits is not None and reference is not None
    with torch.no_grad():
        model = reference.language_model.model
        hidden = hidden_states(model, samples.observations)
        ref_log_probs = log_softmax(model, hidden, reference.temperature).to(logits.device)
    return _mean(full_kl(torch.log_softmax(logits, dim=-1), ref_log_probs), weights)


def _weighted_estimates(estimator: str, samples: Any, log_probs: torch.Tensor) -> torch.Tensor:
    """(n,) estimates of tokens that π_old sampled, weighted to be those of π; see `kl_loss`."""
    weights = torch.exp(log_probs.detach() - samples.old_log_prob)
    return weights * kl_estimate(estimator, log_probs - samples.ref_log_prob)


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


def whitening_divisor(values: np.ndarray, magnitude: float = 0.0) -> float:
    """The divisor of `whiten`: the standard deviation over n − 1.

    A single value is divided by 1. Values that are all equal, which become 0, are divided by their
    size, so that what else is divided by it (β of a KL loss) is not multiplied by the inverse of a
    rounding error, and scales with the rewards.

    Args:
        values: any shape, n in all.
        magnitude: of what they were computed from; see `tokenenv.maths.advantages.rounding_floor`.
    """
    if np.size(values) < 2:
        return 1.0
    deviation = sample_deviation(values, magnitude)
    return deviation or max(float(np.abs(values).max()), magnitude) or 1.0


def whiten(values: np.ndarray, magnitude: float = 0.0) -> np.ndarray:
    """Mean 0 and standard deviation 1 over all tokens of a rollout; a single one stays as it is.

    Values that differ by rounding only become 0: divided by their deviation, rounding errors would
    move the actor as far as a real advantage does.

    Args:
        values: any shape.
        magnitude: of what they were computed from; see `tokenenv.maths.advantages.rounding_floor`.

    Returns:
        The same shape and dtype; computed in float64.
    """
    if np.size(values) < 2:
        return values
    if not sample_deviation(values, magnitude):
        return np.zeros_like(values)
    shifted = values.astype(np.float64) - float(np.ravel(values)[0])
    whitened = (shifted - shifted.mean()) / whitening_divisor(values, magnitude)
    return whitened.astype(values.dtype)


def explained_variance(predictions: np.ndarray, targets: np.ndarray) -> float:
    """1 − var(targets − predictions)/var(targets), in float64; NaN where targets are all equal."""
    deviation = sample_deviation(targets)
    if not deviation:
        return math.nan
    errors = np.asarray(targets, dtype=np.float64) - predictions
    return 1.0 - (float(errors.std(ddof=1)) / deviation) ** 2


def split_minibatch(
    batch: RolloutBufferSamples, max_tokens: int | None
) -> Iterator[tuple[RolloutBufferSamples, torch.Tensor | None]]:
    """A minibatch in parts of whole sequences, with the index of each part's states (None: all)."""
    packed: Any = batch.observations
    if max_tokens is None or not isinstance(packed, PackedSequences):
        yield batch, None
        return
    rows = packed.rows.cpu().numpy()
    last = np.zeros(len(packed.tokens), dtype=np.int64)
    np.maximum.at(last, rows, packed.columns.cpu().numpy())
    for sequences in token_batches(last + 1, max_tokens):
        position = np.full(len(last), -1)
        position[sequences] = np.arange(len(sequences))
        index = torch.as_tensor(np.flatnonzero(position[rows] >= 0), device=packed.rows.device)
        part = PackedSequences(
            packed.tokens[torch.as_tensor(sequences), : int(last[sequences].max()) + 1],
            torch.as_tensor(position[rows], device=packed.rows.device)[index],
            packed.columns[index],
        )
        yield (
            type(batch)(part, *(per_token[index] for per_token in batch[1:])),  # type: ignore
            index,
        )
