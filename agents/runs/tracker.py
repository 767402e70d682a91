"""A run's numbers in an experiment tracker: Weights & Biases, trackio, or one with their calls.

Both have `init(project, name, config)`, `log(values, step)` and `finish()`; so may a module of the
user's. SB3's logger hands the numbers on. A tracker that fails after its start is left out of the
rest of the run: it never ends a training.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

__all__ = ["TrackerWriter", "start_tracker"]

logger = logging.getLogger(__name__)


def start_tracker(tracker: str, project: str, name: str, config: dict[str, Any]) -> TrackerWriter:
    """Begin a run in a tracker.

    Args:
        tracker: name of a module: `"wandb"`, `"trackio"`, or one of the user's.
        project: what the tracker files the run under.
        name: the run's.
        config: its settings.

    Raises:
        ValueError: there is no such module, it lacks the calls, or it does not start.
    """
    try:
        module = importlib.import_module(tracker)
    except (Exception, SystemExit) as error:  # errors of the module's own import as well
        raise ValueError(
            f"tracker={tracker!r} can't be imported ({error}): pip install {tracker}, or leave "
            "--tracker out; TensorBoard's files and metrics.jsonl are written anyway."
        ) from error
    missing = [call for call in ("init", "log", "finish") if not hasattr(module, call)]
    if missing:
        raise ValueError(
            f"tracker={tracker!r} is a module without {', '.join(missing)}: a tracker has "
            "init(project, name, config), log(values, step) and finish(), as wandb and trackio do."
        )
    try:
        module.init(project=project, name=name, config=config)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"tracker={tracker!r} did not start ({reason:.300}): log in first, work offline "
            "(WANDB_MODE=offline), or leave --tracker out."
        ) from error
    return TrackerWriter(tracker, module.log, module.finish)


class TrackerWriter(KVWriter):
    """An output of SB3's logger that hands numbers to a tracker.

    Args:
        name: of the tracker, for messages.
        log: called with (values, step=tokens).
        finish: called at the end.
    """

    def __init__(self, name: str, log: Callable[..., Any], finish: Callable[[], Any]) -> None:
        self.name, self._log, self._finish = name, log, finish
        self.has_failed = False

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log the finite numbers among the values at a step."""
        row = filter_excluded_keys(key_values, key_excluded, self.name)
        numbers = {name: float(v) for name, v in row.items() if _is_number(v)}
        if numbers:
            self._call(lambda: self._log(numbers, step=step))

    def close(self) -> None:
        """Nothing: SB3 closes its outputs after training, and the summary comes after that."""

    def log_summary(self, summary: dict[str, Any], step: int) -> None:
        """Log the numbers of a run's summary, as `summary/NAME`."""
        numbers = {f"summary/{n}": float(v) for n, v in summary.items() if _is_number(v)}
        self._call(lambda: self._log(numbers, step=step))

    def finish(self) -> None:
        """End the run in the tracker."""
        self._call(self._finish)

    def _call(self, call: Callable[[], Any]) -> None:
        if self.has_failed:
            return
        try:
            call()
        except Exception as error:  # a network's, a service's: the training goes on
            self.has_failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("the tracker %s failed and is left out: %s", self.name, reason)


def _is_number(value: Any) -> bool:
    is_scalar = getattr(value, "size", 1) == 1 and not isinstance(value, str | bool | list)
    try:
        return is_scalar and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
