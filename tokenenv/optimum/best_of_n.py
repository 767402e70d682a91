"""Best-of-n in closed form, and the tilted optimum that pays as much KL.

Best-of-n draws n responses from the reference and takes the one with the highest score; where
several have it, the first that was drawn. Such a tie falls on every response of that score as the
reference's draws do, so the responses of one score, a *block*, share its probability in proportion
to π_ref. With F(y) the mass of the responses that score at most R(y), F(y⁻) that of those that
score less, and p(y) = F(y) − F(y⁻) that of the block,

    q(y) = π_ref(y)/p(y)·(F(y)^n − F(y⁻)^n),        which is F(y)^n − F(y⁻)^n without ties.

Within a block q/π_ref is constant, so KL(q ‖ π_ref) = Σ_blocks Q·log(Q/p) with Q = F^n − F⁻^n. It
lies below log n − (n − 1)/n (Beirami et al. 2024, https://arxiv.org/abs/2401.01879), which it
reaches where no response and no tie has a mass of its own: with a finite number of responses the
bound is never the KL.

No policy has a greater E[R] at the same KL than the tilted optimum π*_β′(y) ∝ π_ref(y)·exp(R(y)/β′)
with the β′ at which its KL is that. One β′ holds for all prompts, since it is the mean KL over
prompts that is equal.

Axes: `X` prompts, `N` responses to each, `B` blocks of one prompt. Everything is float64, and keeps
its digits up to n = 10⁹: F is summed from below and from above, and only logs of it are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenenv.optimum.log_sums import divergence
from tokenenv.optimum.prefix_tree import PrefixTree
from tokenenv.ranges import COUNT, Range, check_ranges
from tokenenv.settings import check_kl_coef

__all__ = [
    "PolicyPoint",
    "ScoredResponses",
    "best_of_n",
    "best_of_n_log_probs",
    "kl_coef_of_equal_kl",
    "kl_upper_bound",
    "optimum",
    "tilted_log_probs",
    "tilted_optimum",
]

_KL = Range("a number of at least 0", 0)


@dataclass(frozen=True, slots=True)
class PolicyPoint:
    """Where a policy stands; means over prompts.

    Attributes:
        kl: KL(π ‖ π_ref) per response, in nats.
        score: E[R].
        gold_reward: E[gold], or None.
    """

    kl: float
    score: float
    gold_reward: float | None

    def objective(self, kl_coef: float) -> float:
        """J = E[R] − β·KL at the β that is given."""
        return self.score - kl_coef * self.kl


@dataclass(frozen=True)
class ScoredResponses:
    """All responses to some prompts, with their probability under the reference.

    Attributes:
        log_probs: (X, N) log π_ref(y|x), normalised.
        scores: (X, N) R(x, y).
        gold_rewards: (X, N), or None.

    Raises:
        ValueError: the shapes differ, a score is not finite, or the probabilities of a prompt's
            responses don't sum to 1.
    """

    log_probs: np.ndarray
    scores: np.ndarray
    gold_rewards: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check the tables, and take the rounding out of the probabilities."""
        log_probs = np.asarray(self.log_probs, dtype=np.float64)
        scores = np.asarray(self.scores, dtype=np.float64)
        gold = self.gold_rewards
        shapes = {log_probs.shape, scores.shape, scores.shape if gold is None else np.shape(gold)}
        if len(shapes) > 1 or scores.ndim != 2 or not scores.size:
            raise ValueError(
                f"log_probs, scores and gold_rewards have the shapes {sorted(shapes)}: give one "
                "number each for X ≥ 1 prompts and N ≥ 1 responses, as (X, N)."
            )
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite: best-of-n needs to know which is highest.")
        totals = np.logaddexp.reduce(log_probs, axis=1)
        if not np.abs(totals).max() <= 1e-6:
            raise ValueError(
                f"the probabilities of a prompt's responses sum to {math.exp(totals.max()):.6g}, "
                "not 1: give log-probabilities of all its responses."
            )
        object.__setattr__(self, "log_probs", log_probs - totals[:, None])
        object.__setattr__(self, "scores", scores)

    @classmethod
    def of_tree(cls, tree: PrefixTree) -> ScoredResponses:
        """Those of a task that is enumerated."""
        gold = tree.gold_rewards
        return cls(
            tree.response_log_probs(tree.ref_log_probs),
            tree.finished(tree.scores),
            None if gold is None else tree.finished(gold),
        )

    @classmethod
    def of_samples(
        cls, scores: np.ndarray, gold_rewards: np.ndarray | None = None
    ) -> ScoredResponses:
        """Samples of the reference in its place, as if each were as likely as the others.

        Args:
            scores: (X, m).
            gold_rewards: (X, m), or None.
        """
        return cls(np.full(np.shape(scores), -math.log(np.shape(scores)[1])), scores, gold_rewards)

    @property
    def highest(self) -> np.ndarray:
        """(X, 1) the highest score that a response of the reference can have."""
        is_possible = np.isfinite(self.log_probs)
        return np.where(is_possible, self.scores, -np.inf).max(axis=1, keepdims=True)

    @cached_property
    def blocks(self) -> list[_Blocks]:
        """The blocks of each prompt."""
        return [_Blocks.of(*row) for row in zip(self.log_probs, self.scores, strict=True)]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The responses to one prompt, by score: lowest block first.

    Attributes:
        scores: (B,) R.
        log_masses: (B,) log p.
        log_up_to: (B,) log F.
        block_of: (N,) the block of each response.
    """

    scores: np.ndarray
    log_masses: np.ndarray
    log_up_to: np.ndarray
    block_of: np.ndarray

    @classmethod
    def of(cls, log_probs: np.ndarray, scores: np.ndarray) -> _Blocks:
        levels, block_of = np.unique(scores, return_inverse=True)
        order = np.argsort(block_of, kind="stable")
        starts = np.searchsorted(block_of[order], np.arange(len(levels)))
        log_masses = np.logaddexp.reduceat(log_probs[order], starts)
        below = np.logaddexp.accumulate(log_masses)
        above = np.logaddexp.accumulate(log_masses[::-1])[::-1]
        above = np.append(above[1:], -np.inf)
        # Of F near 1 the digits are in 1 − F, of F near 0 in F itself.
        is_high = above < math.log(0.5)
        log_up_to = np.where(is_high, np.log1p(-np.exp(np.where(is_high, above, -1.0))), below)
        return cls(levels, log_masses, log_up_to, block_of)

    def log_probs(self, n: int) -> np.ndarray:
        """(B,) log Q = log(F^n − F⁻^n) = n·log F + log(1 − (1 − p/F)^n)."""
        before = np.append(-np.inf, self.log_up_to[:-1])
        with np.errstate(invalid="ignore", divide="ignore", under="ignore"):
            log_ratio = np.minimum(self.log_masses - self.log_up_to, 0.0)  # log p/F
            ratio = np.exp(log_ratio)
            log_rest = np.where(ratio < 0.5, np.log1p(-ratio), before - self.log_up_to)
            log_share = np.log(-np.expm1(n * np.minimum(log_rest, 0.0)))
            # Where p/F underflows, or nearly so: 1 − (1 − p/F)^n = n·p/F.
            log_share = np.where(log_ratio < -450.0, math.log(n) + log_ratio, log_share)
            log_probs = n * self.log_up_to + log_share
        return np.where(np.isneginf(self.log_masses), -np.inf, log_probs)


def kl_upper_bound(n: int) -> float:
    """What KL(best-of-n ‖ π_ref) does not exceed, in nats: log n − (n − 1)/n.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    check_ranges({"n": n}, {"n": COUNT})
    return math.log(n) - (n - 1) / n


