"""What a reward model's own report says against training with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenenv.json_files import read_json_object

__all__ = ["doubts_about"]


def doubts_about(rewards: Any) -> list[str]:
    """A sentence about each reward model whose report does not tell it from a coin.

    Args:
        rewards: `reward_model` of a configuration: a folder, a hub id, code, several of them, or
            None. Folders that `tokenrlhf reward-model` wrote have a `report.json`; of others, and
            of a file that says something else, nothing is known and nothing is said.
    """
    several = (
        rewards if isinstance(rewards, Sequence) and not isinstance(rewards, str) else [rewards]
    )
    said = [_doubt(one) for one in several if isinstance(one, str) and os.path.isdir(one)]
    return [text for text in said if text is not None]


def _doubt(folder: str) -> str | None:
    path = Path(folder) / "report.json"
    if not path.is_file():
        return None
    try:
        report = read_json_object(path, "the report of a reward model")
        low, high = map(float, report["details"]["accuracy_interval"])
        accuracy, pairs = float(report["accuracy"]), int(report["pairs"])
    except (KeyError, OSError, TypeError, ValueError):
        return None
    if not low <= 0.5:  # NaN, without pairs, says nothing
        return None
    return (
        f"by its own report the reward model {folder!r} is right about {accuracy:.0%} of {pairs:,} "
        f"held-out pairs ({low:.0%} to {high:.0%}): it is not told from a coin, and a policy that "
        "is trained against it learns its errors. More labels come first (tokenrlhf labels curve)."
    )
