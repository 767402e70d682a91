"""A preference pair."""

from __future__ import annotations

from dataclasses import dataclass

from tokenenv.data.messages import Message

__all__ = ["MOST_MARGIN", "PreferencePair"]

MOST_MARGIN = 1e6
"""Largest margin of a pair: rewards differ by a few units; beyond float32 a loss is infinite."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt; `chosen` is the preferred one.

    Attributes:
        prompt: a text, or the messages of a conversation.
        chosen: the text of the preferred response; messages where it is more than one turn.
        rejected: likewise, of the other one.
        margin: how much better `chosen` is at least, in units of the reward.
        preference: probability that `chosen` is the better one: 1 for a plain label, 0.5 for a tie.
        chosen_stopped: whether `chosen` is complete; False where it ran out of room, and so has no
            EOS at its end. A chat template completes the last turn of a conversation all the same.
        rejected_stopped: likewise, of the other one.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    margin: float = 0.0
    preference: float = 1.0
    chosen_stopped: bool = True
    rejected_stopped: bool = True
