"""Deferred scoring: the environment's half of the rewards for all segments of a rollout at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from agents.episode_records import EpisodeRecord
from agents.kl_penalty import token_penalties
from agents.kl_settings import KLPenalty
from agents.packing import PackedSequences
from agents.segments import Segment
from tokenenv.reference import Reference
from tokenenv.rewards import Episode
from tokenenv.scoring import EpisodeScorer, EpisodeScores
from tokenenv.shaping import reference_half

__all__ = ["RewardBinding", "score_segments"]


@dataclass(frozen=True, slots=True)
class RewardBinding:
    """What the buffer must know of the environment and the KL penalty; `RLHFCallback` makes it.

    Attributes:
        scorer: scores whole rollouts where scoring is deferred; None where `step` pays.
        kl_shaping: the environment's.
        kl_coef: a function that gives β, which the environment owns.
        max_prompt_tokens: P.
        max_new_tokens: T.
        penalty: what the agent's side pays for the KL.
        actor: the causal LM that samples; only where whole distributions are compared.
        reference: what it is compared with; likewise.
        shares_groups: whether the rows of the environment fill groups of responses together.
        update_log_probs: a function that gives, asked at the end of every rollout, (states, (n,)
            actions) → (n,) log π as the update will compute it; None where it computes as sampling
            does.
    """

    scorer: EpisodeScorer | None
    kl_shaping: str
    kl_coef: Callable[[], float]
    max_prompt_tokens: int
    max_new_tokens: int
    penalty: KLPenalty = field(default_factory=KLPenalty)
    actor: Any = None
    reference: Reference | None = None
    shares_groups: bool = True
    update_log_probs: Callable[
        [], Callable[[PackedSequences, torch.Tensor], torch.Tensor] | None
    ] = lambda: None


def score_segments(
    segments: Sequence[Segment],
    scorer: EpisodeScorer,
    kl_shaping: str,
    takes_token_rewards: bool,
    penalty: KLPenalty | None = None,
) -> list[EpisodeRecord]:
    """Add the environment's part of the rewards to segments, in place, and the KL penalty's.

    Args:
        segments: of one rollout; not scored yet.
        scorer: gives log π_ref of their tokens, and the score of those that ended.
        kl_shaping: the environment's.
        takes_token_rewards: whether every ended segment holds its episode from the first token on,
            so that rewards per token find their tokens.
        penalty: k2 and k3 are paid here, where log π_ref is known; full is paid elsewhere, by
            `pay_full_kl`.

    Returns:
        A record of each episode that ended and was seen from its start.

    Raises:
        ValueError: the reward function returned rewards per token and they can't be paid.
    """
    eos = scorer.reference.language_model.eos_token_ids
    episodes = [
        Episode(
            segment.prompt.astype(np.int64),
            segment.response.astype(np.int64),
            segment.ended and int(segment.actions[-1]) in eos,
        )
        for segment in segments
    ]
    for segment, found in zip(segments, scorer.ref_log_probs(episodes), strict=True):
        own = found[len(segment.earlier) :]
        if kl_shaping == "k1":
            segment.rewards += reference_half(own, segment.kl_coefs)
        if penalty is not None and penalty.pays_log_ratio:
            segment.rewards -= token_penalties(penalty, segment.log_probs, own, segment.kl_coefs)
        if penalty is not None and penalty.keeps_ref_log_probs:
            segment.ref_log_probs = own.astype(np.float32)
        segment.kl_before += float((segment.log_probs - own).sum())
        segment.ref_log_prob_before += float(own.sum())
    ended = [i for i, segment in enumerate(segments) if segment.ended]
    if not ended:
        return []
    scores = scorer.score([episodes[i] for i in ended])
    if scores.is_per_token and not takes_token_rewards:
        raise ValueError(
            "the reward function returned rewards per token, which reach the tokens of an episode "
            "only if all of them are in one update: use rollout_buffer_kwargs={'cut': 'carry'}, on "
            "the command line --cut carry."
        )
    records = []
    for row, i in enumerate(ended):
        segment = segments[i]
        segment.rewards += scores.token_rewards[row][len(segment.earlier) :]
        if not math.isnan(segment.kl_before):
            records.append(_record(segment, scores, row, episodes[i].stopped))
    return records


def _record(segment: Segment, scores: EpisodeScores, row: int, stopped: bool) -> EpisodeRecord:
    gold = None if scores.gold_reward is None else float(scores.gold_reward[row])
    return EpisodeRecord(
        kl=segment.kl_before,
        ref_log_prob=segment.ref_log_prob_before,
        rm_score=float(scores.rm_score[row]),
        score=float(scores.score[row]),
        gold_reward=gold,
        length=len(segment.earlier) + len(segment.actions),
        stopped=stopped,
    )
