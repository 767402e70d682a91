"""An audit from the texts to the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.reward_quality.audit.bands import (
    LEVEL,
    Band,
    Clusters,
    Estimates,
    simultaneous_bands,
)
from agents.reward_quality.audit.edits import EDITS, Sentences, load_sentences
from agents.reward_quality.audit.features import FeatureEvidence, FeatureStatistics, Preference
from agents.reward_quality.audit.invariances import Invariance, check_invariances, draw_compared
from agents.reward_quality.audit.probes import (
    Probe,
    ProbeEvidence,
    draw_probed,
    probe,
    shift_estimates,
)
from agents.reward_quality.audit.rewards import TextReward
from agents.reward_quality.audit.texts import Texts
from agents.reward_quality.audit.verdicts import Verdict, fault_of, verdicts_of
from agents.reward_quality.text_features import WordLists, describe_feature, text_features

__all__ = ["Audit", "audit"]

_SAME = 1e-9
"""Deviation of scores, beside their size, up to which they are all the same."""


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        texts: what was looked at.
        scores: (n,) of the texts.
        features: name → (n,).
        has_gold: whether a gold reward was known.
        agreement: share of the labels that the score agrees with; None without labels.
        gold_correlation: Spearman's of score and gold over all texts; None without gold.
        by_feature: the evidence of features.
        by_probe: that of edits.
        invariances: the checks.
        verdicts: strongest first.
        left_out: why texts could not be scored → how many.
    """

    texts: Texts
    scores: np.ndarray
    features: Mapping[str, np.ndarray]
    has_gold: bool
    agreement: float | None
    gold_correlation: float | None
    by_feature: list[FeatureEvidence]
    by_probe: list[ProbeEvidence]
    invariances: list[Invariance]
    verdicts: list[Verdict]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is said of invariances that don't hold."""
        return [fault_of(one) for one in self.invariances if not one.holds]

    @property
    def widest(self) -> dict[str, float]:
        """Half of the widest interval of each kind: below it, an effect could be missed."""
        bands: dict[str, list[Band | None]] = {
            "correlation": [one.correlation for one in self.by_feature],
            "excess": [one.preference.excess for one in self.by_feature if one.preference],
            "shift": [one.shift for one in self.by_probe],
        }
        halves = {
            kind: [(band.high - band.low) / 2 for band in found if band is not None]
            for kind, found in bands.items()
        }
        return {kind: max(widths) for kind, widths in halves.items() if widths}


def audit(
    texts: Texts,
    reward: TextReward,
    *,
    gold: TextReward | None = None,
    word_lists: WordLists | None = None,
    sentences: Sentences | None = None,
    probed: int = 256,
    resamples: int = 2000,
    seed: int = 0,
    on_part: Callable[[str], None] = lambda part: None,
) -> Audit:
    """Look at a reward from all sides; the module's neighbours say how.

    Args:
        texts: what to score, held out from its training.
        reward: the reward.
        gold: the true reward, or None.
        word_lists: of `load_word_lists`; None: those of the package.
        sentences: of `load_sentences`; None: those of the package.
        probed: responses to edit, at most.
        resamples: of the bootstrap.
        seed: of what is drawn.
        on_part: called with what is done next, in words.

    Raises:
        ValueError: there are too few texts, the scores do not vary, or the reward fails.
    """
    on_part("scoring")
    texts, left_out = _readable(texts, reward)
    scores = _varying(reward.scores(texts.texts), reward)
    words = [text.words for text in texts.texts]
    features = text_features(words, reward.token_counts(texts.texts), word_lists)
    golds = None if gold is None else gold.scores(texts.texts)
    on_part("editing")
    rows = draw_probed(texts.of_prompt, probed, seed)
    seen = set().union(*(reward.token_ids(text) for text in texts.texts))
    lists = load_sentences() if sentences is None else sentences
    probes = [probe(name, texts.texts, scores, rows, reward, lists, seen) for name in EDITS]
    on_part("scoring again, in other company")
    compared = draw_compared(texts.texts, seed)
    invariances = check_invariances(compared, reward, float(np.std(scores)), seed)
    on_part("resampling")
    clusters = Clusters(texts.of_prompt, resamples, seed)
    statistics = FeatureStatistics(scores, features, clusters, golds, texts.labels)
    by_feature, by_probe = _judged(statistics, probes, clusters)
    whole = statistics.preferences(clusters.whole()) if statistics.preferred else None
    return Audit(
        texts=texts,
        scores=scores,
        features=features,
        has_gold=golds is not None,
        agreement=None if whole is None else float(whole["agreement"][0]),
        gold_correlation=None if golds is None else _spearman(scores, golds),
        by_feature=by_feature,
        by_probe=by_probe,
        invariances=invariances,
        verdicts=verdicts_of(by_feature, by_probe, features),
        left_out=left_out,
    )


