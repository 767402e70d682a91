"""Credit assignment as pure maths: advantages with a critic and without, and reward whitening.

Axes: `B` sequences, `T` time steps; `G` groups of `k` responses to one prompt each, `n` responses
or tokens of a batch. Everything is computed in float64.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "ADVANTAGE_ESTIMATORS",
    "CRITIC_FREE",
    "GROUPED",
    "ROUNDING",
    "UNIFORM",
    "batch_baseline_advantages",
    "generalized_advantages",
    "group_advantages",
    "leave_one_out_advantages",
    "length_adaptive_lambdas",
    "rounding_floor",
    "sample_deviation",
    "token_advantages",
    "whiten_rewards",
]

ADVANTAGE_ESTIMATORS = ("gae", "monte-carlo", "td", "rloo", "group", "reinforce", "vine")
"""Ways to turn rewards into advantages.

`"gae"`: `generalized_advantages`; `"monte-carlo"`: the same with λ = 1, the rewards to come minus
V; `"td"`: with λ = 0, one-step temporal differences. The others need no critic. `UNIFORM` ones give
all tokens of a response one number: `"rloo"`: `leave_one_out_advantages`; `"group"`:
`group_advantages`; `"reinforce"`: `batch_baseline_advantages`. `"vine"` is `"td"` with a
Monte-Carlo estimate in place of V, the mean return V̂ of K continuations of every state: A_t = r_t +
V̂(s_{t+1}) − V̂(s_t) (VinePPO, Kazemnejad et al. 2024, https://arxiv.org/abs/2410.01679; there for
steps of reasoning, here for tokens).
"""

UNIFORM = ("rloo", "group", "reinforce")
"""The estimators that give all tokens of a response one number."""

CRITIC_FREE = (*UNIFORM, "vine")
"""The estimators without a critic."""

GROUPED = ("rloo", "group")
"""The estimators that compare responses to the same prompt."""


ROUNDING = 1e-6
"""Largest relative rounding error: 8 times the distance of float32 numbers next to 1."""


def rounding_floor(values: np.ndarray, magnitude: float = 0.0) -> float:
    """The deviation up to which numbers may differ by the rounding of float32 alone.

    Args:
        values: any shape.
        magnitude: of the terms they were computed from, if larger than the numbers themselves.
    """
    return ROUNDING * max(float(np.abs(values).max(initial=0.0)), magnitude)


def sample_deviation(values: np.ndarray, magnitude: float = 0.0) -> float:
    """The standard deviation over n − 1; 0 where it is no more than rounding, or n < 2.

    Squares are those of differences from the first value, so that a large mean costs no digits and
    equal values give 0 exactly.

    Args:
        values: any shape, n in all.
        magnitude: as `rounding_floor` takes it.
    """
    if np.size(values) < 2:
        return 0.0
    shifted = np.asarray(values, dtype=np.float64) - float(np.ravel(values)[0])
    deviation = float(shifted.std(ddof=1))
    return 0.0 if deviation <= rounding_floor(values, magnitude) else deviation


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    bootstrap_values: np.ndarray,
    gamma: float,
    gae_lambda: float | np.ndarray,
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
        gae_lambda: λ, 0 for one-step TD, 1 for Monte-Carlo minus V; or (B,), one for each sequence.

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


def length_adaptive_lambdas(lengths: np.ndarray, alpha: float) -> np.ndarray:
    """λ = 1 − 1/(α·l) of a response of l tokens, within [0, 1]: VAPO's length-adaptive GAE.

    Yue et al. 2025, https://arxiv.org/abs/2504.05118, where α = 0.05. The weights λ^k that GAE
    gives the later errors δ sum to 1/(1 − λ) = α·l: the advantage reaches over a share α of the
    response, however long it is. Up to l = 1/α (20 tokens at α = 0.05) that is one token or less,
    the formula gives 0 or less, and λ is 0: one-step temporal differences.

    Args:
        lengths: (B,) tokens of the responses.
        alpha: α > 0.

    Returns:
        (B,) float64.
    """
    return np.clip(1.0 - 1.0 / (alpha * np.asarray(lengths, dtype=np.float64)), 0.0, 1.0)


def leave_one_out_advantages(returns: np.ndarray) -> np.ndarray:
    """RLOO: each return minus the mean of the others in its group; unbiased, without a critic.

    A_i = R_i − (1/(k−1))·Σ_{j≠i} R_j, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740. It
    equals k/(k−1)·(R_i − mean).

    Args:
        returns: (G, k) of G groups of k ≥ 2 responses.

    Returns:
        (G, k) float64; every row sums to 0.

    Raises:
        ValueError: `returns` has another shape.
    """
    deviations = _group_deviations(returns, "rloo")
    return deviations * deviations.shape[1] / (deviations.shape[1] - 1)


def group_advantages(returns: np.ndarray, epsilon: float = 1e-4) -> np.ndarray:
    """GRPO's: returns standardised in their group.

    A_i = (R_i − mean)/(std + ε), Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2.
    The paper leaves the standard deviation open; this is the sample's, which divides by k − 1, as
    TRL and verl have it. ε is far above float32's rounding, so that the responses of a group that
    differ by rounding only, as equal ones do after scoring in different batches, get about 0.

    Args:
        returns: (G, k) of G groups of k ≥ 2 responses.
        epsilon: ε.

    Returns:
        (G, k) float64; 0 in a group of equal returns, and of such as differ by rounding only.

    Raises:
        ValueError: `returns` has another shape.
    """
    deviations = _group_deviations(returns, "group")
    spread = deviations.std(axis=1, ddof=1, keepdims=True) + epsilon
    floor = ROUNDING * np.abs(returns).max(axis=1, keepdims=True)
    differs = spread - epsilon > floor
    return np.divide(deviations, spread, out=np.zeros_like(deviations), where=differs)


def _group_deviations(returns: np.ndarray, estimator: str) -> np.ndarray:
    """(G, k) returns minus the mean of their group: 0 exactly where all of a group are equal."""
    returns = np.asarray(returns, dtype=np.float64)
    if returns.ndim != 2 or returns.shape[1] < 2:
        raise ValueError(
            f"{estimator!r} compares responses to the same prompt, but the returns have shape "
            f"{returns.shape}: give (groups, responses) with at least 2 responses per group."
        )
    # Counted from the first of the group, so that the mean of equal returns has no rounding error.
    shifted = returns - returns[:, :1]
    return shifted - shifted.mean(axis=1, keepdims=True)


def batch_baseline_advantages(returns: np.ndarray) -> np.ndarray:
    """REINFORCE with the mean return of the batch as its baseline: A_i = R_i − mean.

    Williams 1992, https://doi.org/10.1007/BF00992696, with the mean as its baseline b.

    Args:
        returns: (n,) of n responses.

    Returns:
        (n,) float64.

    Raises:
        ValueError: `returns` has another shape.
    """
    returns = np.asarray(returns, dtype=np.float64)
    if returns.ndim != 1:
        raise ValueError(f"the returns have shape {returns.shape}: give one for each response.")
    if not returns.size:
        return returns
    shifted = returns - returns[0]  # equal returns give 0 exactly
    return shifted - shifted.mean()


def token_advantages(
    estimator: str,
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    bootstrap_values: np.ndarray,
    gamma: float,
    gae_lambda: float | np.ndarray,
    group_size: int,
    value_lambda: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of joined sequences, by the name of an estimator.

    Args:
        estimator: one of `ADVANTAGE_ESTIMATORS`.
        rewards: (n,) of all B sequences, one after another.
        values: (n,), V(s_t) of the same steps, V̂(s_t) for `"vine"`; `UNIFORM` ones ignore it.
        lengths: (B,) int, steps of each.
        bootstrap_values: (B,), V of the state after each sequence's last step, 0 at an end.
        gamma: discount factor γ; `CRITIC_FREE` ones take 1.
        gae_lambda: λ of `"gae"`, or (B,), one for each sequence.
        group_size: k of `GROUPED` ones, whose sequences come group after group.
        value_lambda: λ of the returns, which a critic learns; None: that of the advantages.

    Returns:
        (n,) float32 advantages and (n,) float32 returns: GAE(γ, `value_lambda`) + values with a
        critic, the rewards to come without one.
    """
    columns = np.arange(int(np.max(lengths, initial=1)))
    is_step = columns[None, :] < np.asarray(lengths)[:, None]
    padded_rewards, padded_values = (np.zeros(is_step.shape) for _ in range(2))
    padded_rewards[is_step] = rewards
    if estimator not in UNIFORM:
        padded_values[is_step] = values

    def gae(of_lambda: float | np.ndarray) -> np.ndarray:
        inputs = padded_rewards, padded_values, lengths, bootstrap_values
        padded = generalized_advantages(*inputs, gamma, of_lambda)
        with np.errstate(over="ignore"):  # training refuses numbers that are not finite
            return padded[is_step].astype(np.float32)

    own_lambda = {"monte-carlo": 1.0, "td": 0.0, "vine": 0.0}.get(estimator, gae_lambda)
    if estimator not in CRITIC_FREE:
        advantages = gae(own_lambda)
        of_critic = advantages if value_lambda is None else gae(value_lambda)
        with np.errstate(over="ignore"):
            return advantages, of_critic + np.asarray(values, dtype=np.float32)
    # With V = 0 and γ = λ = 1, GAE sums up the rewards to come: all of them, at the first step.
    nothing, ended = np.zeros(is_step.shape), np.zeros(len(is_step))
    to_come = generalized_advantages(padded_rewards, nothing, lengths, ended, 1.0, 1.0)
    with np.errstate(over="ignore"):
        returns = to_come[is_step].astype(np.float32)
    if estimator not in UNIFORM:
        return gae(own_lambda), returns
    per_response = _response_advantages(estimator, to_come[:, 0], group_size)
    with np.errstate(over="ignore"):
        return np.repeat(per_response, lengths).astype(np.float32), returns


