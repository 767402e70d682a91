"""`token_table`: one row per response token, with everything that decides on its update.

Axes: `B` responses, `n` tokens of all of them, one response after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from agents.credit.advantages import TokenAdvantages, Uniform, held_out_advantages
from agents.credit.columns import COLUMNS, SCHEMA, WHOLE_COLUMNS
from agents.credit.exact_strength import check_size, exact_norms_and_shares
from agents.credit.output_layer import output_layer_norms, output_layer_shares
from agents.credit.settings import UpdateSettings, Whitening
from agents.credit.states import TokenStates, evaluate_states
from agents.credit.texts import alternative_texts, token_texts
from agents.credit.truth import Truth
from agents.credit.vine import vine_values
from agents.policy import LMActorCriticPolicy
from tokenenv.maths import kl_estimate, sample_deviation
from tokenenv.models import LanguageModel
from tokenenv.rewards import Episode, EpisodeScorer, EpisodeScores

__all__ = [
    "TokenTable",
    "check_temperatures",
    "clip_sides",
    "describe_responses",
    "split_columns",
    "table_header",
    "token_columns",
    "token_table",
]


@dataclass(frozen=True)
class TokenTable:
    """Token tables of some responses, as a file of `runs/NAME/tokens/` holds them.

    Attributes:
        header: the settings that the numbers were computed by.
        responses: one dictionary for each response; `columns` in it holds a list for each of
            `agents.credit.COLUMNS` with one entry per token.
    """

    header: dict[str, Any]
    responses: list[dict[str, Any]]

    def column(self, name: str) -> np.ndarray:
        """(n,) of all responses, one after another; None as NaN."""
        values = [value for response in self.responses for value in response["columns"][name]]
        if values and all(v is None or isinstance(v, int | float) for v in values):
            return np.array([np.nan if v is None else v for v in values])
        return np.array(values, dtype=object)


def token_table(
    policy: LMActorCriticPolicy,
    scorer: EpisodeScorer,
    episodes: Sequence[Episode],
    settings: UpdateSettings,
    *,
    kind: str = "fresh",
    exact: bool = False,
    truth: Truth | None = None,
) -> TokenTable:
    """The token table of finished responses that no update has used.

    Args:
        policy: whose actor and critic are looked at.
        scorer: of the environment; its temperature is the policy's.
        episodes: B finished responses to prompts; those to one prompt are compared with each other
            where the estimator does that.
        settings: of the agent, with β.
        kind: `"fresh"` or `"fixed"`.
        exact: compute exact strengths as well, over all trainable parameters.
        truth: exact values of the policy, on a task that can be enumerated.

    Raises:
        ValueError: a response is empty, β is missing, a prompt has one response alone where the
            estimator compares several, or the model is too large for exact strengths.
    """
    if not episodes or not all(len(episode.response) for episode in episodes):
        raise ValueError(
            f"{len(episodes)} responses, some of them empty: a token table needs responses of at "
            "least one token."
        )
    if settings.kl_coef is None:
        raise ValueError("kl_coef=None: give β, the environment's kl_coef.")
    check_temperatures(policy, scorer)
    if exact:
        check_size(policy)
    prompts, responses = [e.prompt for e in episodes], [e.response for e in episodes]
    states = evaluate_states(policy, scorer.reference, prompts, responses)
    scores = scorer.score(episodes)
    paid = np.concatenate(scores.token_rewards)  # (n,)
    of_vine = vine_values(policy, scorer, episodes, settings)
    advantages = held_out_advantages(episodes, states, paid, settings, of_vine)
    settings = _whitened(settings, advantages.advantages)
    columns = token_columns(policy, scorer, prompts, responses, states, advantages, settings, exact)
    if truth is not None:
        columns["true_advantage"] = truth.advantages(episodes, settings.gamma)
    return TokenTable(
        table_header(settings, policy.temperature),
        describe_responses(
            scorer.reference.language_model,
            episodes,
            scores,
            kind=kind,
            uniform=advantages.uniform,
            columns=split_columns(columns, responses),
        ),
    )


def describe_responses(
    language_model: LanguageModel,
    episodes: Sequence[Episode],
    scores: EpisodeScores | None,
    *,
    kind: str,
    uniform: Sequence[Uniform],
    columns: Sequence[dict[str, list[Any]]],
    following_values: np.ndarray | None = None,
    ended: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One dictionary for each response, as a file holds it.

    Args:
        language_model: decodes them.
        episodes: B prompts with what there is of their responses.
        scores: of the responses that have ended, in order; None where none has.
        kind: of the table.
        uniform: B.
        columns: B.
        following_values: (B,) V after the last token; None: 0.
        ended: (B,) bool; None: all.
    """
    described, scored = [], 0
    for index, episode in enumerate(episodes):
        is_scored = scores is not None and (ended is None or bool(ended[index]))
        gold = scores.gold_reward if scores is not None and is_scored else None
        described.append(
            {
                "kind": kind,
                "index": index,
                "prompt": language_model.decode(episode.prompt),
                "response": language_model.decode(episode.response),
                "score": float(scores.score[scored]) if scores is not None and is_scored else None,
                "gold_reward": None if gold is None else float(gold[scored]),
                "finish_reason": "stop" if episode.stopped else "length" if is_scored else "cut",
                "bootstrap_value": (
                    0.0 if following_values is None else float(following_values[index])
                ),
                "uniform": uniform[index],
                "columns": columns[index],
            }
        )
        scored += is_scored
    return described


