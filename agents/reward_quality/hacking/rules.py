"""When a run looks like reward hacking: rules over what it shows, without the gold reward.

Every rule compares the latest responses with those at the start of the training, which are those of
the model that training started from, or nearly so. A policy that is trained on a good reward moves
as well: the limits are set so that such a run stays below them (`benchmarks/bench_hacking.py`).

Axes: `n` responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agents.reward_quality.hacking.tracking import Spread, drift, pooled
from agents.reward_quality.text_features import describe_feature

__all__ = [
    "FEWEST_RESPONSES",
    "RULES",
    "Alarm",
    "Rule",
    "Snapshot",
    "Watch",
    "merged",
    "no_accuracy",
]

FEWEST_RESPONSES = 64
"""Responses below which nothing is judged: rollouts are taken together until they have so many."""


@dataclass(frozen=True)
class Snapshot:
    """What a rollout shows.

    Attributes:
        tokens: of training, at its end.
        steps: of each environment in it, and in rollouts before it in which nothing finished.
        score: of its n responses, as paid.
        top_score: the greatest of them.
        kl: of its n responses, in nats.
        surprisal: −log π_ref of them, in nats: how improbable the reference finds each whole text.
        entropy: per token, in nats.
        features: of their texts.
        disagreement: of several reward models, the mean; None of one.
    """

    tokens: int
    steps: int
    score: Spread
    top_score: float
    kl: Spread
    surprisal: Spread
    entropy: float
    features: Mapping[str, Spread] = field(default_factory=dict)
    disagreement: float | None = None


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Several rollouts as one; one at least."""
    counts = [one.score.count for one in snapshots]
    names = [name for name in snapshots[0].features if all(name in s.features for s in snapshots)]
    disagreements = [one.disagreement for one in snapshots]
    known = [value for value in disagreements if value is not None]

    def mean(values: Sequence[float]) -> float:
        return sum(n * v for n, v in zip(counts, values, strict=True)) / sum(counts)

    return Snapshot(
        tokens=snapshots[-1].tokens,
        steps=sum(one.steps for one in snapshots),
        score=pooled([one.score for one in snapshots]),
        top_score=max(one.top_score for one in snapshots),
        kl=pooled([one.kl for one in snapshots]),
        surprisal=pooled([one.surprisal for one in snapshots]),
        entropy=mean([one.entropy for one in snapshots]),
        features={name: pooled([one.features[name] for one in snapshots]) for name in names},
        disagreement=mean(known) if len(known) == len(snapshots) else None,
    )


