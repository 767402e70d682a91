"""Conversations: messages as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Message"]

Message = Mapping[str, str]
"""`{"role": "user" | "assistant" | "system" | …, "content": text}`."""
