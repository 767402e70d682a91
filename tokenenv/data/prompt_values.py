"""A prompt as Python or JSON gives it: a text, messages, or a row with columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenenv.data.messages import check_messages, is_messages
from tokenenv.data.prompts import Prompt

__all__ = ["as_prompt"]


def as_prompt(value: Any, what: str = "the prompt") -> Prompt:
    """The `Prompt` that a value stands for.

    Args:
        value: a text; a list of messages; an object with a `"prompt"`, which is one of these, and
            other fields, which become columns; or a `Prompt`.
        what: names it in the message of an error.

    Raises:
        ValueError: it is none of them, or an empty text.
    """
    if isinstance(value, Prompt):
        return value
    columns: dict[str, Any] = {}
    content = value
    if isinstance(value, Mapping) and "prompt" in value:
        columns = {str(name): column for name, column in value.items() if name != "prompt"}
        content = value["prompt"]
    if isinstance(content, str):
        if not content.strip():
            raise ValueError(f"{what} {content!r} is empty: it needs at least one token.")
        return Prompt(content, columns)
    if is_messages(content):
        return Prompt(check_messages(content, what), columns)
    hint = ""
    if isinstance(content, Mapping) and "role" in content:
        hint = " This is one message: give a list of them."
    raise ValueError(
        f"{what} is {content!r:.80} ({type(content).__name__}): give a text, a list of messages "
        f'({{"role": …, "content": …}}), or an object with one of them as "prompt" and columns '
        f"beside it.{hint}"
    )
