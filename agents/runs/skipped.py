"""The rollouts that no update was made from, kept for whoever looks for the cause."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agents.atomic_files import whole_file
from agents.rollout import EpisodeRolloutBuffer

__all__ = ["KEPT", "SkippedUpdates", "numbered_batches"]

KEPT = 3
"""Files that stay, the newest."""

_ARRAYS = (
    *("lengths", "context_lengths", "ended", "following_values", "actions", "rewards", "values"),
    *("log_probs", "old_log_probs", "ref_log_probs", "kl_coefs", "advantages", "returns"),
)


class SkippedUpdates:
    """Writes the batch of each update that is skipped, and says what happened.

    A file `tokens-N.npz`, N the tokens trained on, holds the buffer's arrays by their names (S
    segments, n tokens: see `EpisodeRolloutBuffer`), `prefixes`, the token ids that stand before the
    segments, with their `prefix_lengths` (S,), `raw_advantages` before whitening, and `said`: JSON
    with what was seen, the update, epoch and step, and the numbers of the steps that were taken.
    Nothing in it is pickled.

    Args:
        folder: made at the first.
        say: called with a sentence about each.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say

    def __call__(self, update: Any, error: Exception) -> None:
        """Keep the batch of `update`; `TokenPPO.on_skipped`."""
        model, buffer = update.model, update.buffer
        said = f"no update was made after {model.num_timesteps:,} tokens: {error}"
        if isinstance(buffer, EpisodeRolloutBuffer):
            try:
                whose = "batch" if model.ranks.count == 1 else "first rank's part of the batch"
                said += f" The {whose} is kept in {self._write(update, buffer, str(error))}."
            except OSError as failure:
                said += f" The batch could not be kept in {self.folder} ({failure.strerror})."
        self.say(said)

    def _write(self, update: Any, buffer: EpisodeRolloutBuffer, reason: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"tokens-{update.model.num_timesteps}.npz"
        with whole_file(path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = self._content(update, buffer, reason)
            np.savez_compressed(file, **arrays)
        for _, old in sorted(numbered_batches(self.folder).items())[:-KEPT]:
            old.unlink()
        return path

    def _content(
        self, update: Any, buffer: EpisodeRolloutBuffer, reason: str
    ) -> dict[str, np.ndarray]:
        prefixes = [buffer.prefix(segment) for segment in range(len(buffer.lengths))]
        said = {
            "reason": reason,
            "reward": buffer.reward_fault,
            "update": update.model.num_updates + 1,
            "epoch": update.epoch + 1,
            "steps_taken": update.minibatches,
        }
        return {
            **{name: np.asarray(getattr(buffer, name)) for name in _ARRAYS},
            "raw_advantages": np.asarray(update.raw_advantages),
            "prefixes": np.concatenate([np.zeros(0, np.int32), *prefixes]),
            "prefix_lengths": np.array([len(prefix) for prefix in prefixes], dtype=np.int32),
            "said": np.array(json.dumps(said)),
        }


def numbered_batches(folder: Path) -> dict[int, Path]:
    """Tokens trained on → the file of the batch that was skipped then."""
    return {
        int(found[1]): path
        for path in folder.glob("tokens-*.npz")
        if (found := re.fullmatch(r"tokens-(\d+)\.npz", path.name))
    }
