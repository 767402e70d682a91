"""The agent's side of the reward: the parts of a token's reward that `step` did not pay.

* Deferred scoring: the environment's half for all segments of a rollout at once.
* The KL penalty where it is no sum of two halves: k2, k3, and full over whole distributions.

The actor's half of k1, `−β·log π`, is `tokenenv.maths.actor_half`, paid by `RLHFCallback`.

Axes: `n` tokens, `V` the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.rollout.metrics import EpisodeRecord
from agents.rollout.segments import Segment
from agents.rollout.vine import VineValues
from agents.settings import KLPenalty
from tokenenv.maths import full_kl, kl_penalties, reference_half
from tokenenv.models import (
    MICRO_BATCH_TOKENS,
    PackedSequences,
    Reference,
    hidden_states,
    log_softmax,
    pack,
    rows_at_once,
    token_batches,
)
from tokenenv.rewards import Episode, EpisodeScorer

__all__ = [
    "ReferencedSamples",
    "RewardBinding",
    "pay_full_kl",
    "per_new_step",
    "score_segments",
    "store_old_log_probs",
    "store_values",
]


@dataclass(frozen=True, slots=True)
class RewardBinding:
    """The environment and the KL penalty, as the buffer needs them; `RLHFCallback` makes it.

    Attributes:
        scorer: scores whole rollouts where scoring is deferred; None where `step` pays.
        kl_shaping: the environment's.
        kl_coef: a function that returns β of the environment.
        max_prompt_tokens: P.
        max_new_tokens: T.
        penalty: what the agent's side pays for the KL.
        actor: the causal LM that samples; only where whole distributions are compared.
        reference: what it is compared with; likewise.
        shares_groups: whether the rows of the environment fill groups of responses together.
        update_log_probs: called at the end of every rollout; returns a function (states, (n,)
            actions) → (n,) log π as the update will compute it, or None where it computes as
            sampling does.
        value_lambda: called at the end of every rollout; returns λ of the critic's targets in the
            update, or None where it is the buffer's.
        vine: values from continuations, for the estimator that needs them.
        skips_non_finite: whether a rollout with numbers that are not finite is closed like others,
            since the update refuses it and training goes on; otherwise closing it raises.
        values: (states) → (n, 1) V, called at the end of every rollout, for a critic with a trunk
            of its own, which does not run while sampling; None where steps come with their values.
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
    value_lambda: Callable[[], float | None] = lambda: None
    vine: VineValues | None = None
    skips_non_finite: bool = False
    values: Callable[[PackedSequences], torch.Tensor] | None = None


class ReferencedSamples(NamedTuple):
    """SB3's `RolloutBufferSamples`, and log π_ref of the actions, (n,) float32."""

    observations: PackedSequences
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    ref_log_prob: torch.Tensor


# The environment's half ---------------------------------------------------------------------------


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
            segment.origin,
        )
        for segment in segments
    ]
    for segment, of_response in zip(segments, scorer.ref_log_probs(episodes), strict=True):
        ref_log_probs = of_response[len(segment.context) :]  # (n,) of the segment's actions
        _pay_kl(segment, ref_log_probs, kl_shaping, penalty)
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
        segment.rewards += scores.token_rewards[row][len(segment.context) :]
        if not math.isnan(segment.kl_before):
            kl, ref_log_prob = segment.kl_before, segment.ref_log_prob_before
            record = EpisodeRecord.from_scores(kl, ref_log_prob, scores, row, episodes[i])
            records.append(replace(record, group=segment.group))
    return records


# The KL penalty -----------------------------------------------------------------------------------


def _pay_kl(
    segment: Segment, ref_log_probs: np.ndarray, kl_shaping: str, penalty: KLPenalty | None
) -> None:
    """What log π_ref of a segment's (n,) actions is needed for, in place; see `score_segments`."""
    if kl_shaping == "k1":
        segment.rewards += reference_half(ref_log_probs, segment.kl_coefs)
    if penalty is not None and penalty.pays_log_ratio:
        segment.rewards -= kl_penalties(
            penalty.estimator, segment.log_probs, ref_log_probs, segment.kl_coefs
        )
    if penalty is not None and penalty.keeps_ref_log_probs:
        segment.ref_log_probs = ref_log_probs.astype(np.float32)
    segment.kl_before += float((segment.log_probs - ref_log_probs).sum())
    segment.ref_log_prob_before += float(ref_log_probs.sum())


