"""`ValueHead`: hidden state → V, learnt in units of the returns' running deviation.

Squared errors of returns, steps of an optimiser, and a clip of the value's change are of a fixed
size; returns are of any. So the linear layer learns returns divided by their deviation, and V is
its output times that (van Hasselt et al. 2016, https://arxiv.org/abs/1602.07714, section 2, without
the shift). V is in units of the reward wherever it is read.
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
exponential one from there. So returns are never more than √10 deviations large for long, however
small those before them were."""

MEAN_SHARE = 0.1
"""Of the root mean square of returns, what their deviation counts as at the least: values that are
far from 0 beside their spread must get there first, and constant ones have no spread."""


def return_std(returns: np.ndarray) -> float:
    """The deviation of a rollout's returns, at least `MEAN_SHARE` of their root mean square.

    Args:
        returns: (n,), finite.
    """
    wide = np.asarray(returns, dtype=np.float64)
    root_mean_square = math.sqrt(float(np.square(wide).mean())) if wide.size else 0.0
    return max(float((wide - wide[0]).std()) if wide.size else 0.0, MEAN_SHARE * root_mean_square)


class ValueHead(nn.Linear):
    """A linear layer whose output is multiplied by a deviation that is kept with the weights.

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
        """Take a rollout's returns into the running deviation; V stays what it was, to rounding.

        The running variance is v ← v + max(1/k, `LEAST_RATE`)·(v_k − v) after the k-th rollout, so
        that the first one counts whole. Returns that are all 0 say nothing of their scale.

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
