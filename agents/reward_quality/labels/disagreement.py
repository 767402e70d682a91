"""How much reward models contradict each other about a pair of responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenenv.rewards import RewardModel, TokenPair

__all__ = ["DISAGREEMENTS", "bald", "member_probabilities", "probability_variance"]


def member_probabilities(
    members: Sequence[RewardModel], pairs: Sequence[Sequence[TokenPair]]
) -> np.ndarray:
    """(M, B) probabilities σ(r(a) − r(b)) that a is the better one, by each member.

    The raw rewards are meant, in whose units Bradley and Terry's probabilities are learned: each
    member has its own scale, and says by it how sure it is.

    Args:
        members: M reward models.
        pairs: for each of them the B pairs in its tokens, response a as the chosen one.

    Raises:
        ValueError: a reward is not finite.
    """
    probabilities = []
    for member, of_member in zip(members, pairs, strict=True):
        a = member.raw_rewards([pair.chosen for pair in of_member])
        b = member.raw_rewards([pair.rejected for pair in of_member])
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(
                f"the reward model {member.name!r} gives rewards that are not finite to pairs of "
                "the pool: train it again, or leave it out."
            )
        probabilities.append(0.5 * (1.0 + np.tanh((a - b) / 2.0)))
    return np.stack(probabilities)


def bald(probabilities: np.ndarray) -> np.ndarray:
    """(B,) mutual information of a pair's label and the member that predicts it, in nats.

    H(mean p) − mean H(p), H the entropy of a coin (BALD: Houlsby et al. 2011,
    https://arxiv.org/abs/1112.5745): 0 where all members say the same, however unsure; log 2 where
    half of them are sure of a and half of b.

    Args:
        probabilities: (M, B).
    """
    return np.maximum(
        0.0, _entropy(probabilities.mean(axis=0)) - _entropy(probabilities).mean(axis=0)
    )


def probability_variance(probabilities: np.ndarray) -> np.ndarray:
    """(B,) variance of (M, B) probabilities over the members; ¼ at most."""
    return np.asarray(probabilities.var(axis=0))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of a coin in nats; 0·log 0 = 0."""
    p = np.clip(probabilities, 1e-300, 1.0)
    q = np.clip(1.0 - probabilities, 1e-300, 1.0)
    return -(p * np.log(p) + q * np.log(q))


DISAGREEMENTS = {"bald": bald, "variance": probability_variance}
"""Name → function of (M, B) probabilities."""
