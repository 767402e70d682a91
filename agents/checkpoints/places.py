"""The checkpoints of a run, `tokens-N/` beside archives `tokens-N.zip`: which there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from agents.atomic_files import put_back_folder, remove
from agents.checkpoints.files import BrokenCheckpoint, Checkpoint, read_checkpoint

__all__ = ["checkpoint_name", "newest_checkpoint", "remove_after", "remove_oldest"]

_NAME = re.compile(r"tokens-(\d+)(\.zip)?")
_REPLACED = re.compile(r"\.(tokens-\d+)\.old")


def checkpoint_name(tokens: int) -> str:
    """The name of a checkpoint after so many tokens."""
    return f"tokens-{tokens}"


def _numbered(folder: Path) -> dict[int, list[Path]]:
    """Tokens → what there is of that number, a checkpoint's folder or an archive or both."""
    found: dict[int, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(int(match[1]), []).append(path)
    return dict(sorted(found.items()))


def newest_checkpoint(
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Checkpoint | None:
    """The newest whole checkpoint in a folder of them; None where there is none.

    Args:
        folder: of a run's checkpoints.
        say: called with a sentence about every newer one that is not whole.
        check: raises BrokenCheckpoint for one that can't be used, and an older one is taken.

    Raises:
        OtherVersion: the newest has another format: an older one may have, too, and to take it
            would lose what the newest holds.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if replaced := _REPLACED.fullmatch(path.name):
            put_back_folder(folder / replaced[1])
    folders = [
        path for paths in reversed(_numbered(folder).values()) for path in paths if path.is_dir()
    ]
    for path in folders:
        try:
            checkpoint = read_checkpoint(path)
            check(checkpoint)
            return checkpoint
        except BrokenCheckpoint as error:
            say(f"{error} An older one is taken, if there is one.")
    return None


def remove_oldest(folder: Path, keep: int) -> None:
    """Remove all checkpoints and archives but those of the `keep` newest numbers."""
    numbered = _numbered(folder)
    for tokens in list(numbered)[: max(0, len(numbered) - keep)]:
        for path in numbered[tokens]:
            remove(path)


def remove_after(folder: Path, tokens: int) -> None:
    """Remove checkpoints and archives of more tokens: what a run left that goes on from before."""
    for number, paths in _numbered(folder).items():
        if number > tokens:
            for path in paths:
                remove(path)
