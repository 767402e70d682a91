"""Labels of two responses: which one is better, or with which probability."""

from __future__ import annotations

import math
from typing import Any

from tokenenv.data.preference_pair import MOST_MARGIN
from tokenenv.data.reading import FileFault

__all__ = ["margin_of", "number", "preference_of", "probability", "stopped_of"]

_WORDS = {
    **dict.fromkeys(("a", "response_a", "model_a", "first"), 1.0),
    **dict.fromkeys(("b", "response_b", "model_b", "second"), 0.0),
    **dict.fromkeys(("tie", "both", "neither", "equal", "draw", "tie (bothbad)"), 0.5),
}
"""What is written for a winner → the probability that response_a is the better one."""

_SAY = (
    "'a', 'b' or 'tie' in any case; numbers only under a name that says what they are: "
    "columns={'preference': …} where they are the probability that response_a is the better one, "
    "columns={'winner': …} where 0 stands for response_a and 1 for response_b"
)


def number(value: Any, name: str, is_text: bool) -> float:
    """A finite number in a column.

    Args:
        value: as it stands there.
        name: of the column.
        is_text: whether numbers are texts there, as in CSV.

    Raises:
        ValueError: it is none; without place and full stop.
    """
    given = value
    if is_text and isinstance(value, str):
        value = _as_number(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value)):
        raise ValueError(f"{name!r} is {given!r:.60}, it must be a finite number")
    return float(value)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def margin_of(value: Any, is_text: bool) -> float:
    """A margin; ValueError where it is no finite number, or beyond `MOST_MARGIN`."""
    given = value
    try:
        value = number(value, "margin", is_text)
    except ValueError:
        value = math.inf
    if not abs(value) <= MOST_MARGIN:
        raise ValueError(
            f"'margin' is {given!r:.60}, it must be a finite number of at most "
            f"{MOST_MARGIN:,.0f} either way"
        )
    return value


def probability(value: Any, name: str, of_what: str, is_text: bool) -> float:
    """A probability in a column; ValueError where it is none."""
    given = value
    try:
        value = number(value, name, is_text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name!r} is {given!r:.60}, it must be the probability from 0 to 1 that {of_what} is "
            "the better one"
        )
    return value


def stopped_of(value: Any, name: str) -> bool:
    """Whether a response is complete, from how it finished; where nothing is said, it is.

    Args:
        value: `"stop"`, `"length"`, or nothing.
        name: of the column.

    Raises:
        ValueError: it is something else; without place and full stop.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    if value not in ("stop", "length"):
        raise ValueError(
            f"{name!r} is {value!r:.60}, it must be 'stop' for a response that ended by itself, or "
            "'length' for one that ran out of room"
        )
    return bool(value == "stop")


def preference_of(value: Any, name: str) -> float:
    """The probability that `response_a` is better than `response_b`, from their label.

    Args:
        value: a word (`a`, `B`, `tie`, …), or a number: under the name `preference` a probability,
            under `winner` 0 for a and 1 for b.
        name: of the column: `preference`, `winner` or `label`.

    Raises:
        FileFault: it is a number whose meaning the name leaves open, or which has none.
        ValueError: it is something else; without place and full stop.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(
            f"{name!r} is empty: nobody has said yet which response is better. Fill in a, b or "
            "tie, or let `tokenrlhf sample-pairs` do it (--ask, --reward or --labels)"
        )
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    figure = _as_number(value) if isinstance(value, str) else value
    if isinstance(figure, bool) or not isinstance(figure, int | float):
        raise ValueError(f"{name!r} is {value!r:.60}, it must be {_SAY}")
    if name == "preference" and 0 <= figure <= 1:
        return float(figure)
    if name == "winner" and figure in (0, 1, 0.5):
        return 1.0 - float(figure)
    why = {
        "preference": "no probability from 0 to 1",
        "winner": "neither 0 (response_a) nor 1 (response_b)",
    }.get(name, "a number, which may count responses from 0 or from 1, or be a probability")
    raise FileFault(f"{name!r} is {value!r:.60}: {why}. It must be {_SAY}")
