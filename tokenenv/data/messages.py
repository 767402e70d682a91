"""Conversations: messages as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Message", "check_messages", "is_message", "is_messages"]

Message = Mapping[str, str]
"""`{"role": "user" | "assistant" | "system" | …, "content": text}`."""


def is_message(value: Any) -> bool:
    """Whether a value is meant as a message: a mapping with a role."""
    return isinstance(value, Mapping) and "role" in value


def is_messages(value: Any) -> bool:
    """Whether a value is meant as a conversation: a list whose first element is a message."""
    return isinstance(value, list | tuple) and bool(value) and is_message(value[0])


def check_messages(value: Any, what: str) -> tuple[Message, ...]:
    """The messages of a conversation.

    Args:
        value: a list of `{"role": …, "content": …}`; other fields go to the template as they are.
        what: names it in the message of an error.

    Raises:
        ValueError: it is something else, or a role or a content is no text.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f'{what} {value!r:.80}: messages are a list of {{"role": …, "content": …}}, at '
            "least one."
        )
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"{what}: message {number} is {message!r:.60}, it must be an object with a 'role' "
                "and a 'content'."
            )
        for field in ("role", "content"):
            text = message.get(field)
            if not isinstance(text, str) or (field == "role" and not text.strip()):
                raise ValueError(
                    f"{what}: the {field!r} of message {number} is {text!r:.60}, it must be text "
                    "(parts of other kinds, such as images, are not read)."
                )
    return tuple(dict(message) for message in value)
