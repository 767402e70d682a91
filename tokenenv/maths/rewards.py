"""The reward of a token, in one place: r_t = R_t − β·KL̂_t.

R_t is the score R(x, y) at the last token of the response and 0 before it (or the reward of a
function for each token); KL̂_t estimates the KL divergence from the reference at the token
(`tokenenv.maths.kl`). Where the KL estimate is k1, the penalty is a sum of two halves, which two
parties pay:

    r_t = [β·log π_ref(a_t|s_t) + R_t]  −  β·log π(a_t|s_t)
          the environment: a function     RLHFCallback, which knows π
          of state and action alone

The environment's half is paid by `TokenMDP.step`, or with deferred scoring by the rollout buffer
for a whole rollout at once. k2, k3 and full are no such sums: the agent's side pays all of them.
The sum is always `token_rewards`; tests compare every path with it.
"""

from __future__ import annotations

import numpy as np

from tokenenv.maths.kl import kl_estimate

__all__ = ["actor_half", "kl_penalties", "reference_half", "token_rewards"]


def reference_half(ref_log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """β·log π_ref(a_t|s_t), the half of the KL penalty k1 that is a function of (s, a) alone."""
    return kl_coef * ref_log_probs


def actor_half(log_probs: np.ndarray, kl_coef: float | np.ndarray) -> np.ndarray:
    """−β·log π(a_t|s_t), the half that the agent pays, which knows π."""
    return -kl_coef * log_probs


def kl_penalties(
    estimator: str,
    log_probs: np.ndarray,
    ref_log_probs: np.ndarray,
    kl_coef: float | np.ndarray,
) -> np.ndarray:
    """(n,) float64 β·KL̂ of tokens, for the estimators of a single log-ratio: k1, k2, k3.

    Args:
        estimator: its name.
        log_probs: (n,) log π of the tokens.
        ref_log_probs: (n,) log π_ref of them.
        kl_coef: β, or (n,) where it moved between the tokens.
    """
    log_ratio = np.asarray(log_probs, dtype=np.float64) - ref_log_probs
    return kl_coef * kl_estimate(estimator, log_ratio)


def token_rewards(
    score: float | np.ndarray,
    log_probs: np.ndarray,
    ref_log_probs: np.ndarray,
    kl_coef: float | np.ndarray,
    estimator: str = "k1",
    full_kls: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) float64 rewards of the n tokens of one finished response.

    Args:
        score: R(x, y), paid with the last token; or (n,), the reward of each token.
        log_probs: (n,) log π of the tokens.
        ref_log_probs: (n,) log π_ref of them.
        kl_coef: β, or (n,) where it moved within the response.
        estimator: one of `KL_ESTIMATORS`.
        full_kls: (n,) KL(π ‖ π_ref) at the states of the tokens; for the estimator `"full"`.

    Raises:
        ValueError: the estimator is `"full"` without `full_kls`, or unknown.
    """
    paid = np.zeros(len(log_probs))
    if np.ndim(score):
        paid += score
    else:
        paid[-1:] = score
    if estimator != "full":
        return paid - kl_penalties(estimator, log_probs, ref_log_probs, kl_coef)
    if full_kls is None:
        raise ValueError("estimator='full' needs full_kls, the KL divergence at every state.")
    return paid - kl_coef * np.asarray(full_kls, dtype=np.float64)
