"""Credit assignment as pure maths: generalised advantage estimation on padded sequences.

Axes: `B` sequences, `T` time steps. Everything is computed in float64.
"""

from __future__ import annotations

import numpy as np

__all__ = ["generalized_advantages"]


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    bootstrap_values: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """GAE(γ, λ), Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 11 and 16.

    A_t = δ_t + γλ·A_{t+1} with δ_t = r_t + γ·V(s_{t+1}) − V(s_t); at the last step of a sequence
    V(s_{t+1}) is its bootstrap value: 0 where the episode has ended, the critic's value of the next
    state where a rollout cut it. Each row is one sequence, so credit never crosses from one to the
    next.

    Args:
        rewards: (B, T), row b valid in its first `lengths[b]` columns.
        values: (B, T), V(s_t) of the same steps.
        lengths: (B,) int, 1 ≤ lengths ≤ T.
        bootstrap_values: (B,), V of the state after each row's last step.
        gamma: discount factor γ.
        gae_lambda: λ, 0 for one-step TD, 1 for Monte-Carlo minus V.

    Returns:
        (B, T) float64 advantages, 0 beyond each row's length. Returns are advantages + values.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    steps = rewards.shape[1]
    is_step = np.arange(steps)[None, :] < np.asarray(lengths)[:, None]
    is_last = np.arange(steps)[None, :] == np.asarray(lengths)[:, None] - 1
    next_values = np.zeros_like(values)
    next_values[:, :-1] = values[:, 1:]
    next_values = np.where(is_last, np.asarray(bootstrap_values)[:, None], next_values)
    deltas = np.where(is_step, rewards + gamma * next_values - values, 0.0)

    advantages = np.zeros_like(rewards)
    following = np.zeros(len(rewards))
    for step in reversed(range(steps)):
        following = deltas[:, step] + gamma * gae_lambda * following * ~is_last[:, step]
        advantages[:, step] = following
    return advantages
