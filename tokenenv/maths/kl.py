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
knows π_ref and pays one half of it, the agent knows π and pays the other; k2, k3 and full are no
sums of two such halves.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tokenenv.ranges import POSITIVE_FINITE, check_ranges

__all__ = [
    "KL_COEF_RANGE",
    "KL_CONTROLLERS",
    "KL_ESTIMATORS",
    "KL_SHAPINGS",
    "AdaptiveKL",
    "DualKL",
    "FixedKL",
    "KLController",
    "bounded_kl_coef",
    "full_kl",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
]

KL_SHAPINGS = ("k1", "none")
"""KL reward of the environment per token: the reference's half of k1, or nothing."""

KL_ESTIMATORS = ("k1", "k2", "k3", "full")
"""Estimators of the KL divergence per token."""

KL_CONTROLLERS = ("fixed", "adaptive", "dual")
"""Controllers of β between rollouts: none, `AdaptiveKL`, `DualKL`."""


# Estimators ---------------------------------------------------------------------------------------
# Of numpy arrays and of torch tensors alike; this module must not import torch.


def k1(log_ratio: Any) -> Any:
    """Schulman's k1: ρ, element by element; unbiased, of either sign."""
    return log_ratio


def k2(log_ratio: Any) -> Any:
    """Schulman's k2: ½ρ² ≥ 0, element by element; biased by E[½ρ² − ρ]."""
    return 0.5 * log_ratio * log_ratio


MAX_EXPONENT = 20.0
"""−ρ up to which k3 is exponential: a token that is further below the reference is sampled with a
probability of less than exp(−20), yet one of them would overflow float32 from −ρ = 89 on."""


def k3(log_ratio: Any) -> Any:
    """Schulman's k3: exp(−ρ) − 1 + ρ ≥ 0, element by element; unbiased.

    Below ρ = −`MAX_EXPONENT` the exponential goes on as its tangent, so that value and gradient
    stay finite, and the gradient keeps its direction.
    """
    # expm1, because exp(−ρ) − 1 loses all digits where actor and reference hardly differ.
    if hasattr(log_ratio, "expm1"):
        exp_minus_1 = (-log_ratio).clamp(max=MAX_EXPONENT).expm1()
        beyond = (-log_ratio - MAX_EXPONENT).relu()
    else:
        exp_minus_1 = np.expm1(np.minimum(-log_ratio, MAX_EXPONENT))
        beyond = np.maximum(-log_ratio - MAX_EXPONENT, 0.0)
    return exp_minus_1 + math.exp(MAX_EXPONENT) * beyond + log_ratio


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


KL_COEF_RANGE = 1e4
"""Controllers keep β within this factor of where it started, either way: further off, the target
can't be met at all, and β would go on to the end of the floats, 0 or ∞."""


def bounded_kl_coef(kl_coef: float, start: float) -> float:
    """`kl_coef` within a factor of `KL_COEF_RANGE` of `start`."""
    highest = min(start * KL_COEF_RANGE, sys.float_info.max)
    return min(max(kl_coef, start / KL_COEF_RANGE), highest)


class KLController(Protocol):
    """Moves β between rollouts."""

    def update(self, kl_coef: float, kl: float, episodes: int, start: float) -> float:
        """The next β.

        Args:
            kl_coef: β of the rollout.
            kl: k1 per response, summed over its tokens, in nats: its mean over the episodes that
                finished in the rollout.
            episodes: how many they were.
            start: β that training started with; the next one is `bounded_kl_coef` by it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedKL:
    """β is constant."""

    def update(self, kl_coef: float, kl: float, episodes: int, start: float) -> float:
        """The same β."""
        return kl_coef


ERROR_CLIP = 0.2
"""Bound on the relative error in `AdaptiveKL`, either way (Ziegler et al. 2019, section 2.2)."""

STEP_CLIP = 1.0
"""Bound on the step of `DualKL` in log β, either way: β changes by a factor of e at the most;
otherwise one diverged rollout would move it beyond recovery."""


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """The proportional controller of Ziegler et al. 2019, section 2.2, in log β.

    e = clip((KL − target)/target, −0.2, 0.2); β ← β·(1 + e·min(1, episodes/horizon)).

    The paper has β ← β·(1 + K_β·e) with K_β = 0.1. The horizon in the place of K_β is that of the
    code which accompanies it (https://github.com/openai/lm-human-preferences): K_β =
    episodes/horizon, so that the size of a rollout does not matter. It is capped here, so that β
    changes by a fifth at the most, however many episodes a rollout has.

    Attributes:
        target: KL per response to steer to, in nats.
        horizon: episodes over which an error of e changes β by about the factor exp(e).

    Raises:
        ValueError: `target` or `horizon` is not positive; in `update`, the KL is not finite.
    """

    target: float
    horizon: float

    def __post_init__(self) -> None:
        """Validate the settings."""
        _require_positive(kl_target=self.target, kl_horizon=self.horizon)

    def update(self, kl_coef: float, kl: float, episodes: int, start: float) -> float:
        """As the class says."""
        _require_finite(self, kl)
        error = min(max((kl - self.target) / self.target, -ERROR_CLIP), ERROR_CLIP)
        moved = kl_coef * (1 + error * min(1.0, episodes / self.horizon))
        return bounded_kl_coef(moved, start)


@dataclass(frozen=True, slots=True)
class DualKL:
    """Dual gradient ascent for max E[R] subject to KL ≤ target; β is the multiplier.

    log β ← log β + rate·(KL − target)/target, a step of the ascent in log β, relative to the target
    and held within ±1. So β stays positive, and the rate means the same whatever the scales of β
    and KL are. SAC's code tunes the multiplier of its entropy constraint in the same
    parametrisation (https://arxiv.org/abs/1812.05905, section 5).

    Attributes:
        target: the KL per response to hold, in nats.
        rate: step in log β per rollout whose KL is twice the target.

    Raises:
        ValueError: `target` or `rate` is not positive; in `update`, the KL is not finite.
    """

    target: float
    rate: float

    def __post_init__(self) -> None:
        """Validate the settings."""
        _require_positive(kl_target=self.target, kl_dual_rate=self.rate)

    def update(self, kl_coef: float, kl: float, episodes: int, start: float) -> float:
        """As the class says; `episodes` does not matter."""
        _require_finite(self, kl)
        step = self.rate * (kl - self.target) / self.target
        moved = kl_coef * math.exp(min(max(step, -STEP_CLIP), STEP_CLIP))
        return bounded_kl_coef(moved, start)


def _require_finite(controller: KLController, kl: float) -> None:
    if not math.isfinite(kl):
        raise ValueError(
            f"kl={kl!r} per response can't steer β ({controller}): actor and reference must give "
            "finite log-probabilities. Lower the learning rate, or look for the update from which "
            "on rlhf/kl is not finite."
        )


def _require_positive(**settings: float) -> None:
    check_ranges(settings, dict.fromkeys(settings, POSITIVE_FINITE))
