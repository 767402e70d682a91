"""The settings of `tokenrlhf verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenenv.ranges import SEED, check_ranges

__all__ = ["VerifyConfig"]


@dataclass(frozen=True)
class VerifyConfig:
    """Check this installation: the mathematics, the environment and the agents, on the exact task.

    Prints a table of check, expected, found and pass; the exit status is 1 if any check failed.
    """

    learning: bool = True
    """Train two agents to the optimum as well, which takes most of the time."""
    seed: int = 0
    """Seed of the agents."""
    json: Path | None = None
    """File to write the table to, as JSON."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), {"seed": SEED})
