"""A folder that one process writes into, and whose old content is removed only for new content.

While it is open no other process can open it. Old content is set aside, and removed when there is
new content to keep. Until then it is restored by closing the folder, or, after a kill, by the next
process that opens it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from agents.atomic_files import TEMPORARY, put_back_folder, remove
from tokenenv.stop_signals import hold_signals

__all__ = ["OutputFolder", "has_leftovers"]

_LOCK = ".lock"
_MOVING = ".moving"
"""Content that is being set aside or restored: all of it belongs into the folder."""
_ASIDE = ".replaced"
"""The complete old content."""
_REMOVING = ".removing"
"""Content that is no longer needed."""
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks."""


def has_leftovers(root: Path) -> bool:
    """Whether a process that replaces the content of `root` is running, or was killed."""
    return any((root / name).is_dir() for name in (_MOVING, _ASIDE))


class OutputFolder:
    """A folder that this process has locked until `close`, which runs at its exit, too.

    Args:
        root: the folder; made where it is missing, and removed again if nothing comes into it.
        contents: names of everything that is ever written into it.

    Raises:
        ValueError: it is no folder, or another process writes into it.
        OSError: it can't be made.
    """

    def __init__(self, root: Path, contents: Iterable[str]) -> None:
        self.root, self.contents = root, tuple(contents)
        if os.path.lexists(root) and not root.is_dir():
            what = "a file" if root.is_file() else "no folder"
            raise ValueError(f"out={str(root)!r} is {what}: give a folder.")
        missing = [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(parents=True, exist_ok=True)
        self._made, self._process = missing, os.getpid()
        self._lock: int | None = None
        self._lock = self._take()
        atexit.register(self.close)
        try:
            self._tidy()
        except BaseException:
            self.close()
            raise

    @classmethod
    def new(cls, root: Path, contents: Iterable[str], overwrite: bool) -> OutputFolder:
        """A locked folder that holds nothing, or may be written over.

        Raises:
            ValueError: it holds something and `overwrite` is off; or as the constructor.
        """
        output = cls(root, contents)
        if output.entries() and not overwrite:
            output.close()
            raise ValueError(
                f"out={str(root)!r} exists already: choose another folder, or pass --overwrite."
            )
        return output

    @property
    def is_replacing(self) -> bool:
        """Whether what was there before is still set aside."""
        return (self.root / _ASIDE).is_dir()

    def entries(self) -> list[str]:
        """Names in the folder, without those of this module."""
        internal = {_LOCK, _MOVING, _ASIDE, _REMOVING}
        return sorted(path.name for path in self.root.iterdir() if path.name not in internal)

    def set_aside(self, names: Iterable[str]) -> None:
        """Move what is there under `names` out of the way; links themselves, not their targets."""
        with hold_signals():
            moving = self.root / _MOVING
            moving.mkdir()
            try:
                for name in names:
                    if os.path.lexists(self.root / name):
                        os.rename(self.root / name, moving / name)
                os.rename(moving, self.root / _ASIDE)
            except OSError:
                self._move_back()
                raise

    def keep(self) -> None:
        """Remove what was set aside, as there is new content. Does nothing when called again."""
        if self.is_replacing:
            with hold_signals():
                os.rename(self.root / _ASIDE, self.root / _REMOVING)
                remove(self.root / _REMOVING)

    def take_in(self, stage: Path, replaced: Iterable[str] = ()) -> None:
        """Move everything from a folder into this one, in the place of what has the same names.

        Args:
            stage: the folder.
            replaced: names of what belongs to the old content alone, and goes with it.
        """
        names = [path.name for path in stage.iterdir()]
        with hold_signals():
            self.contents = (*self.contents, *names)
            self.set_aside({*names, *replaced})
            for name in names:
                os.rename(stage / name, self.root / name)
            self.keep()

    def put_back(self) -> None:
        """Give the place back to what was set aside, where that is still there."""
        if self.is_replacing:
            with hold_signals():
                for name in self.contents:
                    remove(self.root / name)
                os.rename(self.root / _ASIDE, self.root / _MOVING)
                self._move_back()

    def close(self) -> None:
        """Restore what was set aside and not removed, and unlock the folder."""
        if self._lock is None or self._process != os.getpid():  # a forked child owns nothing
            return
        descriptor, self._lock = self._lock, None
        atexit.unregister(self.close)
        with hold_signals():
            try:
                self.put_back()
            finally:
                with contextlib.suppress(OSError):
                    (self.root / _LOCK).unlink()
                os.close(descriptor)
                with contextlib.suppress(OSError):  # something is in it
                    for path in self._made:
                        path.rmdir()

    def _move_back(self) -> None:
        moving = self.root / _MOVING
        for path in list(moving.iterdir()):
            remove(self.root / path.name)  # of the successor
            os.rename(path, self.root / path.name)
        moving.rmdir()

    def _take(self) -> int:
        """The descriptor of the lock file; the system releases it when the process ends."""
        path = self.root / _LOCK
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNLOCKABLE:
                    owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
                    os.close(descriptor)
                    if not isinstance(error, BlockingIOError):
                        raise
                    raise ValueError(
                        f"out={str(self.root)!r} is being written by {owner or 'another process'}: "
                        "wait for its end, or choose another folder."
                    ) from error
            if _is_file(path, descriptor):  # and not one that its owner has just removed
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
            os.close(descriptor)

    def _tidy(self) -> None:
        """Clear up after a process that was killed here."""
        remove(self.root / _REMOVING)
        if (self.root / _MOVING).is_dir():
            self._move_back()
        self.put_back()
        for folder in (self.root, *(self.root / name for name in self.contents)):
            if not folder.is_dir() or (folder.is_symlink() and folder != self.root):
                continue
            for path in list(folder.iterdir()):
                leftover = TEMPORARY.fullmatch(path.name)
                if leftover is None or (
                    folder == self.root and leftover["name"] not in self.contents
                ):
                    continue
                put_back_folder(folder / leftover["name"])
                remove(path)


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
