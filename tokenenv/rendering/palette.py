"""The one palette of rewards: orange below 0, blue above, near-white between, in every mode.

Vermilion and blue are told apart with any kind of colour vision (Okabe and Ito 2008,
https://jfly.uni-koeln.de/color/); lightness says how much, the sign is printed beside it.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import Any

__all__ = [
    "FULL_COLOUR",
    "Colour",
    "diverging_colour",
    "legend",
    "on_ground",
    "reward_colour",
    "shows_colours",
    "terminal_colour",
    "text_colour",
    "wants_colours",
]

Colour = tuple[int, int, int]

FULL_COLOUR = 2.0
"""Rewards of at least this size, either way, have the full colour. Scores have a standard deviation
of about 1 on samples of the reference."""

NEGATIVE, ZERO, POSITIVE = (213, 94, 0), (247, 247, 247), (0, 114, 178)
INK, PAPER = (20, 20, 20), (255, 255, 255)


def diverging_colour(share: float) -> Colour:
    """The colour of a number between −1 (vermilion) and 1 (blue); beyond them it stays as it is.

    0 is near-white, and so is NaN: nothing is known of it.
    """
    strength = 0.0 if math.isnan(share) else min(abs(share), 1.0)
    end = NEGATIVE if share < 0 else POSITIVE
    red, green, blue = (
        round(zero + strength * (full - zero)) for zero, full in zip(ZERO, end, strict=True)
    )
    return red, green, blue


def reward_colour(reward: float) -> Colour:
    """The colour of a reward: its share of `FULL_COLOUR`, √|r|, so that small ones show too."""
    return diverging_colour(math.copysign(math.sqrt(abs(reward) / FULL_COLOUR), reward))


def text_colour(ground: Colour) -> Colour:
    """Near-black or white, whichever stands out more; its contrast is at least 4 : 1."""
    contrasts = {ink: _contrast(ink, ground) for ink in (INK, PAPER)}
    return max(contrasts, key=lambda ink: contrasts[ink])


# On a terminal ------------------------------------------------------------------------------------


def on_ground(text: str, ground: Colour) -> str:
    """`text` on a ground, by escape codes of the 256-colour table, which nearly all terminals have.

    Args:
        text: must be safe to print (`tokenenv.printable`).
        ground: a colour of the palette; a terminal shows it in nine steps.
    """
    ink, number = terminal_colours(ground)
    return f"\x1b[38;5;{ink};48;5;{number}m{text}\x1b[0m"


def terminal_colours(ground: Colour) -> tuple[int, int]:
    """The numbers of text and ground in the 256-colour table, for a colour of the palette."""
    number = terminal_colour(ground)
    return (16 if text_colour(_STEPS[number]) == INK else 231), number  # its black and white


def legend() -> str:
    """One line, 44 columns, that says which ground stands for which reward."""
    full, half, little = FULL_COLOUR, FULL_COLOUR / 2, FULL_COLOUR / 8
    names = {
        -full: f"{-full:+g} or less",
        **{reward: f"{reward:+g}" for reward in (-half, -little)},
        0.0: "0",
        **{reward: f"{reward:+g}" for reward in (little, half)},
        full: f"{full:+g} or more",
    }
    return "".join(on_ground(f" {name} ", reward_colour(r)) for r, name in names.items())


def wants_colours() -> bool:
    """Whether the user has not set `NO_COLOR` (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


def shows_colours(stream: Any) -> bool:
    """Whether a stream is a terminal that may be written to in colours."""
    is_terminal = bool(getattr(stream, "isatty", lambda: False)())
    return is_terminal and wants_colours() and os.environ.get("TERM") != "dumb"


_STEPS: dict[int, Colour] = {
    166: (215, 95, 0),
    173: (215, 135, 95),
    216: (255, 175, 135),
    223: (255, 215, 175),
    231: (255, 255, 255),
    153: (175, 215, 255),
    110: (135, 175, 215),
    67: (95, 135, 175),
    25: (0, 95, 175),
}
"""The palette in nine steps: number in the 256-colour table → its colour."""


@lru_cache(maxsize=1024)
def terminal_colour(colour: Colour) -> int:
    """The step of the palette on a terminal that is nearest to a colour of it; see `_STEPS`."""

    def distance(number: int) -> int:
        return sum((one - other) ** 2 for one, other in zip(_STEPS[number], colour, strict=True))

    return min(_STEPS, key=distance)


# Contrast -----------------------------------------------------------------------------------------


def _luminance(colour: Colour) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio (WCAG 2), 1 … 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