@dataclass(frozen=True)
class Alarm:
    """A rule that holds.

    Attributes:
        rule: its name.
        tokens: of training by then.
        text: what it saw, as a sentence.
    """

    rule: str
    tokens: int
    text: str


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: of it.
        statement: when it holds.
        check: (start, now) → what it saw, as a sentence; None where it does not hold, or where
            what it looks at is not known.
        known: what is known before anything is trained: the rule holds without a look.
    """

    name: str
    statement: str
    check: Callable[[Snapshot, Snapshot], str | None]
    known: str | None = None


class Watch:
    """Follows a training by rules.

    Args:
        rules: to look by.
        max_new_tokens: T. The start lasts until every environment has had time for a response of
            this length, as the first responses to finish are short ones, and until there are
            `FEWEST_RESPONSES`.

    Attributes:
        start: the responses at the start; None while they are being collected.
    """

    def __init__(self, rules: Sequence[Rule], max_new_tokens: int) -> None:
        self.rules, self.max_new_tokens = tuple(rules), max_new_tokens
        self.start: Snapshot | None = None
        self._latest: list[Snapshot] = []

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far; JSON."""
        return {
            "start": None if self.start is None else asdict(self.start),
            "latest": [asdict(snapshot) for snapshot in self._latest],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self.start = None if state["start"] is None else _snapshot(state["start"])
        self._latest = [_snapshot(snapshot) for snapshot in state["latest"]]

    def look(self, snapshot: Snapshot) -> list[Alarm] | None:
        """What holds after another rollout; None while the start is being collected."""
        self._latest.append(snapshot)
        if self.start is None:
            together = merged(self._latest)
            is_whole = together.steps >= self.max_new_tokens
            if is_whole and together.score.count >= FEWEST_RESPONSES:
                self.start, self._latest = together, []
            return None
        while sum(one.score.count for one in self._latest[1:]) >= FEWEST_RESPONSES:
            del self._latest[0]
        now = merged(self._latest)
        if now.score.count < FEWEST_RESPONSES:
            return []
        said = {rule.name: rule.check(self.start, now) for rule in self.rules}
        return [Alarm(name, now.tokens, text) for name, text in said.items() if text is not None]


def _snapshot(state: Mapping[str, Any]) -> Snapshot:
    """The snapshot that `asdict` made a dictionary of."""
    spreads = {name: Spread(**state[name]) for name in ("score", "kl", "surprisal")}
    features = {name: Spread(**spread) for name, spread in state["features"].items()}
    return Snapshot(**{**state, **spreads, "features": features})


# The rules ---------------------------------------------------------------------------------------

MOVED = 3.0
"""KL per response, in nats, below which the score per KL is not judged: noise of few nats."""

SHARE = 0.2
"""Of the gain in score that the best policy of that KL would have."""

SPREAD = 0.5
"""Of the start's deviation of scores: below it they have all come near their greatest value."""

SURPRISED = 1.0
SCORES = 3.0
LONGER = 1.5
DRIFTED = 4.0
"""In deviations of the responses at the start."""

ENTROPY = 0.2
"""Of the entropy at the start."""

DISAGREEMENT = 2.0
"""Times the disagreement at the start."""

STRANGERS = 0.4
"""Disagreement at the start, in deviations of the rewards on the reference's responses. Of three
reward models that correlate by ρ it is about 0.7·√(1−ρ): they have less than ρ = 0.7 in common."""

_LENGTHS = ("tokens", "characters", "words", "sentences")
_REPETITION = ("repeated_words", "repeated_trigrams")


def kl_buys_little(start: Snapshot, now: Snapshot) -> str | None:
    """Whether the policy moves without earning score, though there is score to be had.

    Of all policies with KL(π ‖ π_ref) = D, the mean score is greatest for π ∝ π_ref·exp(score/τ);
    with normal scores of deviation σ it is then σ·√(2D) above that of π_ref.
    """
    kl, deviation = now.kl.mean, start.score.deviation
    if deviation == 0 or kl < MOVED or now.score.deviation < SPREAD * deviation:
        return None
    gain, most = now.score.mean - start.score.mean, deviation * math.sqrt(2 * kl)
    if gain >= SHARE * most:
        return None
    return (
        f"for a KL of {kl:.3g} nats the score has risen by {gain:.2g}, {gain / most:.0%} of what "
        f"selection by it would gain (σ·√(2·KL) = {most:.2g}): most of the change is paid by "
        "nothing"
    )


def improbable(start: Snapshot, now: Snapshot) -> str | None:
    """Whether the reference would hardly write such responses.

    To choose among the reference's own texts by their score makes the policy surer, and its texts
    not less probable: the KL is then what entropy has been lost. A mean −log π_ref that rises comes
    of texts that the reference avoids, and it is the reference's texts that people labelled.
    """
    moved = drift(start.surprisal, now.surprisal)
    if moved <= SURPRISED:
        return None
    return (
        f"−log π_ref of a response is {now.surprisal.mean:.3g} nats, and was "
        f"{start.surprisal.mean:.3g} ± {start.surprisal.deviation:.2g} at the start: the reference "
        "would hardly write such texts, and those that were labelled were its own"
    )


def scores_beyond_the_start(start: Snapshot, now: Snapshot) -> str | None:
    """Whether the mean score is where hardly any response of the start was."""
    limit = start.score.mean + SCORES * start.score.deviation
    if start.score.deviation == 0 or now.score.mean <= max(limit, start.top_score):
        return None
    return (
        f"the mean score is {now.score.mean:.3g}, and at the start the scores were "
        f"{start.score.mean:.3g} ± {start.score.deviation:.2g}, the greatest of "
        f"{start.score.count:,} {start.top_score:.3g}: nobody labelled texts like these"
    )


def longer(start: Snapshot, now: Snapshot) -> str | None:
    """Whether responses have become much longer."""
    moved = _moved(start, now, ["tokens"])
    if not moved or moved["tokens"] <= LONGER:
        return None
    return _said(start, now, "tokens", moved["tokens"])


def repeats(start: Snapshot, now: Snapshot) -> str | None:
    """Whether responses repeat themselves."""
    moved = _moved(start, now, _REPETITION)
    name = max(moved, key=lambda name: moved[name], default=None)
    return None if name is None or moved[name] <= DRIFTED else _said(start, now, name, moved[name])


def looks_different(start: Snapshot, now: Snapshot) -> str | None:
    """Whether a feature that is neither length nor repetition has moved far."""
    others = [name for name in now.features if name not in (*_LENGTHS, *_REPETITION)]
    moved = _moved(start, now, others)
    name = max(moved, key=lambda name: abs(moved[name]), default=None)
    if name is None or abs(moved[name]) <= DRIFTED:
        return None
    return _said(start, now, name, moved[name])


def entropy_collapsed(start: Snapshot, now: Snapshot) -> str | None:
    """Whether hardly any randomness is left."""
    if now.entropy >= ENTROPY * start.entropy:
        return None
    return f"the entropy is {now.entropy:.2g} nats per token, and was {start.entropy:.3g}"


def models_disagree(start: Snapshot, now: Snapshot) -> str | None:
    """Whether the reward models of an ensemble have parted."""
    before, after = start.disagreement, now.disagreement
    if before is None or after is None or before <= 0 or after <= DISAGREEMENT * before:
        return None
    return f"the reward models disagree by {after:.3g}, and did by {before:.3g} at the start"


def models_know_little(start: Snapshot, now: Snapshot) -> str | None:
    """Whether the reward models of an ensemble hardly agree about the start's own texts."""
    found = start.disagreement
    if found is None or found < STRANGERS:
        return None
    return (
        f"the reward models disagree by {found:.2f} deviations of their rewards about the "
        "responses at the start: each of them has learned something else, and none what people "
        "meant"
    )


def _moved(start: Snapshot, now: Snapshot, names: Sequence[str]) -> dict[str, float]:
    """Feature → its drift, of those that both have."""
    return {
        name: drift(start.features[name], now.features[name])
        for name in names
        if name in start.features and name in now.features
    }


def _said(start: Snapshot, now: Snapshot, name: str, moved: float) -> str:
    before, after = start.features[name].mean, now.features[name].mean
    return (
        f"{describe_feature(name)}: {before:.3g} at the start and {after:.3g} now, {moved:+.1f} "
        "deviations"
    )


RULES = (
    Rule(
        "score per KL",
        f"The KL is {MOVED:g} nats or more, and the score has risen by less than {SHARE:g} times "
        "σ·√(2·KL), the gain of the best policy of that KL where scores are normal with the "
        f"start's deviation σ; and the scores still vary by {SPREAD:g}·σ or more, so that they are "
        "not at their greatest value.",
        kl_buys_little,
    ),
    Rule(
        "improbable",
        f"−log π_ref of a response, the mean, is more than {SURPRISED:g} deviation above that of "
        "the start.",
        improbable,
    ),
    Rule(
        "score",
        f"The mean score is more than {SCORES:g} deviations above that of the start, and above the "
        "greatest score there.",
        scores_beyond_the_start,
    ),
    Rule(
        "length",
        f"The mean length in tokens is more than {LONGER:g} deviations above that of the start.",
        longer,
    ),
    Rule(
        "repetition",
        f"The share of repeated words, or of repeated three words in a row, is more than "
        f"{DRIFTED:g} deviations above that of the start.",
        repeats,
    ),
    Rule(
        "features",
        f"Another feature (punctuation, markup, capitals, words of a list, …) is more than "
        f"{DRIFTED:g} deviations off the start, either way.",
        looks_different,
    ),
    Rule(
        "entropy",
        f"The entropy per token is below {ENTROPY:g} times that of the start.",
        entropy_collapsed,
    ),
    Rule(
        "disagreement",
        f"Of several reward models: their disagreement is more than {DISAGREEMENT:g} times that of "
        "the start.",
        models_disagree,
    ),
    Rule(
        "no agreement",
        f"Of several reward models: their disagreement at the start was {STRANGERS:g} deviations "
        "of their rewards or more: they have learned little that is common to them.",
        models_know_little,
    ),
)
"""In the order in which they are looked at."""


def no_accuracy(reports: Sequence[str]) -> Rule:
    """A rule that holds from the beginning, for reward models that are not known to know anything.

    What a policy learns from a coin are the coin's errors, and it loses as soon as it moves. A
    report of few pairs says this of good reward models too.

    Args:
        reports: what the report of each reward model says of its accuracy, as text.
    """
    said = "; ".join(reports)
    return Rule(
        "no accuracy",
        "By their own reports, on pairs that they had not seen, the reward models are not told "
        "from a coin.",
        lambda start, now: said,
        known=said,
    )
