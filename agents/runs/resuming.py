"""`tokenrlhf train --resume RUN`: which checkpoint a run goes on from, and its files as of then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from agents.atomic_files import remove
from agents.checkpoints import BrokenCheckpoint, Checkpoint, newest_checkpoint, remove_after
from agents.config import TrainConfig
from agents.runs.folder import RunFolder
from agents.runs.skipped import numbered_batches
from tokenenv.json_files import read_json_object

__all__ = ["RunRecord", "checkpoint_of", "cut_back"]

_LOGS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")


class RunRecord:
    """What a run has written and how long it took, for its checkpoints.

    Args:
        run: its folder.

    Attributes:
        seconds_before: that the run took before it was gone on with.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.seconds_before = run, 0.0
        self._start = time.perf_counter()

    def begin(self) -> None:
        """Let the time of the training begin."""
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the run has taken so far."""
        return self.seconds_before + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Bytes of the logs, and the time; JSON."""
        return {
            "logs": {name: _size(self.run, name) for name in _LOGS},
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from the time that `state_dict` gave."""
        self.seconds_before = state["seconds"]


def _size(run: RunFolder, name: str) -> int:
    path = run.root / name
    return path.stat().st_size if path.is_file() else 0


def checkpoint_of(run: RunFolder, config: TrainConfig, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a run goes on from: its newest whole one.

    Args:
        run: its folder, locked by this process.
        config: the run's, with what may be changed.
        say: called with a sentence about every newer one that can't be used.

    Raises:
        ValueError: the run is finished, has no checkpoint, or one of another version.
    """

    def check(checkpoint: Checkpoint) -> None:
        record = checkpoint.parts.get("run")
        if not isinstance(record, dict):
            raise BrokenCheckpoint(
                f"{str(checkpoint.folder)!r} is of no run: it says nothing of the run's files."
            )
        for name, size in record["logs"].items():
            if _size(run, name) < size:
                raise BrokenCheckpoint(
                    f"{str(run.root / name)!r} is shorter than it was when "
                    f"{str(checkpoint.folder)!r} was written: lines of it are lost."
                )

    checkpoint = newest_checkpoint(run.checkpoints, say, check)
    if checkpoint is None:
        raise ValueError(
            f"the run in {str(run.root)!r} has no checkpoint to go on from: it was stopped before "
            "the first (--checkpoint-every), or is of an older version. Train it again: tokenrlhf "
            f"train --config {run.config} --out {run.root} --overwrite"
        )
    summary = _summary(run)
    if summary.get("finished") is True and "ended_early" in summary:
        raise ValueError(
            f"the run in {str(run.root)!r} was ended on purpose after {checkpoint.tokens:,} "
            "tokens, as it looked like reward hacking (its summary.json says why), and does not go "
            "on: train again with other settings, or with --on-hacking-alarm warn."
        )
    if summary.get("finished") is True and checkpoint.tokens >= config.total_tokens:
        raise ValueError(
            f"the run in {str(run.root)!r} has been trained on {checkpoint.tokens:,} tokens and is "
            f"done (total_tokens={config.total_tokens:,}): give more with --total-tokens to go on, "
            "or measure it with tokenrlhf evaluate."
        )
    return checkpoint


def _summary(run: RunFolder) -> dict[str, Any]:
    """The run's summary; empty where there is none that can be read."""
    try:
        return read_json_object(run.summary, "a summary")
    except (OSError, ValueError):
        return {}


def cut_back(run: RunFolder, checkpoint: Checkpoint) -> None:
    """Let a run's files be as they were when a checkpoint was written.

    Lines after it, token tables, later checkpoints and what an interrupted end left are removed;
    the policy and the summary of a finished run stay until there are new ones.

    Args:
        run: its folder, locked by this process.
        checkpoint: of it.

    Raises:
        OSError: a file can't be changed.
    """
    record = checkpoint.parts["run"]
    for name, size in record["logs"].items():
        path = run.root / name
        if size == 0:
            remove(path)
        elif path.stat().st_size > size:
            os.truncate(path, size)
    for path in list(run.tokens.iterdir()) if run.tokens.is_dir() else ():
        if path.stem.isdigit() and int(path.stem) > checkpoint.tokens:
            remove(path)
    for tokens, path in numbered_batches(run.skipped).items():
        if tokens > checkpoint.tokens:
            remove(path)
    remove_after(run.checkpoints, checkpoint.tokens)
    for name in ("interrupted", "failed"):
        remove(run.checkpoints / f"{name}.zip")
    if _summary(run).get("finished") is not True:
        remove(run.summary)
