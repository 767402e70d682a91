"""Do scores vary? Where all are the same, nothing but the KL penalty moves the policy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.rollout.metrics import EpisodeRecord

__all__ = ["ScoreSpread"]

logger = logging.getLogger(__name__)

ENOUGH = 32
"""Episodes after which equal scores are no accident; of groups, those with another in theirs."""


class ScoreSpread:
    """Looks at the scores of the first rollouts, and warns once where they are all the same.

    Args:
        compares_groups: whether responses are compared with others of their group alone: then the
            scores must vary within groups.
    """

    def __init__(self, compares_groups: bool = False) -> None:
        self.compares_groups = compares_groups
        self.is_known = False
        self._first: dict[int | None, float] = {}
        self._compared = 0

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far; JSON."""
        return {
            "is_known": self.is_known,
            "first": [[group, score] for group, score in self._first.items()],
            "compared": self._compared,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self.is_known, self._compared = state["is_known"], state["compared"]
        self._first = {group: score for group, score in state["first"]}

    def look(self, records: Sequence[EpisodeRecord]) -> None:
        """Look at the episodes of another rollout, until it is known whether scores vary.

        Args:
            records: of the episodes that finished in it.
        """
        for record in records:
            if self.is_known:
                return
            if self.compares_groups and record.group is None:
                continue
            key = record.group if self.compares_groups else None
            is_first = key not in self._first
            first = self._first.setdefault(key, record.score)
            self._compared += not (self.compares_groups and is_first)
            # Two scores that differ by their rounding are the same.
            self.is_known = not math.isclose(record.score, first, rel_tol=1e-6)
        if self._compared >= ENOUGH and not self.is_known:
            self.is_known = True
            logger.warning(self._message())

    def _message(self) -> str:
        scores = set(self._first.values())
        what = f"the scores of the first {self._compared} responses are all {min(scores):g}"
        if self.compares_groups:
            many = self._compared + len(self._first)
            what = f"within every group of the first {many} responses all scores are the same"
        return (
            f"{what}: the reward tells no response from another, and nothing but the KL penalty "
            "moves the policy. Look at what the reward returns for a few responses; a reward that "
            "is earned very rarely needs a starting model that earns it sometimes."
        )
