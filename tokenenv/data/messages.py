"""Conversations: messages as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Message", "is_message", "is_messages"]

Message = Mapping[str, str]
"""`{"role": "user" | "assistant" | "system" | …, "content": text}`."""


def is_message(value: Any) -> bool:
    """Whether a value is meant as a message: an object with a role, or ShareGPT's."""
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def is_messages(value: Any) -> bool:
    """Whether a value is meant as a conversation: a list whose first element is a message."""
    return isinstance(value, list | tuple) and bool(value) and is_message(value[0])
