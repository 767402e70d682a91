"""Lines of a UTF-8 file, packed by gzip or not, without reading the whole of it."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["BOM", "file_errors", "numbered_lines", "opened", "shown"]

BOM = b"\xef\xbb\xbf"

_MOST_LINE = 2**30
"""Bytes of a line: one that is longer is no line of text."""


def shown(path: Any) -> str:
    """A path as messages have it."""
    return str(path)


@contextlib.contextmanager
def file_errors(file: str) -> Iterator[None]:
    """Turn the errors of a file that can't be unpacked or read into a ValueError with its name."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is a gzip file that is cut off or damaged ({error}): make or fetch it again."
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{file} can't be read ({reason}): make it accessible.") from None


def opened(path: Path, is_gzip: bool) -> IO[bytes]:
    """The file for reading, unpacked."""
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")  # type: ignore[return-value]


def numbered_lines(path: Path, is_gzip: bool) -> Iterator[tuple[int, str, str]]:
    r"""(number from 1, line with its end, "" or what is wrong with it) of the lines of a text.

    Lines end in `\n` alone: JSON and cells of CSV may hold U+2028 and its like. A byte order mark
    at the beginning is left out.
    """
    with file_errors(shown(path)), opened(path, is_gzip) as stream:
        number = 0
        while line := stream.readline(_MOST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, "", f"not UTF-8 text ({error.reason})"
                continue
            yield number, text, "a NUL byte, which no text has" if "\0" in text else ""
