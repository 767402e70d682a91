"""KL penalties as pure maths: estimators of KL(π ‖ π_ref), and controllers of its coefficient.

Notation: π the actor, π_ref the reference, β the KL coefficient (`kl_coef`), and
ρ = log π(a|s) − log π_ref(a|s) the log-ratio of a token a ~ π. All logs are natural. The estimators
are Schulman's (http://joschu.net/blog/kl-approx.html) and the exact sum over the vocabulary:

    k1 = ρ    k2 = ½ρ²    k3 = exp(−ρ) − 1 + ρ    full = Σ_a π(a|s)·log(π(a|s)/π_ref(a|s))

| name | mean over a ~ π | gradient as reward | gradient as loss |
|---|---|---|---|
| k1 | the KL | ∇KL of the sequence | 0: holds nothing |
| k2 | not the KL | of no KL | ∇KL(π ‖ π_ref) at each state |
| k3 | the KL | of no KL | ∇KL(π_ref ‖ π) at each state |
| full | the KL, exactly | ∇KL of the states that follow | ∇KL(π ‖ π_ref) at each state |

"As reward": β times it is subtracted from the reward of the token. "As loss": its mean over sampled
tokens is differentiated itself, the states held fixed. The right mean does not make the gradient
right: only k1 in the reward has that of the sequence's KL, which `full` in the reward and `full` as
a loss have together.

RLHF subtracts β·k1 (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2). The environment
knows π_ref and pays the one half of it, whoever knows π pays the other; k2, k3 and full are no sums
of two such halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = [
    "KL_CONTROLLERS",
    "KL_ESTIMATORS",
    "KL_SHAPINGS",
    "AdaptiveKL",
    "DualKL",
    "FixedKL",
    "KLController",
    "actor_half",
    "full_kl",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
    "reference_half",
]

KL_SHAPINGS = ("k1", "none")
"""What the environment pays per token: the reference's half of k1, or nothing."""

KL_ESTIMATORS = ("k1", "k2", "k3", "full")
"""Estimators of the KL divergence per token."""

KL_CONTROLLERS = ("fixed", "adaptive", "dual")
"""What moves β between rollouts: nothing, `AdaptiveKL`, `DualKL`."""


def reference_half(ref_log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """β·log π_ref(a_t|s_t), the half of the KL shaping that is a function of (s, a) alone."""
    return kl_coef * ref_log_probs


def actor_half(log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """−β·log π(a_t|s_t), the half that belongs to whoever knows π."""
    return -kl_coef * log_probs


# Estimators ---------------------------------------------------------------------------------------
# Of numpy arrays and of torch tensors alike; this module must not import torch.


def k1(log_ratio: Any) -> Any:
    """Schulman's k1: ρ, element by element; unbiased, of either sign."""
    return log_ratio


def k2(log_ratio: Any) -> Any:
    """Schulman's k2: ½ρ² ≥ 0, element by element; biased by E[½ρ² − ρ]."""
    return 0.5 * log_ratio * log_ratio


def k3(log_ratio: Any) -> Any:
    """Schulman's k3: exp(−ρ) − 1 + ρ ≥ 0, element by element; unbiased."""
    # expm1, because exp(−ρ) − 1 loses all digits where actor and reference hardly differ.
    is_tensor = hasattr(log_ratio, "expm1")
    return ((-log_ratio).expm1() if is_tensor else np.expm1(-log_ratio)) + log_ratio


def full_kl(log_probs: Any, ref_log_probs: Any) -> Any:
    """KL(π ‖ π_ref) of whole distributions, exactly.

    Args:
        log_probs: (…, V) log π of every token.
        ref_log_probs: (…, V) log π_ref of every token.

    Returns:
        (…) in nats.
    """
    probs = log_probs.exp() if hasattr(log_probs, "exp") else np.exp(log_probs)
    return (probs * (log_probs - ref_log_probs)).sum(-1)


_OF_LOG_RATIO = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimate(estimator: str, log_ratio: Any) -> Any:
    """The estimator of that name, of (n,) log-ratios ρ.

    Raises:
        ValueError: it is no function of ρ.
    """
    if estimator not in _OF_LOG_RATIO:
        raise ValueError(
            f"estimator={estimator!r} is no function of the log-ratio: choose one of "
            f"{', '.join(map(repr, _OF_LOG_RATIO))}; 'full' is full_kl, of whole distributions."
        )
    return _OF_LOG_RATIO[estimator](log_ratio)


# Controllers --------------------------------------------------------------------------------------


class KLController(Protocol):
    """Moves β between rollouts."""

    def update(self, kl_coef: float, kl: float, episodes: int) -> float:
        """The next β.

        Args:
            kl_coef: β of the rollout.
            kl: k1 per response, summed over its tokens, in nats: its mean over the episodes that
                finished in the rollout.
            episodes: how many they were.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedKL:
    """β stays what it is."""

    def update(self, kl_coef: float, kl: float, episodes: int) -> float:
        """The same β."""
        return kl_coef


ERROR_CLIP = 0.2
"""Of the adaptive controller's relative error, either way (Ziegler et al. 2019, section 2.2)."""


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """The proportional controller of Ziegler et al. 2019, section 2.2, in log β.

    e = clip((KL − target)/target, −0.2, 0.2); β ← β·(1 + e·episodes/horizon).

    Attributes:
        target: KL per response to steer to, in nats.
        horizon: episodes over which an error of e changes β by about the factor exp(e).

    Raises:
        ValueError: `target` or `horizon` is not positive; in `update`, a rollout has five horizons
            of episodes, with which β could become negative.
    """

    target: float
    horizon: float

    def __post_init__(self) -> None:
        """Refuse what can't steer."""
        _require_positive("kl_target", self.target)
        _require_positive("kl_horizon", self.horizon)

    def update(self, kl_coef: float, kl: float, episodes: int) -> float:
        """As the class says."""
        if ERROR_CLIP * episodes >= self.horizon:
            raise ValueError(
                f"kl_horizon={self.horizon} is too short for {episodes} episodes in a rollout: β "
                f"could become negative. Give more than {ERROR_CLIP * episodes:g}; 10000 is usual."
            )
        error = min(max((kl - self.target) / self.target, -ERROR_CLIP), ERROR_CLIP)
        return kl_coef * (1 + error * episodes / self.horizon)


@dataclass(frozen=True, slots=True)
class DualKL:
    """Dual gradient ascent for max E[R] subject to KL ≤ target; β is the multiplier.

    β ← max(0, β + rate·(KL − target)) (Boyd and Vandenberghe 2004, section 5; as SAC tunes its
    temperature, https://arxiv.org/abs/1812.05905, section 5).

    Attributes:
        target: the greatest KL per response that is allowed, in nats.
        rate: change of β per nat and rollout.

    Raises:
        ValueError: `target` or `rate` is not positive.
    """

    target: float
    rate: float

    def __post_init__(self) -> None:
        """Refuse what can't steer."""
        _require_positive("kl_target", self.target)
        _require_positive("kl_dual_rate", self.rate)

    def update(self, kl_coef: float, kl: float, episodes: int) -> float:
        """As the class says; `episodes` does not matter."""
        return max(0.0, kl_coef + self.rate * (kl - self.target))


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a positive, finite number.")