def pay_full_kl(segments: Sequence[Segment], actor: Any, reference: Reference) -> None:
    """Subtract β·KL(π ‖ π_ref) at their states from the rewards of the last rollout's steps.

    Called before the weights change, so that π is the policy that sampled the steps; those that an
    earlier rollout left waiting were paid for then.

    Args:
        segments: of the last rollout; their rewards change in place.
        actor: the causal LM that sampled them.
        reference: whose temperature is the actor's, too.
    """
    per_segment = per_new_step(
        segments, actor.device, lambda packed, _: _full_kls(packed, actor, reference)
    )
    for segment, kls in zip(segments, per_segment, strict=True):
        new = slice(-segment.new_steps, None)
        segment.rewards[new] -= (segment.kl_coefs[new] * kls).astype(np.float32)


def _full_kls(packed: PackedSequences, actor: Any, reference: Reference) -> torch.Tensor:
    """(n,) KL(π ‖ π_ref) at states; never more than a chunk of (n, V) at a time."""
    hidden = hidden_states(actor, packed)
    ref_hidden = hidden_states(reference.language_model.model, packed)
    size = rows_at_once(hidden.device, reference.language_model.vocabulary_size)
    kls = [
        full_kl(
            log_softmax(actor, states, reference.temperature),  # (size, V)
            log_softmax(reference.language_model.model, ref, reference.temperature).to(
                states.device
            ),
        )
        for states, ref in zip(hidden.split(size), ref_hidden.split(size), strict=True)
    ]
    return torch.cat(kls)  # (n,)


def per_new_step(
    segments: Sequence[Segment],
    device: torch.device | str,
    compute: Callable[[PackedSequences, torch.Tensor], torch.Tensor],
    with_following: Sequence[bool] | None = None,
) -> list[np.ndarray]:
    """One number for each of the segments' steps of the last rollout.

    Args:
        segments: of the last rollout; what an earlier one left in them is context.
        device: where to compute.
        compute: (states, (n,) actions) → (n,) numbers; called without gradient.
        with_following: for each segment whether the state after its last step gets a number too;
            its action is 0 and stands for none. None: for no segment.

    Returns:
        Per segment a (`new_steps`,) float32 array, or (`new_steps` + 1,).
    """
    counts = [segment.new_steps for segment in segments]
    more = (
        [0] * len(segments) if with_following is None else [int(is_so) for is_so in with_following]
    )
    contexts = [
        np.concatenate([segment.prefix, segment.actions[: len(segment.actions) - count]])
        for segment, count in zip(segments, counts, strict=True)
    ]
    actions = [
        np.append(s.actions[-n:].astype(np.int64), np.zeros(extra, dtype=np.int64))
        for s, n, extra in zip(segments, counts, more, strict=True)
    ]
    lengths = np.array([len(c) + len(a) for c, a in zip(contexts, actions, strict=True)])
    results = [np.zeros(0, dtype=np.float32)] * len(segments)
    for indices in token_batches(lengths, MICRO_BATCH_TOKENS):
        packed = pack(
            [contexts[i].astype(np.int64) for i in indices], [actions[i] for i in indices], device
        )
        taken = torch.as_tensor(
            np.concatenate([actions[i] for i in indices]), device=device
        )  # (n,)
        with torch.no_grad():
            numbers_of_batch = compute(packed, taken)  # (n,)
        bounds = np.cumsum([len(actions[i]) for i in indices])[:-1]
        parts = np.split(numbers_of_batch.float().cpu().numpy(), bounds)
        for i, numbers in zip(indices, parts, strict=True):
            results[i] = numbers
    return results


def store_values(
    segments: Sequence[Segment],
    device: torch.device | str,
    compute: Callable[[PackedSequences], torch.Tensor],
    follows: bool,
) -> None:
    """Store V of the states of the last rollout's steps, by one forward of each sequence.

    Args:
        segments: of the last rollout; they change in place.
        device: where to compute.
        compute: (states) → (n, 1) V.
        follows: whether segments that did not end need V of the state after their last step.
    """
    needs_next = [follows and not s.ended and s.bootstrap is None for s in segments]
    per_segment = per_new_step(
        segments, device, lambda states, _: compute(states).flatten(), needs_next
    )
    for segment, values, has_next in zip(segments, per_segment, needs_next, strict=True):
        segment.values[-segment.new_steps :] = values[: segment.new_steps]
        if has_next:
            segment.bootstrap = float(values[-1])


def store_old_log_probs(
    segments: Sequence[Segment],
    device: torch.device | str,
    compute: Callable[[PackedSequences, torch.Tensor], torch.Tensor] | None,
) -> None:
    """Store the log-probabilities of the last rollout's steps as the update computes them.

    Args:
        segments: of the last rollout; they change in place.
        device: where to compute.
        compute: as `RewardBinding.update_log_probs` returns it.
    """
    per_segment: Sequence[np.ndarray | None] = [None] * len(segments)
    if compute is not None:
        per_segment = per_new_step(segments, device, compute)
    for segment, new_log_probs in zip(segments, per_segment, strict=True):
        segment.store_old_log_probs(new_log_probs)
