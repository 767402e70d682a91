"""How much of a policy gradient is signal: per-episode gradients, with and without a critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.compare.rollouts import Rollout

__all__ = [
    "GradientNoise",
    "critic_predictions",
    "explained_variance",
    "measure_gradients",
    "signal_to_noise",
]

RIDGE = 1e-3
"""Weight of the ridge regression's penalty, relative to the number of states."""


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Signal and noise of the policy gradient of one episode.

    Attributes:
        snr_without_critic: ‖E g‖²/tr Cov(g) of g = Σ_t ∇log π(a_t|s_t)·G_t, where G_t is the return
            from t on. 1/snr episodes have to be averaged until signal and noise are equal.
        snr_without_critic_error: its standard error.
        snr_with_critic: the same with G_t − V(s_t).
        snr_with_critic_error: its standard error.
        explained_variance: 1 − Var(G_t − V(s_t))/Var(G_t) on episodes that V was not fitted on;
            None where all G_t are the same.
    """

    snr_without_critic: float
    snr_without_critic_error: float
    snr_with_critic: float
    snr_with_critic_error: float
    explained_variance: float | None


def measure_gradients(policy: ActorCriticPolicy, rollouts: Sequence[Rollout]) -> GradientNoise:
    """Signal-to-noise of the policy gradient at `policy`, which has played `rollouts`.

    The critic is one on the policy's features: a ridge regression of G_t on the inputs of its value
    head, fitted on the other half of the episodes.

    Args:
        policy: of SB3, with a value head `value_net`.
        rollouts: n ≥ 4 episodes.
    """
    returns = [rollout.returns_to_go for rollout in rollouts]
    features = [value_features(policy, rollout) for rollout in rollouts]
    values = critic_predictions(features, returns)
    pairs = [
        episode_gradients(policy, r, [g, g - v])
        for r, g, v in zip(rollouts, returns, values, strict=True)
    ]
    without = signal_to_noise(np.stack([pair[0] for pair in pairs]))
    with_critic = signal_to_noise(np.stack([pair[1] for pair in pairs]))
    explained = explained_variance(np.concatenate(values), np.concatenate(returns))
    return GradientNoise(*without, *with_critic, explained)


def signal_to_noise(gradients: np.ndarray) -> tuple[float, float]:
    """‖E g‖²/tr Cov(g) of independent gradients, and its standard error by the jackknife.

    ‖E g‖² is estimated without bias by the mean of g_i·g_j over i ≠ j, so the result may come out
    below 0 where there is no signal to see; ∞ where all gradients are the same.

    Args:
        gradients: (n, p), n ≥ 3.
    """
    count = len(gradients)
    inner = gradients.astype(np.float64) @ gradients.astype(np.float64).T
    ratio = _snr(inner.sum(), np.trace(inner), count)
    rest_sum = inner.sum() - 2.0 * inner.sum(axis=1) + np.diag(inner)
    rest_trace = np.trace(inner) - np.diag(inner)
    left_out = np.array([_snr(s, t, count - 1) for s, t in zip(rest_sum, rest_trace, strict=True)])
    if not np.isfinite(left_out).all():
        return ratio, 0.0
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    return ratio, float(error)


def _snr(total: float, trace: float, count: int) -> float:
    """From Σ_ij g_i·g_j and Σ_i ‖g_i‖² of `count` gradients."""
    signal = (total - trace) / (count * (count - 1))
    noise = trace / count - signal
    if noise <= 1e-12 * max(trace / count, 1e-300):
        return np.inf if signal > 0 else 0.0
    return float(signal / noise)


def critic_predictions(
    features: Sequence[np.ndarray], returns: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """V(s_t) for every step of every episode, by a regression that has not seen the episode.

    Args:
        features: n arrays (T_i, h) of what the value head sees.
        returns: n arrays (T_i,) of G_t.

    Returns:
        n arrays (T_i,); episodes of even number are predicted from those of odd number, and the
        other way round.
    """
    predictions: list[np.ndarray] = [np.zeros(0)] * len(features)
    for fold in (0, 1):
        fitted = [i for i in range(len(features)) if i % 2 != fold]
        predict = _ridge(
            np.concatenate([features[i] for i in fitted]),
            np.concatenate([returns[i] for i in fitted]),
        )
        for i in range(fold, len(features), 2):
            predictions[i] = predict(features[i])
    return predictions


def _ridge(x: np.ndarray, y: np.ndarray):  # type: ignore[no-untyped-def]
    """The function of a ridge regression on standardised features, with an intercept."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 1e-8, std, np.inf)
    z = (x - mean) / std
    gram = z.T @ z + RIDGE * len(z) * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, z.T @ (y - y.mean()))
    return lambda new: (new - mean) / std @ weights + y.mean()


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float | None:
    """1 − Var(G − V)/Var(G); None where all G are the same."""
    total = returns.var()
    return float(1.0 - (returns - values).var() / total) if total > 1e-12 else None


def value_features(policy: ActorCriticPolicy, rollout: Rollout) -> np.ndarray:
    """(T, h) what the policy's value head sees at the states of an episode."""
    features: list[torch.Tensor] = []
    hook = policy.value_net.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        with torch.no_grad():
            policy.evaluate_actions(*_tensors(policy, rollout))
    finally:
        hook.remove()
    return features[0].double().cpu().numpy()


def episode_gradients(
    policy: ActorCriticPolicy, rollout: Rollout, weights: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """For each w of `weights`: Σ_t w_t·∇log π(a_t|s_t) over all parameters that it reaches.

    Args:
        policy: of SB3.
        rollout: T steps.
        weights: arrays (T,).

    Returns:
        Arrays (p,), float32.
    """
    _, log_probs, _ = policy.evaluate_actions(*_tensors(policy, rollout))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = []
    for weight in weights:
        total = (torch.as_tensor(weight, dtype=log_probs.dtype) * log_probs).sum()
        parts = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(parts, parameters, strict=True)
        ]
        gradients.append(torch.cat(flat).float().numpy())
    return gradients


def _tensors(policy: ActorCriticPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    observations, _ = policy.obs_to_tensor(rollout.observations)
    return observations, torch.as_tensor(rollout.actions).long()  # type: ignore[return-value]
