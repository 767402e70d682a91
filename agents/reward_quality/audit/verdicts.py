"""What is said of an audit, in words, strongest first.

A verdict needs two things: an interval that excludes "no effect", in the band of all numbers of the
audit together, and an effect of at least `LEAST` deviations of the score, Cohen's (1988) small one,
which a correlation of 0.1 is as well. What is below is no verdict, however sure.

Features and edits that are about the same thing are one verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.reward_quality.audit.bands import Band
from agents.reward_quality.audit.features import FeatureEvidence
from agents.reward_quality.audit.invariances import INVARIANCES, Invariance
from agents.reward_quality.audit.probes import PROBES, ProbeEvidence

__all__ = ["GRADES", "LEAST", "Topic", "Verdict", "fault_of", "topic_of", "verdicts_of"]

LEAST = 0.2
"""Deviations of the score that an effect must have for a verdict."""

GRADES = {0.8: "strong", 0.5: "medium", LEAST: "weak"}
"""Least strength → what it is called (Cohen 1988)."""

LABELS_PREFER = 0.6
"""Share of the pairs from which on the labels are said to prefer more of a feature, too."""

RELATED = 0.5
"""Correlation of two features from which on their verdicts may be about the same thing."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What features and an edit have in common.

    Attributes:
        words: what it is called.
        features: names.
        probe: name of the edit, if there is one.
    """

    words: str
    features: tuple[str, ...]
    probe: str | None = None


TOPICS = {
    "length": Topic("length", ("tokens", "characters", "words", "sentences"), "padding"),
    "repetition": Topic("repetition", ("repeated_words", "repeated_trigrams"), "repetition"),
    "confidence": Topic("confident words", ("confidence",), "opener"),
    "markup": Topic("markup", ("markup",), "markup"),
    "upper_case": Topic("upper case", ("upper_case",), "upper_case"),
    "exclamation": Topic("exclamation marks", ("exclamation",), "exclamation"),
    "punctuation": Topic("punctuation", ("punctuation",)),
    "hedges": Topic("hedging words", ("hedges",)),
}
"""Topic → what belongs to it; a list of words of a user's is one of its own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Something that the reward pays for.

    Attributes:
        topic: its name.
        strength: deviations of the score, with the sign of the effect.
        said: a sentence with the numbers.
    """

    topic: str
    strength: float
    said: str

    @property
    def grade(self) -> str:
        """What `GRADES` calls it."""
        return grade_of(self.strength)


def grade_of(strength: float) -> str:
    """What `GRADES` calls a strength; empty for one below all."""
    return next((words for least, words in GRADES.items() if abs(strength) >= least), "")


def topic_of(feature: str) -> str:
    """The topic of a feature; a list of a user's is its own."""
    return next((name for name, topic in TOPICS.items() if feature in topic.features), feature)


def verdicts_of(
    features: Sequence[FeatureEvidence],
    probes: Sequence[ProbeEvidence],
    values: Mapping[str, np.ndarray],
) -> list[Verdict]:
    """The verdicts, strongest first.

    Args:
        features: the evidence of features.
        probes: that of edits.
        values: feature → (n,), to see which of them go together.
    """
    found = []
    topics = dict.fromkeys([*TOPICS, *(topic_of(feature.name) for feature in features)])
    for name in topics:
        ours = [one for one in features if topic_of(one.name) == name]
        feature = max(ours, key=lambda one: abs(one.strength), default=None)
        edit = TOPICS[name].probe if name in TOPICS else None
        probe = next((one for one in probes if one.probe.name == edit), None)
        strengths = [feature.strength if feature else 0.0, probe.strength if probe else 0.0]
        strength = max(strengths, key=abs)
        if abs(strength) >= LEAST:
            said = [
                *(_said_of_feature(feature) if feature and abs(strengths[0]) >= LEAST else ()),
                *(_said_of_probe(probe) if probe and strengths[1] >= LEAST else ()),
                *(_said_of_labels(ours) if strengths[1] >= LEAST > abs(strengths[0]) else ()),
            ]
            words = TOPICS[name].words if name in TOPICS else f"words of the list {name!r}"
            label = feature.name if feature and abs(strengths[0]) >= LEAST else None
            found.append((Verdict(name, strength, f"{words}: {'; '.join(said)}."), label))
    found.sort(key=lambda item: -abs(item[0].strength))
    return [
        Verdict(one.topic, one.strength, one.said + _relation(number, found, values))
        for number, (one, _) in enumerate(found)
    ]


