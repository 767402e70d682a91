"""Records of finished episodes, and the `rlhf/` metrics computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenenv.rewards import Episode, EpisodeScores

__all__ = ["EpisodeRecord", "rlhf_metrics"]


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        kl: Σ_t log π(a_t|s_t) − log π_ref(a_t|s_t) over its response, in nats.
        ref_log_prob: Σ_t log π_ref(a_t|s_t).
        rm_score: the raw reward.
        score: R(x, y).
        gold_reward: the true reward, or None where it is unknown.
        length: tokens of the response.
        stopped: whether it ended with EOS.
        parts: of several rewards, the raw numbers of those that apply, by name.
        group: the environment's number of its group of responses to one prompt; None: of none.
        disagreement: of several reward models, the standard deviation over them of their normalised
            rewards; None where there are fewer than two.
    """

    kl: float
    ref_log_prob: float
    rm_score: float
    score: float
    gold_reward: float | None
    length: int
    stopped: bool
    parts: Mapping[str, float] = field(default_factory=dict)
    group: int | None = None
    disagreement: float | None = None

    @classmethod
    def from_info(cls, kl: float, ref_log_prob: float, info: Mapping[str, Any]) -> EpisodeRecord:
        """The record of an episode that the environment scored.

        Args:
            kl: see above.
            ref_log_prob: see above.
            info: of its last step.
        """
        return cls(
            kl=kl,
            ref_log_prob=ref_log_prob,
            rm_score=info["rm_score"],
            score=info["score"],
            gold_reward=info.get("gold_reward"),
            length=info["response_length"],
            stopped=info["finish_reason"] == "stop",
            parts=info.get("rm_scores", {}),
            disagreement=info.get("rm_disagreement"),
        )

    @classmethod
    def from_scores(
        cls, kl: float, ref_log_prob: float, scores: EpisodeScores, row: int, episode: Episode
    ) -> EpisodeRecord:
        """The record of an episode that was scored after its rollout.

        Args:
            kl: see above.
            ref_log_prob: see above.
            scores: of several episodes.
            row: of the episode among them.
            episode: the episode.
        """
        gold, disagreement = scores.gold_reward, scores.disagreement
        return cls(
            kl=kl,
            ref_log_prob=ref_log_prob,
            rm_score=float(scores.rm_score[row]),
            score=float(scores.score[row]),
            gold_reward=None if gold is None else float(gold[row]),
            length=len(episode.response),
            stopped=episode.stopped,
            parts=scores.parts_of(row),
            disagreement=None if disagreement is None else float(disagreement[row]),
        )

    def whole_return(self, kl_coef: float) -> float:
        """R(x, y) − β·KL, of which J is the mean; also where the KL is a loss and no reward."""
        return self.score - kl_coef * self.kl


def rlhf_metrics(records: Sequence[EpisodeRecord], kl_coef: float) -> dict[str, float]:
    """Means over finished episodes; KL is per response, summed over its tokens.

    Of several rewards, `reward/NAME` is the mean over the episodes that it applies to; of several
    reward models, `rm_disagreement` is the mean of their disagreement.
    """
    if not records:
        return {}
    score = float(np.mean([r.score for r in records]))
    kl = float(np.mean([r.kl for r in records]))
    metrics = {
        "score": score,
        "rm_score": float(np.mean([r.rm_score for r in records])),
        "kl": kl,
        "kl_coef": kl_coef,
        "objective": score - kl_coef * kl,
        "response_length": float(np.mean([r.length for r in records])),
        "eos_rate": float(np.mean([r.stopped for r in records])),
    }
    gold = [r.gold_reward for r in records if r.gold_reward is not None]
    if gold:
        metrics["gold_reward"] = float(np.mean(gold))
    disagreement = [r.disagreement for r in records if r.disagreement is not None]
    if disagreement:
        metrics["rm_disagreement"] = float(np.mean(disagreement))
    for name in dict.fromkeys(name for record in records for name in record.parts):
        numbers = [record.parts[name] for record in records if name in record.parts]
        metrics[f"reward/{name}"] = float(np.mean(numbers))
    return metrics
