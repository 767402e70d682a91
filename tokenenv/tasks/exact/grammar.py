"""A small Markov grammar of melodies: five notes, steps likelier than leaps, home to end on.

A melody is a call of one note and an answer of at least one more. Every note is drawn given the one
before it (`NEXT_NOTE`), and after every note but the call the melody may stop (`STOP`): on do, the
home note, half of the time. So the log-probability of any text is known exactly.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

__all__ = [
    "CALL_NOTES",
    "NEXT_NOTE",
    "NOTES",
    "STOP",
    "is_melody",
    "melody_log_prob",
    "sample_melody",
]

NOTES = ("do", "re", "mi", "fa", "sol")
"""The notes, from low to high."""

CALL_NOTES = 1
"""Notes after which a melody never stops: the call waits for its answer."""

NEXT_NOTE = (
    # to do, re, mi, fa, sol
    (0.12, 0.28, 0.09, 0.43, 0.08),  # from do
    (0.44, 0.03, 0.31, 0.09, 0.13),  # from re
    (0.09, 0.41, 0.07, 0.19, 0.24),  # from mi
    (0.18, 0.10, 0.32, 0.10, 0.30),  # from fa
    (0.03, 0.04, 0.33, 0.42, 0.18),  # from sol
)
"""Probability of the next note, where the melody goes on."""

STOP = (0.50, 0.15, 0.18, 0.17, 0.13)
"""Probability that a melody stops after do, re, mi, fa, sol."""

# The last note takes the rounding error.
_CUMULATED = [[*accumulate(row[:-1])] for row in NEXT_NOTE]
_INDEX = {note: index for index, note in enumerate(NOTES)}


def sample_melody(rng: np.random.Generator, max_notes: int) -> tuple[list[str], bool]:
    """Draw a melody, its call uniformly, and break it off where it grows too long.

    Args:
        rng: of the draws.
        max_notes: the most notes, call included.

    Returns:
        Its notes, and whether it stopped by itself.
    """
    notes = [int(rng.integers(len(NOTES)))]
    while len(notes) < max_notes:
        if len(notes) > CALL_NOTES and rng.random() < STOP[notes[-1]]:
            return [NOTES[note] for note in notes], True
        notes.append(bisect(_CUMULATED[notes[-1]], rng.random()))
    return [NOTES[note] for note in notes], False


def melody_log_prob(notes: Sequence[str], stopped: bool, given: int = 1) -> float:
    """Log-probability in nats of how a melody goes on.

    Args:
        notes: the melody, call included.
        stopped: whether it ends there; otherwise anything may follow.
        given: notes at its beginning that are given, not predicted.

    Raises:
        ValueError: a word is no note, or nothing is given.
    """
    unknown = [note for note in notes if note not in _INDEX]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no note: a melody is made of {', '.join(NOTES)}.")
    if not 1 <= given <= len(notes):
        raise ValueError(f"given={given} must lie between 1 and the {len(notes)} notes.")
    total = 0.0
    for index in range(given, len(notes)):
        before, note = _INDEX[notes[index - 1]], _INDEX[notes[index]]
        total += _log(1.0 - _stop(index, before)) + _log(NEXT_NOTE[before][note])
    return total + (_log(_stop(len(notes), _INDEX[notes[-1]])) if stopped else 0.0)


def is_melody(prompt: str, response: str, stopped: bool) -> bool:
    """Whether the grammar plays a call and its answer so, or, not stopped, some longer answer.

    Args:
        prompt: the call.
        response: the answer so far.
        stopped: whether it ends there.
    """
    call, answer = prompt.split(), response.split()
    if not call or any(word not in _INDEX for word in (*call, *answer)):
        return False
    return melody_log_prob([*call, *answer], stopped, len(call)) > -math.inf


def _stop(length: int, last: int) -> float:
    return STOP[last] if length > CALL_NOTES else 0.0


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
