"""What a reward model's own report says against training with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.reward_quality.hacking.rules import RULES, Rule, no_accuracy
from tokenenv.json_files import read_json_object
from tokenenv.tasks import names_code

__all__ = ["doubts_about", "rules_about"]


def doubts_about(rewards: Any) -> list[str]:
    """A sentence about each reward model whose report does not tell it from a coin.

    Args:
        rewards: `reward_model` of a configuration: a folder, a hub id, code, several of them, or
            None. Folders that `tokenrlhf reward-model` wrote have a `report.json`; of others, and
            of a file that says something else, nothing is known and nothing is said.
    """
    said = [_doubt(one) for one in _each(rewards)]
    return [text for text in said if text is not None]


def rules_about(config: TrainConfig) -> tuple[Rule, ...]:
    """The rules that a training is watched by for reward hacking.

    `no accuracy` is among them where the report of every reward model does not tell it from a coin,
    whatever functions there are beside; not where it learns on, as it is then another one than that
    of its report.
    """
    models = [one for one in _each(config.reward_model) if not names_code(one)]
    doubts, learns = doubts_about(models), config.refresh_every and config.refresh_epochs
    if learns or not doubts or len(doubts) < len(models):
        return RULES
    return (*RULES, no_accuracy(doubts))


def _each(rewards: Any) -> Sequence[Any]:
    is_one = isinstance(rewards, str) or not isinstance(rewards, Sequence)
    return [rewards] if is_one else rewards


def _doubt(reward: Any) -> str | None:
    if not isinstance(reward, str) or not os.path.isdir(reward):
        return None
    path = Path(reward) / "report.json"
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
    found = "it is not told from a coin" if high >= 0.5 else "a coin does better"
    return (
        f"by its own report the reward model {reward!r} is right about {accuracy:.0%} of {pairs:,} "
        f"held-out pairs ({low:.0%} to {high:.0%}): {found}, and a policy that is trained "
        "against it learns its errors. More labels come first (tokenrlhf labels curve)."
    )
