"""The checkpoints of a run as it trains: which are written, and which are kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback

from agents.atomic_files import discard, writing
from agents.checkpoints import checkpoint_name, remove_oldest
from agents.ppo import is_finite
from tokenenv.stop_signals import hold_signals

__all__ = ["CheckpointCallback"]

logger = logging.getLogger(__name__)


class HasState(Protocol):
    """What has a state of JSON values, arrays and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        ...


class CheckpointCallback(BaseCallback):
    """Writes checkpoints, and SB3's archives beside them, each complete or not there at all.

    `tokens-N/` has everything that the training goes on from, and `tokens-N.zip` is for
    `TokenPPO.load` and nothing else. Both are written after every few updates, and the folder after
    the last one as well. Weights that are not finite are no checkpoint.

    Args:
        folder: where to; made where it is missing.
        every: updates between two; 0 for none but the last.
        on_saved: called after each.
        keep: how many, the newest ones; None: all.
        parts: name → what else has a state that is to be in the folders.

    Attributes:
        saved: tokens of the last checkpoint; None: there is none.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int,
        on_saved: Callable[[], None] = lambda: None,
        keep: int | None = None,
        parts: Mapping[str, HasState] | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.every, self.on_saved, self.keep = Path(folder), every, on_saved, keep
        self.parts = dict(parts or {})
        self.saved: int | None = None
        self.tried: int | None = None  # tokens after which it was last tried
        self._rollouts, self._has_said = 0, False

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts there were; JSON."""
        return {"rollouts": self._rollouts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._rollouts = state["rollouts"]
        self.saved = self.tried = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.model
        model.between_rollouts.append(self._after_rollout)

    def _after_rollout(self) -> None:
        self._rollouts += 1
        if self.every and self._rollouts % self.every == 0 and self.save_state():
            self.save(checkpoint_name(self.model.num_timesteps))

    def _on_training_end(self) -> None:
        """After the last update; a callback that ended the training did so within a rollout."""
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        if self.tried != self.model.num_timesteps and buffer.is_between_rollouts:
            self.save_state()

    def save_state(self) -> bool:
        """Write `tokens-N/`, all that the training goes on from; False for ruined weights."""
        model: Any = self.model
        if not is_finite(model.policy):
            return False
        self.tried = tokens = model.num_timesteps
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        try:
            model.save_checkpoint(self.folder / checkpoint_name(tokens), parts)
        except TypeError as error:  # a prompt's column, or what a callback counts
            self._say_once(error)
            return True  # the archive can be written all the same
        self.saved = tokens
        self._saved()
        return True

    def _say_once(self, error: TypeError) -> None:
        if not self._has_said:
            logger.warning(
                "no checkpoint to go on from (--resume) can be written, archives alone: %s", error
            )
        self._has_said = True

    def save(self, name: str) -> Path:
        """Write `NAME.zip` for `TokenPPO.load`, which unpickles: load only those you trust."""
        path, temporary = self.folder / f"{name}.zip", self.folder / f".{name}.tmp.zip"
        try:
            with hold_signals(), writing(path):
                self.model.save(temporary)
                os.replace(temporary, path)
        finally:
            discard(temporary)
        self._saved()
        return path

    def _saved(self) -> None:
        if self.keep is not None:
            remove_oldest(self.folder, self.keep)
        self.on_saved()
