"""Atomic writes: readers see the old file or the new one, never half, even after a kill.

Failures are raised as an `OSError` that names the path, and leave no temporary file behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from tokenenv.stop_signals import hold_signals

__all__ = [
    "TEMPORARY",
    "append_lines",
    "discard",
    "json_text",
    "put_back_folder",
    "remove",
    "whole_file",
    "whole_folder",
    "write_json",
    "writing",
]

TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.\d+)?\.(tmp|old)(\.zip)?")
"""Names of the files that a killed process leaves behind."""


_OF_TORCHS_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream")
"""In the RuntimeErrors that torch.save raises where it can't write; they have no error number."""


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON (RFC 8259): NaN and infinities, which it does not know, become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with Python's types, and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise every failure to write in the block as an `OSError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not TEMPORARY.search(str(error.filename)):
            raise
        said = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, said, str(path)) from error
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error
    except RuntimeError as error:
        if not _OF_TORCHS_WRITER.search(str(error)):
            raise
        raise OSError(errno.EIO, "the disk may be full", str(path)) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` once it is complete.

    A link is followed: the file that it leads to is replaced, and the link stays.
    """
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with hold_signals(), writing(path):
            yield temporary
            os.replace(temporary, place)
    finally:
        discard(temporary)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; through `path` where that is a device, a pipe or our output."""
    text = json_text(content, indent=2) + "\n"
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if _is_open_as(path, descriptor):
            with writing(path):
                stream.write(text)
                stream.flush()
            return
    if path.exists() and not path.is_file():
        with writing(path), path.open("w", encoding="utf-8") as file:
            file.write(text)
        return
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether `path` is what a descriptor of ours writes to, as /dev/stdout is."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def append_lines(path: Path, lines: list[str]) -> None:
    """Append lines in one write: all of them or none."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, data)
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove what was being written, and free its disk space at once.

    A writer that failed may still have it open (its exception holds it): a full disk would stay
    full, and nothing else could be saved.
    """
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    for file in files:
        if not file.is_symlink():
            os.truncate(file, 0)
    remove(path)


def _temporary_and_old(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which replaces `path` once it is complete."""
    temporary, old = _temporary_and_old(path)
    put_back_folder(path)
    with hold_signals(), writing(path):
        remove(temporary)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if os.path.lexists(path):
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            discard(temporary)
        remove(old)


def put_back_folder(path: Path) -> None:
    """Undo a `whole_folder` that was killed between its last two steps."""
    _, old = _temporary_and_old(path)
    if os.path.lexists(old):
        if os.path.lexists(path):
            remove(old)
        else:
            os.replace(old, path)