def _readable(texts: Texts, reward: TextReward) -> tuple[Texts, dict[str, int]]:
    """The texts that the reward can read, and why others are left out."""
    reasons = [reward.why_unreadable(text) for text in texts.texts]
    left_out: dict[str, int] = {}
    for reason in reasons:
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not left_out:
        return texts, left_out
    readable = texts.subset(np.array([reason is None for reason in reasons]))
    try:
        readable.check()
    except ValueError as error:
        why, number = max(left_out.items(), key=lambda item: item[1])
        raise ValueError(
            f"{reward.name} can't read {sum(left_out.values()):,} of {len(reasons):,} texts "
            f"({number:,}: {why}); of the others {error}"
        ) from error
    return readable, left_out


def _varying(scores: np.ndarray, reward: TextReward) -> np.ndarray:
    """The scores; ValueError where they are all the same."""
    if not np.std(scores) > _SAME * max(1e-6, float(np.abs(scores).max())):
        raise ValueError(
            f"{reward.name} gives the same score, {scores[0]:.6g}, to all {len(scores):,} texts: "
            "there is nothing that it could pay for. Give other texts, or another reward."
        )
    return scores


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(np.nan_to_num(spearmanr(a, b).statistic))


def _judged(
    statistics: FeatureStatistics, probes: Sequence[Probe], clusters: Clusters
) -> tuple[list[FeatureEvidence], list[ProbeEvidence]]:
    """All numbers with their intervals, out of one bootstrap and in one band."""
    judged = [one for one in probes if one.is_enough]

    def numbers(weights: np.ndarray) -> list[Estimates]:
        return [
            statistics.correlations(weights),
            statistics.excesses(weights),
            shift_estimates(judged, clusters, weights),
        ]

    kinds = numbers(clusters.whole())
    drawn = [Estimates.joined(numbers(weights), 1) for weights in clusters.weights()]
    low, high = simultaneous_bands(Estimates.joined(kinds, 1), Estimates.joined(drawn, 0))
    values = np.concatenate([kind.values[0] for kind in kinds])
    bands = [Band(*map(float, one)) for one in np.stack([values, low, high], axis=1)]
    first, second = np.cumsum([kind.values.shape[1] for kind in kinds[:2]])
    rhos = [Band(*map(float, np.tanh([b.value, b.low, b.high]))) for b in bands[:first]]
    correlations = dict(zip(statistics.correlated, rhos, strict=True))
    preferences = _preferences(statistics, clusters, bands[first:second])
    by_feature = [
        FeatureEvidence(
            name,
            float(feature.mean()),
            correlations.get(name),
            preferences.get(name),
            statistics.gold is not None,
        )
        for name, feature in statistics.features.items()
    ]
    shifts = dict(zip([one.name for one in judged], bands[second:], strict=True))
    return by_feature, [ProbeEvidence(one, shifts.get(one.name)) for one in probes]


def _preferences(
    statistics: FeatureStatistics, clusters: Clusters, excesses: Sequence[Band]
) -> dict[str, Preference]:
    """Feature → what pairs say of it."""
    if not statistics.preferred:
        return {}
    point = statistics.preferences(clusters.whole())
    drawn = [statistics.preferences(weights) for weights in clusters.weights()]
    resampled = {name: np.concatenate([part[name] for part in drawn]) for name in point}
    tail = (1 - LEVEL) / 2
    is_confirmed = float(np.quantile(resampled["agreement"], tail)) > 0.5
    # How far the labels are from what noise would make of the score's preferences: (R, K).
    reliability = 2 * resampled["agreement"][:, None] - 1
    beyond = reliability * (resampled["reward"] - 0.5) - (resampled["labels"] - 0.5)
    low, high = np.nanquantile(beyond, [tail, 1 - tail], axis=0)
    return {
        name: Preference(
            pairs=statistics.differing(name),
            reward=float(point["reward"][0, k]),
            labels=float(point["labels"][0, k]),
            excess=excesses[k],
            agreement=float(point["agreement"][0]),
            is_noise=bool(is_confirmed and low[k] <= 0 <= high[k]),
        )
        for k, name in enumerate(statistics.preferred)
    }


def as_json(found: Audit) -> dict[str, Any]:
    """The audit, for JSON; `docs/reward-models.md` says what the parts are."""
    return {
        "texts": {
            **found.texts.source,
            "responses": len(found.texts.texts),
            "prompts": len(np.unique(found.texts.of_prompt)),
            "left_out": found.left_out,
        },
        "score": {
            "mean": float(found.scores.mean()),
            "deviation": float(found.scores.std()),
            "agreement_with_labels": found.agreement,
            "correlation_with_gold": found.gold_correlation,
        },
        "verdicts": [
            {"topic": v.topic, "strength": v.strength, "grade": v.grade, "said": v.said}
            for v in found.verdicts
        ],
        "faults": found.faults,
        "features": [
            {
                "feature": one.name,
                "what": describe_feature(one.name),
                "mean": one.mean,
                "correlation": None if one.correlation is None else one.correlation.as_json(),
                "preference": None if one.preference is None else one.preference.as_json(),
                "strength": one.strength,
            }
            for one in found.by_feature
        ],
        "probes": [{**one.as_json(), "strength": one.strength} for one in found.by_probe],
        "invariances": [one.as_json() for one in found.invariances],
        "half_of_the_widest_interval": found.widest,
    }
