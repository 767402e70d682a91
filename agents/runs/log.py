"""The logs of a run: JSON Lines, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)
from torch.utils.tensorboard import SummaryWriter

from agents.atomic_files import append_lines, json_text, writing
from agents.runs.folder import RunFolder
from agents.runs.tracker import TrackerWriter
from tokenenv.stop_signals import hold_signals

__all__ = ["MetricsFile", "run_logger"]


class MetricsFile(KVWriter):
    """JSON Lines of numbers, lists and text, each line whole; NaN and infinities become null.

    Args:
        path: the file.
        goes_on: whether further lines follow those that are in it; otherwise it begins empty.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        self.path = path
        if not goes_on:
            with writing(path):
                path.write_bytes(b"")

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append one line; what JSON has no form for (pictures, videos) is left to TensorBoard."""
        row = filter_excluded_keys(key_values, key_excluded, "json")
        known = {name: _plain(value) for name, value in row.items()}
        kinds = (bool, int, float, str, list)
        shown = {name: value for name, value in known.items() if isinstance(value, kinds)}
        if shown:
            append_lines(self.path, [json_text(shown)])

    def close(self) -> None:
        """Nothing is open between two lines."""


def _plain(value: Any) -> Any:
    """A number of Python's for arrays of one element, lists for longer ones."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return float(value.item()) if value.size == 1 else value.tolist()
    return value


class _EventFiles(TensorBoardOutputFormat):
    """TensorBoard's format, with errors that name the folder."""

    def __init__(self, folder: Path, after: int | None = None) -> None:
        self.folder = folder
        with writing(folder):
            if after is None:
                super().__init__(str(folder))
            else:  # what was written after that step is not shown
                self.writer = SummaryWriter(log_dir=str(folder), purge_step=after + 1)
                self._is_closed = False

    def write(self, *arguments: Any, **named: Any) -> None:
        with writing(self.folder):
            super().write(*arguments, **named)

    def close(self) -> None:
        with writing(self.folder):
            super().close()


class _RunLogger(Logger):
    """SB3's logger, of which no signal stops a row half-way.

    TensorBoard's queue, interrupted between an entry and the notice of it, would be waited for
    without end.
    """

    def dump(self, step: int = 0) -> None:
        with hold_signals():
            super().dump(step)

    def close(self) -> None:
        with hold_signals():
            super().close()


@contextlib.contextmanager
def run_logger(
    run: RunFolder,
    model: Any,
    tracker: TrackerWriter | None = None,
    after: int | None = None,
) -> Iterator[None]:
    """Let `model` log into the run's folder; at the end, even by an exception, log what is left.

    Args:
        run: the folder.
        model: an SB3 algorithm.
        tracker: a further output.
        after: tokens after which the run is gone on with; None: it begins.

    Raises:
        OSError: a file can't be written; one that would hide another exception is not raised.
    """
    with _quiet_writer_threads():
        outputs: list[KVWriter] = [
            MetricsFile(run.metrics, goes_on=after is not None),
            _EventFiles(run.tensorboard, after),
        ]
        logger = _RunLogger(str(run.root), [*outputs, *([] if tracker is None else [tracker])])
        model.set_logger(logger)
        try:
            yield
        except BaseException:
            if any(name.startswith(("rlhf/", "eval/")) for name in logger.name_to_value):
                # It ended between a rollout's numbers and SB3's own: a row has to say when it was.
                logger.record("time/total_timesteps", model.num_timesteps)
            for finish in (lambda: logger.dump(model.num_timesteps), logger.close):
                with contextlib.suppress(OSError):
                    finish()
            raise
        logger.dump(model.num_timesteps)  # what the last update recorded
        logger.close()


@contextlib.contextmanager
def _quiet_writer_threads() -> Iterator[None]:
    """TensorBoard's thread hands its error to the next write, and prints a traceback besides."""
    show = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_writer = type(arguments.thread).__module__.startswith("tensorboard")
        if not (is_writer and isinstance(arguments.exc_value, OSError)):
            show(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = show