def best_of_n_log_probs(responses: ScoredResponses, n: int) -> np.ndarray:
    """(X, N) log q(y|x) of best-of-n.

    Args:
        responses: all there are.
        n: samples that the best is taken of.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    check_ranges({"n": n}, {"n": COUNT})
    with np.errstate(invalid="ignore"):
        gained = [(b.log_probs(n) - b.log_masses)[b.block_of] for b in responses.blocks]
        return np.where(np.isneginf(responses.log_probs), -np.inf, responses.log_probs + gained)


def best_of_n(responses: ScoredResponses, n: int) -> PolicyPoint:
    """E[R], E[gold] and KL(q ‖ π_ref) of best-of-n, exactly.

    Args:
        responses: all there are.
        n: samples that the best is taken of.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    log_probs = best_of_n_log_probs(responses, n)
    scores, kls = [], []
    for block in responses.blocks:
        log_block = block.log_probs(n)
        scores.append(np.exp(log_block) @ block.scores)
        kls.append(divergence(log_block, block.log_masses))
    return PolicyPoint(
        float(np.mean(kls)) if n > 1 else 0.0,
        float(np.mean(scores)),
        _expected(log_probs, responses.gold_rewards),
    )


# The tilted optimum ------------------------------------------------------------------------------


def tilted_optimum(responses: ScoredResponses, kl_coef: float) -> PolicyPoint:
    """E[R], E[gold] and KL of π*_β(y) ∝ π_ref(y)·exp(R(y)/β), one β for all prompts.

    Args:
        responses: all there are.
        kl_coef: β. 0: the limit, the reference on its responses of the highest score; ∞: the
            reference.
    """
    log_probs = tilted_log_probs(responses, kl_coef)
    return PolicyPoint(
        float(divergence(log_probs, responses.log_probs).mean()),
        float(_expected(log_probs, responses.scores) or 0.0),
        _expected(log_probs, responses.gold_rewards),
    )


