"""An audit as a file: `audit.json` in the folder of a run, or in that of a reward model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from tokenenv.json_files import read_json_object

__all__ = ["NAME", "VERSION", "check_place", "place_of", "read_audit"]

NAME = "audit.json"
"""Of the file, in a folder."""

VERSION = 1
"""Of its content."""


def place_of(out: Path) -> Path:
    """The file that `out` means: in a folder it is `audit.json`."""
    return out / NAME if os.path.isdir(out) else out


def check_place(out: Path) -> None:
    """Raise ValueError where no audit can be written, or something else would be replaced.

    Args:
        out: the setting.
    """
    said = f"out={str(out)!r:.80}"
    try:
        place = place_of(out)
        is_file, exists = os.path.isfile(place), True
        try:
            os.stat(place)
        except FileNotFoundError:
            exists = False
            with tempfile.TemporaryFile(dir=place.parent):
                pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "that is no path"
        raise ValueError(
            f"{said}: no file can be written there ({reason}). Give another file, or the folder "
            "of a run or of a reward model."
        ) from error
    if exists and not is_file:
        raise ValueError(f"{said} is no file: give the name of one, as {NAME!r}.")
    if is_file and os.path.getsize(place):
        try:
            read_audit(place)
        except ValueError as error:
            raise ValueError(
                f"{said}: {str(place)!r} exists, and is no audit: nothing was changed. Give "
                "another file."
            ) from error


def read_audit(path: Path) -> dict[str, Any]:
    """The content of an audit's file.

    Raises:
        ValueError: it is something else, or of another version.
        OSError: it can't be read.
    """
    content = read_json_object(path, "an audit")
    if not {"reward_model", "verdicts", "probes"} <= set(content):
        raise ValueError(f"{str(path)!r} is no audit, which `tokenrlhf audit --out` writes.")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{str(path)!r} is an audit of version {content.get('version')!r:.20}, this is "
            f"{VERSION}: make it anew with `tokenrlhf audit --out`."
        )
    return content