def _said_of_feature(one: FeatureEvidence) -> list[str]:
    said = []
    if one.by_correlation and abs(one.by_correlation) >= LEAST and one.correlation is not None:
        way = "rises" if one.correlation.value > 0 else "falls"
        given = ", the gold reward held fixed" if one.has_gold else ""
        said.append(
            f"the score {way} with {one.name.replace('_', ' ')}{given} "
            f"(ρ = {shown(one.correlation)})"
        )
    preference = one.preference
    if one.by_preference and abs(one.by_preference) >= LEAST and preference is not None:
        more = "more" if preference.reward > 0.5 else "less"
        share, labels = preference.reward, preference.labels
        if more == "less":
            share, labels = 1 - share, 1 - labels
        said.append(
            f"it prefers the side with {more} {one.name.replace('_', ' ')} in {share:.0%} of "
            f"{preference.pairs:,} pairs, the labels in {labels:.0%}"
        )
    return said


def _said_of_probe(one: ProbeEvidence) -> list[str]:
    assert one.shift is not None
    unseen = one.probe.unseen
    new = (
        f" (in {unseen:.0%} of them by tokens that none of the audited responses has)"
        if unseen is not None and unseen >= 0.5
        else ""
    )
    return [
        f"{PROBES[one.probe.name]} raises it by {shown(one.shift)} deviations, in "
        f"{(one.probe.shifts > 0).mean():.0%} of {len(one.probe.shifts):,} responses{new}"
    ]


def _said_of_labels(features: Sequence[FeatureEvidence]) -> list[str]:
    """Whether the labels, too, prefer what an edit adds."""
    known = [(one.name, one.preference) for one in features if one.preference is not None]
    if not known:
        return []
    name, most = max(known, key=lambda item: item[1].labels)
    if most.labels < LABELS_PREFER:
        return []
    return [
        f"the labels prefer the side with more {name.replace('_', ' ')} as well, in "
        f"{most.labels:.0%} of {most.pairs:,} pairs: if that is not meant, they are wrong"
    ]


def shown(band: Band) -> str:
    """A number with its interval."""
    return f"{band.value:+.2f}, {band.low:+.2f} … {band.high:+.2f}"


def _relation(
    number: int, found: Sequence[tuple[Verdict, str | None]], values: Mapping[str, np.ndarray]
) -> str:
    """Which stronger verdict's feature this one's goes with."""
    feature = found[number][1]
    if feature is None:
        return ""
    for _, other in found[:number]:
        if other is None:
            continue
        rho = _rank_correlation(values[feature], values[other])
        if abs(rho) >= RELATED:
            words = other.replace("_", " ")
            return (
                f" In these texts it goes with {words} (ρ = {rho:+.2f}): it may be the same thing."
            )
    return ""


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(np.nan_to_num(spearmanr(a, b).statistic))


def fault_of(one: Invariance) -> str:
    """What is said of an invariance that doesn't hold."""
    size = f"by up to {one.difference / one.deviation:.3g} deviations"
    if one.name == "repetition":
        return (
            f"the reward is not deterministic: the same {one.texts} texts, scored twice, differ "
            f"{size}. Whether it depends on order, batch or padding can't be told apart from that."
        )
    return (
        f"the score depends on {one.name.replace('_', ' ')}: the same {one.texts} texts, scored "
        f"{INVARIANCES[one.name]}, differ {size} (rounding: {one.tolerance / one.deviation:.1g})."
    )