def _response_advantages(estimator: str, returns: np.ndarray, group_size: int) -> np.ndarray:
    """(B,) advantages of whole responses from their (B,) returns."""
    if estimator == "reinforce":
        return batch_baseline_advantages(returns)
    estimate = {"rloo": leave_one_out_advantages, "group": group_advantages}[estimator]
    return estimate(np.reshape(returns, (-1, group_size))).reshape(-1)


def whiten_rewards(rewards: np.ndarray) -> np.ndarray:
    """Rewards of standard deviation 1 about the mean they had: (r − mean)/√(var + 1e-8) + mean.

    The mean does not change, as in TRL's `masked_whiten(rewards, shift_mean=False)` over the real
    tokens; the variance divides by n − 1. With s for the square root a reward becomes r/s +
    mean·(1 − 1/s): besides its share, **every token is paid mean·(1 − 1/s) for being there**. Sums
    over responses of different lengths shift against each other, and so does the length of the best
    response: towards longer ones where mean·(1 − 1/s) is positive, towards shorter ones where it is
    negative.

    Args:
        rewards: (n,) of all tokens of a batch, no padding among them.

    Returns:
        (n,) float64; fewer than two rewards come back as they are.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.size < 2:
        return rewards
    shifted = rewards - rewards[0]  # so that equal rewards stay exactly the same
    deviations = shifted - shifted.mean()
    mean = rewards[0] + shifted.mean()
    return deviations / np.sqrt(shifted.var(ddof=1) + 1e-8) + mean
