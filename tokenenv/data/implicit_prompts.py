"""Prompts that are not written down: what two whole dialogues, or texts, have in common."""

from __future__ import annotations

from collections.abc import Sequence

from tokenenv.data.messages import Message

__all__ = ["ASSISTANT", "HUMAN", "split_dialogues", "split_messages", "split_texts"]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""Markers of turns in the dialogues of hh-rlhf (Bai et al. 2022, https://arxiv.org/abs/2204.05862)
and of those written like them."""


def shared_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common beginning; by halving, so that slices are compared at once."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_dialogues(a: str, b: str) -> tuple[str, str, str]:
    r"""(prompt, response a, response b) of two texts that begin alike.

    Where they hold the markers `\n\nHuman:` and `\n\nAssistant:`, the prompt ends with the last
    `\n\nAssistant:` that both share. Otherwise it is their longest common beginning, up to the end
    of a word (`split_texts`).

    Raises:
        ValueError: there are markers, and no turn of the assistant is shared.
    """
    shared = a[: shared_length(a, b)]
    at = shared.rfind(ASSISTANT)
    if at >= 0:
        end = at + len(ASSISTANT)
        return a[:end], a[end:], b[end:]
    if any(marker in text for marker in (HUMAN, ASSISTANT) for text in (a, b)):
        raise ValueError(
            f"the two dialogues share no turn that {ASSISTANT!r} begins: they answer different "
            "prompts"
        )
    return split_texts(a, b)


def split_texts(a: str, b: str) -> tuple[str, str, str]:
    """(prompt, rest of a, rest of b): the longest common beginning, up to the end of a word.

    The blanks before the next word belong to the rests; two equal texts have no prompt.
    """
    if a == b:
        return "", a, b
    end = shared_length(a, b)
    while end and not (_is_end_of_word(a, end) and _is_end_of_word(b, end)):
        end -= 1
    while end and a[end - 1].isspace():
        end -= 1
    return a[:end], a[end:], b[end:]


def _is_end_of_word(text: str, at: int) -> bool:
    return at == len(text) or text[at].isspace()


def split_messages(
    a: tuple[Message, ...], b: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, rest of a, rest of b): the common messages before an assistant's turn in both.

    Raises:
        ValueError: they share no message that such turns could answer.
    """
    end = shared_length(a, b)
    end = min(end, len(a) - 1, len(b) - 1)
    while end > 0 and not (a[end]["role"] == b[end]["role"] == "assistant"):
        end -= 1
    if end <= 0:
        raise ValueError(
            "the two conversations share no message that a turn of the assistant answers in both"
        )
    return a[:end], a[end:], b[end:]
