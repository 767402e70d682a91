"""Reading JSON from other programs: every defect is a ValueError that names the place.

Python's parser accepts more than JSON (NaN, a key twice, numbers that overflow to ∞, halves of
surrogate pairs that no file can hold) and answers the rest in several ways (RecursionError for deep
nesting, UnicodeDecodeError without a name). Here all of it is refused alike.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "parse_json",
    "read_json",
    "read_json_lines",
    "read_json_object",
    "read_lines",
    "scan_json",
]

_MOST_DIGITS = 308
"""The most digits of a whole number: a float holds these, arithmetic with longer ones overflows."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, where: str, allow_nan: bool = False) -> Any:
    """The value that a JSON text holds.

    Args:
        text: the JSON.
        where: the place for error messages: a file, and its line if it has several values.
        allow_nan: whether NaN and ±Infinity are numbers here, as Python and SB3 write them.

    Raises:
        ValueError: it is no JSON, nested too deeply, holds a key twice, a number that no float
            holds, or half of a surrogate pair.
    """
    try:
        value = _decoder(allow_nan).decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(
            f"{where}: not valid JSON ({error.msg}: {place}column {error.colno})."
        ) from None
    except RecursionError:
        raise ValueError(f"{where}: the JSON is nested too deeply to be read.") from None
    except ValueError as error:  # of the hooks
        raise ValueError(f"{where}: {str(error).rstrip('.')}.") from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_surrogates(value, where)
    return value


def scan_json(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends; what follows is not looked at.

    Raises:
        json.JSONDecodeError: there is none; its `pos` tells a text that was cut from a wrong one.
        ValueError: as `parse_json`, without a place.
    """
    try:
        value, end = _decoder(False).raw_decode(text, start)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply to be read.") from None
    if _SURROGATE_ESCAPE.search(text, start, end):
        _refuse_surrogates(value, "in it")
    return value, end


def read_json(path: Path, allow_nan: bool = False) -> Any:
    """The value that a JSON file holds.

    Raises:
        ValueError: as `parse_json`, or it is not UTF-8; the file is named.
        OSError: it can't be read.
    """
    return parse_json("\n".join(read_lines(path)), repr(str(path)), allow_nan)


def read_json_object(path: Path, what: str, allow_nan: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        what: the expected content, for the message: "the configuration of a run".
        allow_nan: as `parse_json`.

    Raises:
        ValueError: as `read_json`, or it holds another kind of value.
        OSError: it can't be read.
    """
    value = read_json(path, allow_nan)
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r}: {what} is a JSON object, not {value!r:.80}.")
    return value


def read_json_lines(
    path: Path,
    allow_nan: bool = False,
    check: Callable[[dict[str, Any], str], None] = lambda row, where: None,
) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; blank lines are skipped.

    Args:
        path: the file.
        allow_nan: as `parse_json`.
        check: called with each object and its place; raises ValueError where it is not as wanted.

    Raises:
        ValueError: a line is no JSON object; the file and the line's number are named.
        OSError: the file can't be read.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where, allow_nan)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: needs a JSON object, got {row!r:.80}.")
            check(row, where)
            rows.append(row)
    return rows


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text file, ended by newlines only: JSON may hold U+2028 and its like.

    Raises:
        ValueError: a line is not UTF-8 (its number is named).
        OSError: the file can't be read.
    """
    lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}, line {number}: not UTF-8 text ({error.reason}).") from error
    return texts


@functools.cache
def _decoder(allow_nan: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_without_repetition,
        parse_float=_finite,
        parse_int=_whole,
        parse_constant=None if allow_nan else _refuse_constant,
    )


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    json_object = dict(pairs)
    if len(json_object) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object: remove one of the two")
    return json_object


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits:.40} is beyond what a float holds (1.8e308)")
    return number


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"the number {digits:.40}… is beyond what a float holds (1.8e308)")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_surrogates(value: Any, where: str) -> None:
    """Raise ValueError for a string that can't be encoded; without recursion."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
            raise ValueError(
                f"{where}: the string {item[:60]!r} holds half of a surrogate pair, which is no "
                "character: write both halves, or none."
            )
