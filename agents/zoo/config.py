"""The settings of `tokenrlhf zoo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

__all__ = ["ZooConfig"]


@dataclass(frozen=True)
class ZooConfig:
    """List the settings that were tuned, or show one file of them.

    `tokenrlhf train --config zoo:NAME` trains with those for language models; `tokenrlhf compare`
    takes those for environments by itself.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The file to show; all are listed unless given."""
