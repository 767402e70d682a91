"""The loss of preferences (Bradley–Terry).

P(chosen ≻ rejected) = σ(r_w − r_l − margin); the loss is −log of it (Bradley & Terry 1952; Ouyang
et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1). Where a label is a probability p, ½ of a tie,
it is the cross-entropy, −p·log σ(d) − (1 − p)·log σ(−d).
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

__all__ = ["preference_loss"]


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margins: torch.Tensor | float = 0.0,
    centering_coef: float = 0.0,
    preferences: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Mean −p·log σ(d) − (1 − p)·log σ(−d) + c·mean((r_w + r_l)²), d = r_w − r_l − margin.

    Equal rewards without margin give ln 2. The centring term is that of Eisenstein et al. 2023,
    https://arxiv.org/abs/2312.09244, section 2.

    Args:
        chosen: (B,) rewards r_w.
        rejected: (B,) rewards r_l.
        margins: how much better the chosen ones are at least.
        centering_coef: c.
        preferences: p, the probabilities that the chosen ones are better.
    """
    logits = chosen - rejected - margins
    # log σ(−d) = log σ(d) − d
    loss = (-logsigmoid(logits) + (1.0 - preferences) * logits).mean()
    if centering_coef:
        loss = loss + centering_coef * (chosen + rejected).square().mean()
    return loss
