"""Notes to a user, each said once in a process: what was done with their files, and why."""

from __future__ import annotations

import logging

__all__ = ["note_once"]

logger = logging.getLogger("tokenenv")

_SAID: set[str] = set()


def note_once(text: str) -> None:
    """Log `text` with the level of a warning, unless this process has logged it before."""
    if text not in _SAID:
        _SAID.add(text)
        logger.warning(text)
