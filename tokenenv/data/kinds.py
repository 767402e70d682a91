"""Whether a file holds prompts, preference pairs or examples, by its columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenenv.data.reading import open_file
from tokenenv.data.turns import is_list

__all__ = ["KINDS", "guess_kind"]

KINDS = ("prompts", "pairs", "examples")
"""What files hold."""

_PAIRS = (
    {"chosen", "rejected"},
    {"response_a", "response_b"},
    *({a, b} for a in ("responses", "completions") for b in ("ratings", "scores", "rewards")),
    *({"response", b} for b in ("rating", "score", "reward")),
)
_RESPONSES = {"response", "completion", "output"}
"""An `answer` beside a prompt is more often one that rewards are checked by."""


def guess_kind(path: str | Path, columns: Mapping[str, str] | None = None) -> str:
    """One of `KINDS`.

    Pairs have two responses or ratings, examples a response or a text; whole conversations are
    examples where the first ends with the assistant's turn; everything else is prompts.

    Args:
        path: a file of any format that is read.
        columns: what columns mean → their names in the file.

    Raises:
        ValueError: it can't be read, or a column that is named is not there.
    """
    opened = open_file(path, columns, None, True, None, "file")
    names = set(opened.names)
    if any(layout <= names for layout in _PAIRS) or names & {"chosen", "rejected"}:
        return "pairs"
    if "prompt" in names:
        return "examples" if names & _RESPONSES else "prompts"
    if "conversations" in names:
        return "examples"
    if "messages" in names:
        messages = next(opened.rows).fields.get("messages")
        last = messages[-1] if is_list(messages) and messages else {}
        is_answered = isinstance(last, Mapping) and last.get("role") == "assistant"
        return "examples" if is_answered or isinstance(messages, str) else "prompts"
    if "text" in names and not opened.is_text:
        return "examples"
    return "prompts"