def check_temperatures(policy: LMActorCriticPolicy, scorer: EpisodeScorer) -> None:
    """Raise ValueError where policy and reference divide their logits by different numbers."""
    if scorer.reference.temperature != policy.temperature:
        raise ValueError(
            f"the policy has the temperature {policy.temperature}, the environment "
            f"{scorer.reference.temperature}: their log-probabilities can't be compared. Give the "
            "scorer of an environment with the policy's temperature."
        )


def _whitened(settings: UpdateSettings, advantages: np.ndarray) -> UpdateSettings:
    """The settings, with a whitening of these advantages where the agent whitens and none is set.

    (n,) advantages of a table.
    """
    if settings.whitening is not None or not settings.whiten_advantages:
        return settings
    deviation = sample_deviation(advantages) or 1.0
    of_these = Whitening(float(np.mean(advantages)), deviation, "these responses")
    return replace(settings, whitening=of_these)


def table_header(settings: UpdateSettings, temperature: float) -> dict[str, Any]:
    """The header of a table: the agent's settings, and what the columns are."""
    return {
        "schema": SCHEMA,
        "kind": "tokens",
        **settings.header(),
        "temperature": temperature,
        "columns": {**COLUMNS, **WHOLE_COLUMNS},
    }


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
    n, unknown = len(states.actions), np.full(len(states.actions), np.nan)
    language_model = scorer.reference.language_model
    whitening = settings.whitening
    whitened = advantages.advantages if whitening is None else whitening(advantages.advantages)
    ratio = np.ones(n) if advantages.ratios is None else advantages.ratios
    stops = clip_sides(ratio, whitened, settings.clip_range, settings.clip_range_high)
    weights = np.where(stops == "", whitened * ratio, 0.0)
    weights *= settings.token_weights(np.array([len(response) for response in responses]))
    norms = output_layer_norms(policy, states)
    columns: dict[str, Any] = {
        "position": np.concatenate([np.arange(len(r)) for r in responses]) + advantages.skipped,
        "token": states.actions,
        "text": [text for response in responses for text in token_texts(language_model, response)],
        "log_prob": states.log_probs,
        "ref_log_prob": states.ref_log_probs,
        "kl": states.log_probs - states.ref_log_probs,
        "full_kl": states.full_kls,
        "entropy": states.entropies,
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
        "ratio": unknown if advantages.ratios is None else ratio,
        "clip": [None] * n if advantages.ratios is None else stops.tolist(),
        "weight": weights,
        "strength": np.abs(weights) * norms,
        "share": output_layer_shares(policy, states, weights),
        "exact_strength": unknown,
        "exact_share": unknown,
        "value_loss": unknown,
        "entropy_bonus": settings.ent_coef * states.entropies,
        "gradient_norm": norms,
        "kl_loss": _kl_losses(states, settings),
        "top_tokens": states.top_tokens,
        "top_texts": alternative_texts(language_model, states.top_tokens),
        "top_probs": states.top_probs,
    }
    if settings.has_critic:
        errors = (advantages.returns - advantages.values) / settings.return_deviation
        columns["value_loss"] = np.square(errors)
    if exact:
        norms, shares = exact_norms_and_shares(policy, prefixes, responses, weights)
        columns["exact_strength"], columns["exact_share"] = np.abs(weights) * norms, shares
    return columns


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
