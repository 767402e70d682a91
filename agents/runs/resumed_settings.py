"""The settings of a run that is gone on with: its own, and what may be changed. Loads no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.runs.folder import RunFolder
from agents.zoo.settings_files import TRACKERS

__all__ = ["MAY_DIFFER", "resumed", "settings_of_run"]

MAY_DIFFER = (
    *("total_tokens", "checkpoint_every", "keep_checkpoints", "eval_responses"),
    *("tracker", "tracker_project", "shard_actor", "check_ranks_every"),
)
"""Settings that a run may go on with in place of its own. All others decide what it computes."""

_OF_THE_CALL = ("config", "resume", "trust_code", "out", "overwrite")
"""Settings that are of a call, and not of a run."""


def settings_of_run(root: Path) -> TrainConfig:
    """The settings in a run's folder, as they stand there; `resumed` decides whether to use them.

    Raises:
        ValueError: there is no run, or its configuration is broken.
    """
    run = RunFolder(root)
    run.tidy()  # a run that was being replaced is back in its place, before its settings are read
    if not run.config.is_file():
        raise ValueError(
            f"resume={str(root)!r} holds no run, {run.config.name} is missing: give the folder of "
            "a run that tokenrlhf train has made."
        )
    stored = run.read_config(trust_code=True)  # nothing of it is imported yet
    return dataclasses.replace(stored, out=None, overwrite=False)


def resumed(config: TrainConfig) -> TrainConfig:
    """The configuration that the run in `config.resume` goes on with.

    Args:
        config: the run's own settings (`settings_of_run`) with what was asked for in their place.

    Raises:
        ValueError: it differs from the run's in what may not, or the run names code and
            `trust_code` is off.
    """
    root = config.resume
    assert root is not None
    stored = settings_of_run(root)
    differing = [
        f"{name}={getattr(config, name)!r} (the run has {getattr(stored, name)!r})"
        for name in (field.name for field in dataclasses.fields(config))
        if name not in (*_OF_THE_CALL, *MAY_DIFFER)
        and getattr(config, name) != getattr(stored, name)
    ]
    for name, value in (("out", config.out), ("config", config.config)):
        if value is not None and not (name == "out" and _is_same(value, root)):
            differing.append(f"{name}={str(value)!r} (the run is {str(root)!r})")
    if config.total_tokens < stored.total_tokens:
        differing.append(
            f"total_tokens={config.total_tokens:,} (the run has {stored.total_tokens:,}, and can "
            "have more)"
        )
    if config.overwrite:
        differing.append("overwrite=True (nothing of the run is to be lost)")
    if differing:
        raise ValueError(
            f"resume={str(root)!r} goes on with the settings of the run, and these differ: "
            f"{'; '.join(differing)}. Leave them out, or train anew. What may be changed: "
            f"{', '.join(MAY_DIFFER)}."
        )
    RunFolder(root).read_config(trust_code=config.trust_code)
    if config.tracker == stored.tracker not in (None, *TRACKERS) and not config.trust_code:
        raise ValueError(
            f"the run in {str(root)!r} has tracker={stored.tracker!r}, which is a module to "
            "import: where you trust the run, pass --trust-code (in Python trust_code=True)."
        )
    return dataclasses.replace(config, out=root)


def _is_same(path: Any, root: Path) -> bool:
    return Path(path).resolve() == root.resolve()
