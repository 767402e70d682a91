"""`token_table`: one row per response token, with everything that decides on its update.

Axes: `B` responses, `n` tokens of all of them, one response after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.credit.advantages import Uniform, held_out_advantages
from agents.credit.columns import COLUMNS, SCHEMA, WHOLE_COLUMNS
from agents.credit.exact_strength import check_size
from agents.credit.settings import UpdateSettings, Whitening
from agents.credit.states import evaluate_states
from agents.credit.token_columns import split_columns, token_columns
from agents.credit.truth import Truth
from agents.credit.vine import vine_values
from agents.policy import LMActorCriticPolicy
from tokenenv.maths import sample_deviation
from tokenenv.models import LanguageModel
from tokenenv.rewards import Episode, EpisodeScorer, EpisodeScores

__all__ = [
    "TokenTable",
    "check_temperatures",
    "describe_responses",
    "table_header",
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
