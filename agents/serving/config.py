"""The settings of `tokenrlhf serve-reward`; every field's text is its `--help`.

Importing this loads no torch and no web framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tokenenv.ranges import check_ranges, count

__all__ = ["ServeRewardConfig"]

_RANGES = {
    "port": count(0, 65_535),
    "max_batch": count(1, 65_536),
    "max_waiting": count(1, 1_000_000),
    "num_threads": count(1, 1024, ", or None (leave it out)", is_optional=True),
}


@dataclass(frozen=True)
class ServeRewardConfig:
    """Serve a reward model over HTTP, for `tokenrlhf train --reward-model http://HOST:PORT`.

    Where the environment variable TOKENRLHF_REWARD_TOKEN is set, requests must bring that token.
    """

    reward_model: Annotated[str, tyro.conf.Positional]
    """Folder or hub id of a reward model, 'package.module:function', 'file.py:function', or a
    task's name."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone unless given; 0.0.0.0 for all."""
    port: int = 8000
    """Port to listen at; 0: any that is free, which is printed."""
    max_batch: int = 64
    """Most responses of one request."""
    max_waiting: int = 64
    """Requests that may wait for their turn; further ones are told to come again."""
    replies: Path | None = None
    """File that replies are kept in, so that a server that was started again answers what it has
    scored already. Unless given they are kept in memory."""
    device: str = "auto"
    """Torch device."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Data type of the weights."""
    num_threads: int | None = None
    """CPU threads; default: torch's."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
