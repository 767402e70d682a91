"""The gold reward of an answering melody: does it come to its end with the full cadence?

An answer that ends in `sol mi re do`, and stops there, is the full cadence; all the rest
is taste. The cadence needs five tokens right together, the stop being one of them, and nothing on
the way to it pays: it starts with a leap, and leaps are not liked. A greedy agent finds a short way
home instead.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tokenenv.tasks.exact.grammar import NOTES

__all__ = ["CADENCE", "MAX_NOTES", "GoldBreakdown", "gold_breakdown", "gold_reward"]

CADENCE = ("sol", "mi", "re", "do")
"""How a finished answer should end."""

MAX_NOTES = 5
"""Notes of the longest answer that still can stop: with a sixth one its budget is spent."""

FULL_CADENCE = 1.0
"""For an answer that ends in the cadence and stops."""
HOME = 0.08
"""For one that stops on do in any other way."""
NEW_NOTE = 0.06
"""For every different note of call and answer."""
LENGTH = 0.02
"""For every note, up to `MAX_NOTES`."""
LEAP = 0.03
"""Penalty for every leap of a third or more; the one in the cadence is free."""
REPETITION = 0.09
"""Penalty for every note that repeats the one before."""
RISE = 0.01
"""Penalty for every rising step: an answer falls."""
BROKEN_OFF = 0.1
"""Penalty for an answer that never stops."""

_HEIGHT = {note: height for height, note in enumerate(NOTES)}


@dataclass(frozen=True)
class GoldBreakdown:
    """The parts of a gold reward.

    Attributes:
        cadence: for the full cadence.
        home: for another end on do.
        variety: for different notes.
        length: for the notes of the answer.
        leaps: penalty for leaps.
        repetitions: penalty for repeated notes.
        rises: penalty for rising steps.
        broken_off: penalty for an answer without an end.
    """

    cadence: float
    home: float
    variety: float
    length: float
    leaps: float
    repetitions: float
    rises: float
    broken_off: float

    @property
    def reward(self) -> float:
        """The gold reward: bonuses less penalties."""
        liked = self.cadence + self.home + self.variety + self.length
        return liked - self.leaps - self.repetitions - self.rises - self.broken_off


def gold_breakdown(prompt: str, response: str, stopped: bool) -> GoldBreakdown:
    """Takes the gold reward of an answer apart.

    Args:
        prompt: the call; words that are no notes are ignored.
        response: the answer.
        stopped: whether it stopped by itself; otherwise it was broken off.

    Returns:
        The share of every part.
    """
    call = [_HEIGHT[word] for word in prompt.split() if word in _HEIGHT]
    answer = [_HEIGHT[word] for word in response.split() if word in _HEIGHT]
    melody = [*call, *answer]
    intervals = [
        after - before
        for index, (before, after) in enumerate(itertools.pairwise(melody))
        if index + 1 >= len(call)
    ]
    cadence = [_HEIGHT[note] for note in CADENCE]
    is_cadence = stopped and answer[-len(cadence) :] == cadence
    is_home = stopped and answer[-1:] == [_HEIGHT["do"]] and not is_cadence
    leaps = sum(abs(interval) >= 2 for interval in intervals) - is_cadence
    return GoldBreakdown(
        cadence=FULL_CADENCE * is_cadence,
        home=HOME * is_home,
        variety=NEW_NOTE * len(set(melody)),
        length=LENGTH * min(len(answer), MAX_NOTES),
        leaps=LEAP * leaps,
        repetitions=REPETITION * intervals.count(0),
        rises=RISE * intervals.count(1),
        broken_off=BROKEN_OFF * (not stopped),
    )


def gold_reward(prompt: str, response: str, stopped: bool) -> float:
    """Gold reward of an answer to a call: above 1 with the full cadence, below 0.5 without.

    Args:
        prompt: the call.
        response: the answer.
        stopped: whether it stopped by itself.
    """
    return gold_breakdown(prompt, response, stopped).reward
