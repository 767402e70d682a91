"""PPO's losses on 1-D tensors, and the split of a minibatch into parts whose gradients add up.

Axes: `n` tokens of a minibatch, in the order in which `evaluate_actions` answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.nn.functional import mse_loss

from agents.packing import PackedSequences, micro_batch_indices

__all__ = ["LOGGED_NAMES", "PPOLosses", "micro_batches", "ppo_losses", "spread", "whiten"]


LOGGED_NAMES = {
    "policy": "policy_gradient_loss",
    "value": "value_loss",
    "entropy": "entropy_loss",
    "kl": "kl_loss",
}
"""What SB3's logger calls the parts of a loss under `train/`; the others keep their name."""


@dataclass(frozen=True, slots=True)
class PPOLosses:
    """The parts of PPO's loss on one (micro-)batch: means over its tokens.

    Attributes:
        policy: clipped surrogate, negated.
        value: squared error against the returns.
        entropy: mean entropy, negated.
        approx_kl: E[(r − 1) − log r], of the ratio r to the sampling policy; no gradient.
        clip_fraction: share of ratios outside the clip range; no gradient.
    """

    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    approx_kl: torch.Tensor
    clip_fraction: torch.Tensor

    def detached(self) -> dict[str, torch.Tensor]:
        """Name → value, without gradient."""
        names = ("policy", "value", "entropy", "approx_kl", "clip_fraction")
        return {name: getattr(self, name).detach() for name in names}

    def total(self, ent_coef: float, vf_coef: float) -> torch.Tensor:
        """The loss that is minimised; a critic of weight 0 is left out, and gets no gradient."""
        loss = self.policy + ent_coef * self.entropy
        return loss + vf_coef * self.value if vf_coef else loss


def ppo_losses(
    values: torch.Tensor,
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    batch: RolloutBufferSamples,
    advantages: torch.Tensor,
    clip_range: float,
    clip_range_vf: float | None,
) -> PPOLosses:
    """PPO's losses from (n,) tensors; Schulman et al. 2017, eq. 7 and 9."""
    log_ratio = log_probs - batch.old_log_prob
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
    if clip_range_vf is not None:
        change = torch.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
        values = batch.old_values + change
    with torch.no_grad():
        approx_kl = torch.mean((ratio - 1) - log_ratio)
        clip_fraction = torch.mean(((ratio - 1).abs() > clip_range).float())
    return PPOLosses(
        policy=-torch.min(advantages * ratio, advantages * clipped).mean(),
        value=mse_loss(batch.returns, values),
        entropy=-entropies.mean(),
        approx_kl=approx_kl,
        clip_fraction=clip_fraction,
    )


def spread(values: np.ndarray) -> float:
    """What `whiten` divides by: the standard deviation over n − 1, and 1 for a single value."""
    return 1.0 if values.size < 2 else float(values.std(ddof=1)) + 1e-8


def whiten(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over all tokens of a rollout; a single one stays as it is."""
    if values.size < 2:
        return values
    return (values - values.mean()) / spread(values)


def micro_batches(
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
    for sequences in micro_batch_indices(last + 1, max_tokens):
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
