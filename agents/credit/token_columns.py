"""The columns of a token table, from what is known of its tokens.

Axes: `B` responses, `n` tokens of all of them, one response after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from agents.credit.advantages import TokenAdvantages
from agents.credit.columns import COLUMNS, WHOLE_COLUMNS
from agents.credit.exact_strength import exact_norms_and_shares
from agents.credit.output_layer import output_layer_norms, output_layer_shares
from agents.credit.settings import UpdateSettings
from agents.credit.states import TokenStates
from agents.credit.texts import alternative_texts, token_texts
from agents.policy import LMActorCriticPolicy
from tokenenv.maths import kl_estimate
from tokenenv.models import LanguageModel
from tokenenv.rewards import EpisodeScorer

__all__ = ["clip_sides", "split_columns", "token_columns"]


def token_columns(
    policy: LMActorCriticPolicy,
    scorer: EpisodeScorer,
    prefixes: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    states: TokenStates,
    advantages: TokenAdvantages,
    settings: UpdateSettings,
    exact: bool,
) -> dict[str, Any]:
    """Name → (n,) of every column.

    Args:
        policy: after the update, where there was one.
        scorer: with the reference, whose tokenizer names the tokens.
        prefixes: B arrays of the token ids before each response.
        responses: B arrays of token ids.
        states: what the models say of them.
        advantages: rewards, values, advantages, ratios.
        settings: of the agent.
        exact: whether exact strengths are computed.
    """
    whitening = settings.whitening
    whitened = advantages.advantages if whitening is None else whitening(advantages.advantages)
    columns = {
        **_states(scorer.reference.language_model, responses, states, advantages.skipped),
        **_rewards(advantages, settings, whitened),
        **_update(policy, responses, states, advantages, settings, whitened),
    }
    if exact:
        weights = columns["weight"]
        norms, shares = exact_norms_and_shares(policy, prefixes, responses, weights)
        columns["exact_strength"], columns["exact_share"] = np.abs(weights) * norms, shares
    return {name: columns[name] for name in (*COLUMNS, *WHOLE_COLUMNS)}


def _states(
    language_model: LanguageModel,
    responses: Sequence[np.ndarray],
    states: TokenStates,
    skipped: np.ndarray | int,
) -> dict[str, Any]:
    """What the models say of the tokens."""
    return {
        "position": np.concatenate([np.arange(len(r)) for r in responses]) + skipped,
        "token": states.actions,
        "text": [text for response in responses for text in token_texts(language_model, response)],
        "log_prob": states.log_probs,
        "ref_log_prob": states.ref_log_probs,
        "kl": states.log_probs - states.ref_log_probs,
        "full_kl": states.full_kls,
        "entropy": states.entropies,
        "top_tokens": states.top_tokens,
        "top_texts": alternative_texts(language_model, states.top_tokens),
        "top_probs": states.top_probs,
    }


def _rewards(
    advantages: TokenAdvantages, settings: UpdateSettings, whitened: np.ndarray
) -> dict[str, Any]:
    """From the reward in its parts to the whitened advantage."""
    unknown = np.full(len(whitened), np.nan)
    errors = (advantages.returns - advantages.values) / settings.return_deviation
    return {
        "reward_reference": advantages.reference_halves,
        "reward_actor": advantages.actor_halves,
        "reward_kl": advantages.kl_rewards,
        "reward_score": advantages.score_rewards,
        "reward": advantages.rewards,
        "value": advantages.values if settings.has_values else unknown,
        "delta": advantages.deltas if settings.has_values else unknown,
        "advantage": advantages.advantages,
        "whitened": whitened,
        "return": advantages.returns,
        "true_advantage": unknown,
        "value_loss": np.square(errors) if settings.has_critic else unknown,
    }


def _update(
    policy: LMActorCriticPolicy,
    responses: Sequence[np.ndarray],
    states: TokenStates,
    advantages: TokenAdvantages,
    settings: UpdateSettings,
    whitened: np.ndarray,
) -> dict[str, Any]:
    """Ratio, clip, and how strong the update is; the other terms of the loss."""
    n, unknown = len(whitened), np.full(len(whitened), np.nan)
    ratio = np.ones(n) if advantages.ratios is None else advantages.ratios
    stops = clip_sides(ratio, whitened, settings.clip_range, settings.clip_range_high)
    weights = np.where(stops == "", whitened * ratio, 0.0)
    weights *= settings.token_weights(np.array([len(response) for response in responses]))
    norms = output_layer_norms(policy, states)
    return {
        "ratio": unknown if advantages.ratios is None else ratio,
        "clip": [None] * n if advantages.ratios is None else stops.tolist(),
        "weight": weights,
        "strength": np.abs(weights) * norms,
        "share": output_layer_shares(policy, states, weights),
        "exact_strength": unknown,
        "exact_share": unknown,
        "entropy_bonus": settings.ent_coef * states.entropies,
        "gradient_norm": norms,
        "kl_loss": _kl_losses(states, settings),
    }


def clip_sides(
    ratios: np.ndarray,
    advantages: np.ndarray,
    clip_range: float,
    clip_range_high: float | None = None,
) -> np.ndarray:
    """(n,) `"high"` or `"low"` where PPO's surrogate has no gradient, else `""`.

    The surrogate is min(A·r, A·clip(r, 1 − ε, 1 + ε)) (Schulman et al. 2017, eq. 7): a ratio
    outside of the range stops the gradient only where moving on would raise the surrogate.

    Args:
        ratios: (n,) r.
        advantages: (n,) A, whitened as the loss has them.
        clip_range: ε.
        clip_range_high: ε of a ratio above 1; None: the same.
    """
    above = clip_range if clip_range_high is None else clip_range_high
    high = (advantages > 0) & (ratios > 1 + above)
    low = (advantages < 0) & (ratios < 1 - clip_range)
    return np.where(high, "high", np.where(low, "low", ""))


def _kl_losses(states: TokenStates, settings: UpdateSettings) -> np.ndarray:
    """(n,) β times the KL estimate of each token where the penalty is a loss, else 0."""
    if not settings.use_kl_loss:
        return np.zeros(len(states.actions))
    assert settings.kl_coef is not None
    if settings.kl_estimator == "full":
        return settings.kl_coef * states.full_kls
    log_ratios = states.log_probs - states.ref_log_probs
    return settings.kl_coef * kl_estimate(settings.kl_estimator, log_ratios)


def split_columns(
    columns: dict[str, Any], responses: Sequence[np.ndarray]
) -> list[dict[str, list[Any]]]:
    """The columns of each response, as lists; NaN becomes None."""
    bounds = np.cumsum([0, *map(len, responses)]).tolist()
    lists = {name: _as_list(values) for name, values in columns.items()}
    return [
        {name: values[start:end] for name, values in lists.items()}
        for start, end in pairwise(bounds)
    ]


def _as_list(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim == 1:
        return [None if np.isnan(value) else float(value) for value in values]
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
