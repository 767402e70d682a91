"""The name of a run: of its task, or of what a user brought in place of the task's parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["run_name"]

_MOST_LETTERS = 60


def run_name(settings: Mapping[str, Any]) -> str:
    """The name that folders, plots and summaries of a run carry.

    With the task's models and prompts it is the task's name. A model, prompts or a reward of the
    user's own stand in it instead: `tinystories-656k-beginnings-no_repeats`.

    Args:
        settings: those of `tokenrlhf train`, by name; missing ones are those of the task.
    """
    task = _short(settings.get("task") or "reviews")
    model = settings.get("actor") or settings.get("reference")
    rewards = settings.get("reward_model") or ()
    rewards = [rewards] if isinstance(rewards, str) else list(rewards)
    brought = [model, settings.get("prompts"), *rewards]
    names = [_short(name) for name in brought if isinstance(name, str) and name.strip()]
    names = [name for name in dict.fromkeys(names) if name and name != task]
    parts = names if model and _short(model) != task else [task, *names]
    return "-".join(parts)[:_MOST_LETTERS].strip("-.")


def _short(source: str) -> str:
    """The last part of a path, hub id or name of code, in letters that file names may have."""
    module, _, attribute = source.rpartition(":")
    last = attribute if module and attribute.isidentifier() else Path(source).name
    for suffix in (".gz", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"):
        last = last.removesuffix(suffix)
    return re.sub(r"[^\w.\-]+", "-", last).strip("-.").lower()
