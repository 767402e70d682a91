"""`ValueHead`: hidden state → V, learnt in units of the returns' running standard deviation.

The learning rate and the clip of a value's change have fixed sizes, and returns can have any scale.
So the linear layer learns returns divided by their standard deviation, and V is its output times
that (van Hasselt et al. 2016, https://arxiv.org/abs/1602.07714, section 2, without the shift). V is
in units of the reward wherever it is used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["LEAST_RATE", "MEAN_SHARE", "ValueHead", "return_std"]

LEAST_RATE = 0.1
"""Share of the newest rollout in the running variance: a plain mean over the first 10 rollouts, an
exponential one from there. So returns larger than √10 deviations don't stay so for long, however
small those before them were."""

MEAN_SHARE = 0.1
"""Least deviation of returns, as a share of their root mean square: values that are far from 0
compared with their deviation must get there first, and constant ones have no deviation."""


def return_std(returns: np.ndarray) -> float:
    """The standard deviation of a rollout's returns, at least `MEAN_SHARE` times their RMS.

    Args:
        returns: (n,), finite.
    """
    wide = np.asarray(returns, dtype=np.float64)
    root_mean_square = math.sqrt(float(np.square(wide).mean())) if wide.size else 0.0
    return max(float((wide - wide[0]).std()) if wide.size else 0.0, MEAN_SHARE * root_mean_square)


class ValueHead(nn.Linear):
    """A linear layer whose output is multiplied by a deviation that is stored with the weights.

    Args:
        hidden_size: size of a hidden state.
        dtype: of weights and deviation.

    Attributes:
        deviation: () of the returns so far; 1 until `follow` is called.
        rollouts: () how many rollouts it comes from.
    """

    deviation: torch.Tensor
    rollouts: torch.Tensor

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, 1, dtype=dtype)
        self.register_buffer("deviation", torch.ones((), dtype=dtype))
        self.register_buffer("rollouts", torch.zeros((), dtype=torch.int64))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(n, 1) values, in units of the reward, of (n, hidden_size) hidden states."""
        return super().forward(input) * self.deviation

    @torch.no_grad()
    def follow(self, returns: np.ndarray) -> None:
        """Update the running deviation with a rollout's returns; V is unchanged, up to rounding.

        The running variance is v ← v + max(1/k, `LEAST_RATE`)·(v_k − v) after the k-th rollout, so
        that the first one has weight 1. Returns that are all 0 have no scale and change nothing.

        Args:
            returns: (n,), finite.
        """
        std = return_std(returns)
        before, rollouts = float(self.deviation), int(self.rollouts) + 1
        rate = max(1.0 / rollouts, LEAST_RATE)
        mean = math.hypot(math.sqrt(1 - rate) * before, math.sqrt(rate) * std)
        deviation = self.deviation.new_tensor(mean)
        if not (std > 0 and torch.isfinite(1 / deviation)):
            return
        rescale = self.deviation / deviation
        self.weight.mul_(rescale)
        self.bias.mul_(rescale)
        self.deviation.copy_(deviation)
        self.rollouts.fill_(rollouts)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Torch's; heads that were saved before they had a deviation have one of 1."""
        state_dict.setdefault(f"{prefix}deviation", torch.ones_like(self.deviation))
        state_dict.setdefault(f"{prefix}rollouts", torch.zeros_like(self.rollouts))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
