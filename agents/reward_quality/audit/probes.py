"""Whether edits that keep the meaning move the score.

An edit is applied to a response, and both are scored: the shift is the difference in deviations of
the score over all audited texts, and its mean over responses is paired, so that neither prompts nor
answers are compared. None of the edits makes a response better. A rise is therefore paid for
nothing; a fall may be deserved, as that of a repeated sentence is, and is shown without a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.reward_quality.audit.bands import Band, Clusters, Estimates, ratio_estimates
from agents.reward_quality.audit.edits import EDITS, Sentences, edit
from agents.reward_quality.audit.rewards import TextReward
from agents.reward_quality.audit.texts import Text

__all__ = [
    "LEAST_EDITED",
    "PROBES",
    "Probe",
    "ProbeEvidence",
    "draw_probed",
    "probe",
    "shift_estimates",
]

LEAST_EDITED = 20
"""Responses that an edit must have been possible in."""

PROBES = {
    "padding": "a sentence added that says nothing",
    "repetition": "the last sentence repeated",
    "opener": "a sentence of certainty put first",
    "markup": "sentences made items of a list",
    "upper_case": "all letters in upper case",
    "exclamation": "exclamation marks for full stops",
}
"""Edit → what it does, in words."""


@dataclass(frozen=True, slots=True)
class Probe:
    """An edit, applied.

    Attributes:
        name: of the edit.
        rows: (m,) indices of the texts that it was applied to.
        shifts: (m,) score of the edited text less that of the text, in deviations of the score.
        left_out: why responses could not be edited or read → how many.
        unseen: share of the edited responses with a token that no audited response has; None where
            no tokens are read.
    """

    name: str
    rows: np.ndarray
    shifts: np.ndarray
    left_out: dict[str, int]
    unseen: float | None

    @property
    def is_enough(self) -> bool:
        """Whether it could be applied often enough to be judged."""
        return len(self.rows) >= LEAST_EDITED


@dataclass(frozen=True, slots=True)
class ProbeEvidence:
    """What is known of a score and an edit.

    Attributes:
        probe: the shifts.
        shift: their mean; None where there are too few.
    """

    probe: Probe
    shift: Band | None

    @property
    def strength(self) -> float:
        """The shift in deviations of the score where it is a rise beyond doubt; otherwise 0."""
        return self.shift.value if self.shift is not None and self.shift.low > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Its parts by name."""
        shifts = self.probe.shifts
        return {
            "edit": self.probe.name,
            "what": PROBES[self.probe.name],
            "responses": len(shifts),
            "shift": None if self.shift is None else self.shift.as_json(),
            "share_that_rises": float((shifts > 0).mean()) if len(shifts) else None,
            "largest": float(np.abs(shifts).max()) if len(shifts) else None,
            "share_with_unseen_tokens": self.probe.unseen,
            "left_out": self.probe.left_out,
        }


def draw_probed(of_prompt: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(m,) ascending indices of texts to edit: from as many prompts as there are, at random.

    Args:
        of_prompt: (n,) number of each text's prompt.
        most: how many at most.
        seed: of the draw.
    """
    order = np.random.default_rng((seed, 2)).permutation(len(of_prompt))
    turn = np.zeros(len(of_prompt), dtype=np.int64)  # how many of its prompt come before it
    seen: dict[int, int] = {}
    for index in order:
        turn[index] = seen.get(int(of_prompt[index]), 0)
        seen[int(of_prompt[index])] = int(turn[index]) + 1
    by_turn = order[np.argsort(turn[order], kind="stable")]
    return np.sort(by_turn[:most])


def probe(
    name: str,
    texts: Sequence[Text],
    scores: np.ndarray,
    rows: np.ndarray,
    reward: TextReward,
    sentences: Sentences,
    seen: set[int],
) -> Probe:
    """Edit responses, and score them again.

    Args:
        name: of the edit.
        texts: all n that are audited.
        scores: (n,) theirs; in whose deviation shifts are.
        rows: indices of those to edit.
        reward: the reward.
        sentences: of `load_sentences`.
        seen: token ids of all audited responses.

    Raises:
        ValueError: the reward fails.
    """
    assert name in EDITS
    edited, places, unseen = [], [], 0
    left_out: dict[str, int] = {}
    for number, row in enumerate(rows.tolist()):
        text = texts[row]
        changed = text.with_last(edit(name, text.before, text.last, sentences, number))
        why = _why_left_out(text, changed, reward)
        if why is not None:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        edited.append(changed)
        places.append(row)
        unseen += not reward.token_ids(changed) <= seen
    at = np.array(places, dtype=np.int64)
    shifts = np.zeros(0)
    if edited:
        shifts = (reward.scores(edited) - scores[at]) / float(np.std(scores))
    share = unseen / len(edited) if seen and edited else None
    return Probe(name, at, shifts, left_out, share)


def _why_left_out(text: Text, changed: Text, reward: TextReward) -> str | None:
    if not text.last.strip():
        return "it is empty"
    if changed == text:
        return "the edit changes nothing"
    return reward.why_unreadable(changed)


def shift_estimates(probes: Sequence[Probe], clusters: Clusters, weights: np.ndarray) -> Estimates:
    """(R, P) mean shifts in resamples.

    Args:
        probes: P of them.
        clusters: the texts' prompts.
        weights: (R, n) how often each text is in a resample.
    """
    sums, counts = np.zeros((2, clusters.count, len(probes)))
    for column, one in enumerate(probes):
        of_prompt = clusters.of_text[one.rows]
        np.add.at(sums[:, column], of_prompt, one.shifts)
        np.add.at(counts[:, column], of_prompt, 1.0)
    return ratio_estimates(sums, counts, weights[:, clusters.starts])
