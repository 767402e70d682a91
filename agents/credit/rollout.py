"""The token table of what an update has used: with ratio and clip after its last epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from agents.credit.advantages import TokenAdvantages, Uniform, deltas, reward_parts
from agents.credit.settings import UpdateSettings
from agents.credit.states import TokenStates, evaluate_states
from agents.credit.table import (
    TokenTable,
    check_temperatures,
    describe_responses,
    table_header,
)
from agents.credit.token_columns import split_columns, token_columns
from tokenenv.maths import UNIFORM
from tokenenv.rewards import Episode, EpisodeScorer, EpisodeScores

__all__ = ["rollout_table"]


def rollout_table(
    update: Any, scorer: EpisodeScorer, count: int, exact: bool = False
) -> TokenTable:
    """The token table of a fixed sample of the segments that an update has used.

    Rewards, values, advantages and returns are those of the update; log-probabilities, entropies
    and strengths those of the policy that it left, and the ratio is that of the two.

    Args:
        update: of a `TokenPPO` with `EpisodeRolloutBuffer`, which holds its rollout still: what
            `TokenPPO.on_updated` is called with.
        scorer: of the environment.
        count: segments, at most; they are spread evenly over the buffer.
        exact: compute exact strengths as well, over all trainable parameters.

    Raises:
        ValueError: the buffer holds no rollout any more, or the model is too large for exact
            strengths.
    """
    settings = UpdateSettings.of_update(update)
    buffer, policy = update.buffer, update.model.policy
    if not buffer.num_tokens:
        raise ValueError(
            "the buffer holds no token of this update any more: call rollout_table in "
            "TokenPPO.on_updated, before the next rollout."
        )
    check_temperatures(policy, scorer)
    segments = len(buffer.lengths)
    sample = np.unique(np.linspace(0, segments - 1, min(count, segments)).round().astype(int))
    spans = [np.arange(buffer.offsets[i], buffer.offsets[i + 1]) for i in sample]
    tokens = np.concatenate(spans)  # (n,)
    prefixes = [buffer.prefix(i).astype(np.int64) for i in sample]
    responses = [buffer.actions[span].astype(np.int64) for span in spans]
    states = evaluate_states(policy, scorer.reference, prefixes, responses)
    ended = buffer.ended[sample]
    episodes = _episodes(buffer, scorer, sample, prefixes, responses)
    finished = [episode for episode, has_ended in zip(episodes, ended, strict=True) if has_ended]
    scores = scorer.score(finished) if finished else None
    advantages = _used(update, states, sample, tokens, settings)
    if settings.penalty.pays_full:  # by the policy that sampled, which is gone
        paid = _paid_scores(scores, ended, responses)
        rewards = advantages.rewards
        advantages = replace(advantages, score_rewards=paid, kl_rewards=rewards - paid)
    columns = token_columns(
        policy, scorer, prefixes, responses, states, advantages, settings, exact
    )
    return TokenTable(
        table_header(settings, policy.temperature),
        describe_responses(
            scorer.reference.language_model,
            episodes,
            scores,
            kind="rollout",
            uniform=advantages.uniform,
            columns=split_columns(columns, responses),
            following_values=buffer.following_values[sample],
            ended=ended,
        ),
    )


def _used(
    update: Any,
    states: TokenStates,
    sample: np.ndarray,
    tokens: np.ndarray,
    settings: UpdateSettings,
) -> TokenAdvantages:
    """What the update had of the n sampled tokens."""
    buffer = update.buffer
    lengths = buffer.lengths[sample]

    def wide(numbers: np.ndarray) -> np.ndarray:
        return numbers[tokens].astype(np.float64)

    rewards, values = wide(buffer.rewards), wide(buffer.values)
    advantages = wide(update.raw_advantages)
    parts = reward_parts(
        wide(buffer.log_probs),
        states.ref_log_probs,
        states.full_kls,
        settings,
        wide(buffer.kl_coefs),
    )
    scaled = settings.reward_factor * rewards + settings.reward_shift
    following = buffer.following_values[sample].astype(np.float64)
    firsts = np.cumsum(lengths) - lengths
    return TokenAdvantages(
        *parts,
        score_rewards=rewards - parts[2],
        values=values,
        deltas=deltas(scaled, values, lengths, following, settings.gamma),
        advantages=advantages,
        returns=wide(buffer.returns),
        uniform=[_uniform(settings, advantage) for advantage in advantages[firsts]],
        ratios=np.exp(states.log_probs - wide(buffer.old_log_probs)),
        skipped=np.repeat(buffer.context_lengths[sample], lengths),
    )


def _paid_scores(
    scores: EpisodeScores | None, ended: np.ndarray, responses: list[np.ndarray]
) -> np.ndarray:
    """(n,) what of the scores was paid with each token of the segments; 0 where one was cut."""
    of_finished = iter([] if scores is None else scores.token_rewards)
    return np.concatenate(
        [
            next(of_finished)[-len(response) :] if has_ended else np.zeros(len(response))
            for has_ended, response in zip(ended, responses, strict=True)
        ]
    )


def _uniform(settings: UpdateSettings, advantage: float) -> Uniform:
    """The advantage of a response where the estimator gives all of its tokens the same."""
    estimator = settings.advantage_estimator
    return {name: float(advantage) if name == estimator else None for name in UNIFORM}


def _episodes(
    buffer: Any,
    scorer: EpisodeScorer,
    sample: np.ndarray,
    prefixes: list[np.ndarray],
    responses: list[np.ndarray],
) -> list[Episode]:
    """The sampled segments as prompts and responses; the context is part of the response."""
    eos = scorer.reference.language_model.eos_token_ids
    episodes = []
    for i, prefix, response in zip(sample, prefixes, responses, strict=True):
        prompt, context = np.split(prefix, [len(prefix) - buffer.context_lengths[i]])
        whole = np.concatenate([context, response])
        stopped = bool(buffer.ended[i] and whole[-1] in eos)
        episodes.append(Episode(prompt, whole, stopped, buffer.origins[i]))
    return episodes
