"""The two splits that prompts come in."""

from __future__ import annotations

__all__ = ["SPLITS", "check_split"]

SPLITS = ("train", "eval")


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(
            f"split={split!r} is unknown: choose one of {', '.join(map(repr, SPLITS))}."
        )
