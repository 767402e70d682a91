"""KL shaping of the reward, as pure maths.

Notation: π the actor, π_ref the reference, β the KL coefficient (`kl_coef`). All logs are natural.
The per-token k1 estimate of the KL divergence is log π(a|s) − log π_ref(a|s) (Schulman,
http://joschu.net/blog/kl-approx.html); RLHF subtracts β times it from the reward of every token
(Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2). The environment knows π_ref and pays
the one half, whoever knows π pays the other.
"""

from __future__ import annotations

import numpy as np

__all__ = ["KL_SHAPINGS", "actor_half", "reference_half"]

KL_SHAPINGS = ("k1", "none")
"""What the environment pays per token: the reference's half of k1, or nothing."""


def reference_half(ref_log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """β·log π_ref(a_t|s_t), the half of the KL shaping that is a function of (s, a) alone."""
    return kl_coef * ref_log_probs


def actor_half(log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """−β·log π(a_t|s_t), the half that belongs to whoever knows π."""
    return -kl_coef * log_probs