def optimum(responses: ScoredResponses, kl_coef: float) -> float:
    """J* = β·log E_{y ~ π_ref}[exp(R/β)], mean over prompts; at β = 0 the highest score.

    Args:
        responses: all there are.
        kl_coef: β.

    Raises:
        ValueError: β is negative or no finite number.
    """
    kl_coef = check_kl_coef(kl_coef)
    best = responses.highest[:, 0]
    if kl_coef:
        weights = responses.log_probs + _tilt(responses, kl_coef)
        best = best + kl_coef * np.logaddexp.reduce(weights, axis=1)
    return float(best.mean())


def kl_coef_of_equal_kl(responses: ScoredResponses, kl: float) -> float:
    """The β′ at which the tilted optimum has that KL, mean over prompts.

    Args:
        responses: all there are.
        kl: in nats per response.

    Returns:
        β′; ∞ for a KL of 0; 0 where no tilted optimum has so much KL, up to rounding: beyond the
        limit there is no more E[R] to have for it.

    Raises:
        ValueError: `kl` is negative.
    """
    check_ranges({"kl": kl}, {"kl": _KL})
    if kl == 0:
        return math.inf
    if kl >= tilted_optimum(responses, 0.0).kl * (1.0 - 1e-12):
        return 0.0
    from scipy.optimize import brentq  # here: it takes a while

    def excess(log_kl_coef: float) -> float:
        return tilted_optimum(responses, math.exp(log_kl_coef)).kl - kl

    low = high = math.log(float(np.ptp(responses.scores, axis=1).max()))
    while excess(high) > 0:
        high += 2.0
    while excess(low) < 0:
        if low < -600.0:  # scores that differ by less than what a float can be divided by
            return 0.0
        low -= 2.0
    return math.exp(brentq(excess, low, high, xtol=1e-13, rtol=1e-14))


def tilted_log_probs(responses: ScoredResponses, kl_coef: float) -> np.ndarray:
    """(X, N) log π*_β(y|x); β as `tilted_optimum` takes it."""
    tilted = responses.log_probs + _tilt(responses, kl_coef)
    return tilted - np.logaddexp.reduce(tilted, axis=1, keepdims=True)


def _tilt(responses: ScoredResponses, kl_coef: float) -> np.ndarray:
    """(X, N) (R − highest)/β, and its limit at β = 0."""
    # A response that never comes may score higher; it must not push the others out of range.
    below = np.minimum(responses.scores - responses.highest, 0.0)
    if kl_coef == 0:
        return np.where(below == 0, 0.0, -np.inf)
    with np.errstate(over="ignore"):
        return below / kl_coef


def _expected(log_probs: np.ndarray, values: np.ndarray | None) -> float | None:
    """Σ_y π(y)·f(y), mean over prompts; None without values."""
    return None if values is None else float((np.exp(log_probs) * values).sum(axis=1).mean())
