"""From a typed line to a move: a number of the list, words, a token id, or a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenenv.models import decode_all

__all__ = ["AFTER_THE_END", "COMMANDS", "Move", "read_move"]

COMMANDS = {
    "e": "end the response (EOS)",
    "u": "undo the last token; 'u 3': the last three",
    "r": "start this prompt over",
    "n": "another prompt",
    "?": "this help",
    "q": "quit (or Ctrl-D)",
}
"""What a line may be besides tokens → what it does."""

AFTER_THE_END = ("u", "r", "n", "?", "q")
"""The commands that make sense where a response has ended."""

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Move:
    """A line that was understood.

    Attributes:
        command: one of `COMMANDS`, or "" for tokens.
        tokens: the token ids to take, in order.
        count: of the command `u`: how many tokens to take back.
    """

    command: str = ""
    tokens: tuple[int, ...] = ()
    count: int = 1


def read_move(line: str, candidates: Sequence[int], text: str, language_model: Any) -> Move:
    """The move that a line asks for.

    Args:
        line: as it was typed.
        candidates: the token ids of the list, in its order.
        text: prompt and response so far: after a space, words are typed without one.
        language_model: whose tokens they are (`tokenenv.models.LanguageModel`).

    Raises:
        ValueError: it is none; the message says what is allowed.
    """
    typed = line.strip()
    if len(typed) >= 2 and typed[0] == typed[-1] and typed[0] in "\"'":
        return Move(tokens=_spelt(typed[1:-1], (typed[1:-1],), language_model))
    word, *rest = typed.split() or [""]
    command = {"h": "?", "help": "?", "undo": "u", "end": "e", "quit": "q"}.get(word, word)
    if command in COMMANDS and (not rest or command == "u"):
        return Move(command, count=_undo_count(rest))
    if not typed:
        raise ValueError(f"an empty line is no move: {_allowed(len(candidates))}.")
    if _is_number(typed):
        return Move(tokens=(_of_list(typed, candidates),))
    if typed[0] == "#" and _is_number(typed[1:]):
        return Move(tokens=(_of_vocabulary(typed[1:], language_model.vocabulary_size),))
    spaced = (f" {typed}", typed)
    begins_a_word = typed[0].isalnum() and not text[-1:].isspace()
    return Move(tokens=_spelt(typed, spaced if begins_a_word else spaced[::-1], language_model))


def _allowed(count: int) -> str:
    return (
        f"type a number from 1 to {count}, words (in quotes if they look like something else), "
        f"#ID for a token id, or {', '.join(COMMANDS)}"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _undo_count(rest: list[str]) -> int:
    if not rest:
        return 1
    if len(rest) > 1 or not _is_number(rest[0]) or len(rest[0]) > 6 or int(rest[0]) < 1:
        raise ValueError(
            f"'u {' '.join(rest)[:_SHOWN]}' is no undo: 'u' takes the last token back, 'u 3' the "
            "last three."
        )
    return int(rest[0])


def _of_list(typed: str, candidates: Sequence[int]) -> int:
    number = int(typed) if len(typed) <= 9 else 0
    if not 1 <= number <= len(candidates):
        raise ValueError(
            f"{typed[:_SHOWN]} is not in the list: {_allowed(len(candidates))}. For the text "
            f"{typed[:_SHOWN]} itself, put it in quotes."
        )
    return candidates[number - 1]


def _of_vocabulary(typed: str, size: int) -> int:
    token = int(typed) if len(typed) <= 9 else size
    if token >= size:
        raise ValueError(
            f"#{typed[:_SHOWN]} is no token id: allowed are #0 to #{size - 1}, the vocabulary of "
            "the reference."
        )
    return token


def _spelt(typed: str, spellings: Sequence[str], language_model: Any) -> tuple[int, ...]:
    """The ids of the first spelling that the tokenizer can give back, of equals the shorter one."""
    encoded = [_encoded(spelling, language_model) for spelling in spellings]
    known = [ids for ids in encoded if ids]
    if not known:
        some = ", ".join(
            repr(decode_all(language_model.tokenizer, [i]))
            for i in range(min(6, language_model.vocabulary_size))
        )
        raise ValueError(
            f"{typed[:_SHOWN]!r} can't be spelt in the reference's tokens ({some}, …): type words "
            "of its vocabulary, or the number of a token in the list."
        )
    shortest: list[int] = min(known, key=len)
    return tuple(shortest)


def _encoded(text: str, language_model: Any) -> list[int]:
    """The token ids of a text; empty where they don't give it back."""
    tokenizer = language_model.tokenizer
    try:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # a tokenizer without an unknown token raises at one: no narrower type
        return []
    unknown = getattr(tokenizer, "unk_token_id", None)
    is_spelt = decode_all(tokenizer, ids).strip() == text.strip()
    is_known = unknown not in ids and all(0 <= i < language_model.vocabulary_size for i in ids)
    return ids if is_spelt and is_known else []
