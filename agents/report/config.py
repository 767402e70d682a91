"""The settings of `tokenrlhf report`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tokenenv.ranges import Range, check_ranges

__all__ = ["MEGABYTES", "ReportConfig"]

MEGABYTES = 24.0
"""Default of what token tables may take up in a page."""

_RANGES = {"megabytes": Range("a number of at least 0 and at most 1,000", 0, 1000)}


@dataclass(frozen=True)
class ReportConfig:
    """Write a run, or several beside each other, as one page of HTML that opens from disk.

    The page needs no network. A run that is going on, or was stopped, is shown as far as it came.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs; those that differ by their seed alone become one curve with a band."""
    out: Path | None = None
    """File to write; report.html in the run's folder, or, for several runs, in the folder that the
    command is called in."""
    megabytes: float = MEGABYTES
    """How much of the page token tables may take up; beyond it steps in between are left out."""

    figures: Path | None = None
    """Folder for figures as a paper has them, PDF and PNG: learning curves with their interval over
    the runs, credit over the training, calibration of V, strength against entropy."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        places = [os.path.realpath(run) for run in self.runs]
        if not places or len(set(places)) < len(places):
            raise ValueError(
                f"runs={list(map(str, self.runs))!r} must be one folder or more, each of them once."
            )
