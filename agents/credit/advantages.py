"""From rewards to advantages, for responses that no update has used and for those that one has.

Axes: `B` responses, `n` tokens of all of them, one response after another.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.credit.settings import UpdateSettings
from agents.credit.states import TokenStates
from tokenenv.maths import (
    GROUPED,
    actor_half,
    batch_baseline_advantages,
    group_advantages,
    kl_penalties,
    leave_one_out_advantages,
    reference_half,
    token_advantages,
)
from tokenenv.rewards import Episode

__all__ = ["TokenAdvantages", "deltas", "held_out_advantages", "reward_parts", "uniform_advantages"]

Uniform = dict[str, float | None]
"""Estimator without a critic → the advantage that it gives all tokens of a response."""


@dataclass(frozen=True)
class TokenAdvantages:
    """The numbers of n tokens from their rewards to their advantages, all float64.

    Attributes:
        reference_halves: (n,) β·log π_ref; NaN where the KL is not paid in halves.
        actor_halves: (n,) −β·log π; likewise.
        kl_rewards: (n,) the KL penalty that is paid as a reward.
        score_rewards: (n,) what of the score is paid.
        values: (n,) V; of the estimator `"vine"`, means of continuations.
        deltas: (n,) δ.
        advantages: (n,) before whitening.
        returns: (n,).
        uniform: B dictionaries.
        ratios: (n,) π/π_old, or None of tokens that no update has used.
        skipped: (n,) response tokens before the first one of the segment.
    """

    reference_halves: np.ndarray
    actor_halves: np.ndarray
    kl_rewards: np.ndarray
    score_rewards: np.ndarray
    values: np.ndarray
    deltas: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray
    uniform: list[Uniform]
    ratios: np.ndarray | None = None
    skipped: np.ndarray | int = 0

    @property
    def rewards(self) -> np.ndarray:
        """(n,) what was paid."""
        return self.kl_rewards + self.score_rewards


def held_out_advantages(
    episodes: Sequence[Episode],
    states: TokenStates,
    score_rewards: np.ndarray,
    settings: UpdateSettings,
    vine_values: np.ndarray | None = None,
) -> TokenAdvantages:
    """Advantages of finished responses as the agent's estimator would compute them.

    Args:
        episodes: B of them.
        states: of their n tokens.
        score_rewards: (n,) what of the scores is paid with each token.
        settings: of the agent.
        vine_values: (n,) means of continuations, for the estimator that has them for V.

    Raises:
        ValueError: the estimator compares responses to a prompt, and one has no other.
    """
    lengths = np.array([len(e.response) for e in episodes])
    values = states.values if vine_values is None else vine_values
    assert settings.kl_coef is not None
    parts = reward_parts(
        states.log_probs, states.ref_log_probs, states.full_kls, settings, settings.kl_coef
    )
    rewards = parts[2] + score_rewards
    scaled = settings.reward_factor * rewards + settings.reward_shift
    ended = np.zeros(len(episodes))
    returns = np.add.reduceat(rewards, np.cumsum(lengths) - lengths)
    uniform = uniform_advantages(returns, [e.prompt_key for e in episodes])
    estimator = settings.advantage_estimator
    if estimator in GROUPED:
        advantages = np.repeat(_of_groups(estimator, uniform), lengths)
        _, to_come = token_advantages("reinforce", rewards, values, lengths, ended, 1.0, 1.0, 1)
    else:
        advantages, to_come = token_advantages(
            estimator,
            scaled,
            values,
            lengths,
            ended,
            settings.gamma,
            settings.lambda_of(lengths),
            settings.group_size,
            settings.gae_lambda_value,
        )
    return TokenAdvantages(
        *parts,
        score_rewards=score_rewards,
        values=values,
        deltas=deltas(scaled, values, lengths, ended, settings.gamma),
        advantages=np.asarray(advantages, dtype=np.float64),
        returns=np.asarray(to_come, dtype=np.float64),
        uniform=uniform,
    )


def _of_groups(estimator: str, uniform: Sequence[Uniform]) -> np.ndarray:
    """(B,) advantages of an estimator that compares responses to one prompt."""
    per_response = [advantages[estimator] for advantages in uniform]
    if None in per_response:
        raise ValueError(
            f"advantage_estimator={estimator!r} compares responses to the same prompt, and "
            f"{per_response.count(None)} of {len(uniform)} have no other: give 2 or more "
            "responses for each prompt."
        )
    return np.array(per_response, dtype=np.float64)


def reward_parts(
    log_probs: np.ndarray,
    ref_log_probs: np.ndarray,
    full_kls: np.ndarray,
    settings: UpdateSettings,
    kl_coef: float | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) of the KL penalty: the reference's half, the actor's half, and what is paid in all.

    The halves are NaN where the penalty is no sum of two, and the last is 0 where it is a loss.

    Args:
        log_probs: (n,) log π.
        ref_log_probs: (n,) log π_ref.
        full_kls: (n,) KL(π ‖ π_ref) at the states.
        settings: with the estimator.
        kl_coef: β, or (n,) where it moved between the tokens.
    """
    nothing = np.full(len(log_probs), np.nan)
    if settings.use_kl_loss:
        return nothing, nothing, np.zeros(len(log_probs))
    if settings.kl_estimator == "full":
        return nothing, nothing, -kl_coef * full_kls
    if settings.kl_estimator != "k1":
        paid = kl_penalties(settings.kl_estimator, log_probs, ref_log_probs, kl_coef)
        return nothing, nothing, -paid
    reference, actor = reference_half(ref_log_probs, kl_coef), actor_half(log_probs, kl_coef)
    return reference, actor, reference + actor


def deltas(
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    following_values: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """(n,) δ_t = r_t + γ·V(s_{t+1}) − V(s_t).

    Args:
        rewards: (n,).
        values: (n,).
        lengths: (B,).
        following_values: (B,) V after the last token of each; 0 at an end.
        gamma: γ.
    """
    following = np.append(values[1:], 0.0)
    following[np.cumsum(lengths) - 1] = following_values
    return rewards + gamma * following - values


def uniform_advantages(returns: np.ndarray, prompts: Sequence[Hashable]) -> list[Uniform]:
    """What the estimators without a critic give each of B responses.

    Args:
        returns: (B,) sums of their rewards.
        prompts: B keys; responses with the same one are compared.

    Returns:
        B dictionaries; None where a response has no other to compare it with.
    """
    result: list[Uniform] = [
        {"rloo": None, "group": None, "reinforce": float(advantage)}
        for advantage in batch_baseline_advantages(returns)
    ]
    for prompt in set(prompts):
        members = np.flatnonzero([other == prompt for other in prompts])
        if len(members) < 2:
            continue
        group = returns[members][None, :]  # (1, k)
        for name, estimate in (("rloo", leave_one_out_advantages), ("group", group_advantages)):
            for member, advantage in zip(members.tolist(), estimate(group)[0], strict=True):
                result[member][name] = float(advantage)
    return result
