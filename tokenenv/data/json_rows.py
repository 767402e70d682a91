"""Rows of JSON Lines and of JSON: an array is read piece by piece, pandas' other orients whole."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tokenenv.data.formats import HEADER_NAMES
from tokenenv.data.row import BadRows, Row
from tokenenv.data.text_lines import BOM, file_errors, numbered_lines, opened, shown
from tokenenv.json_files import parse_json, scan_json

__all__ = ["read_array", "read_json_lines"]

_PIECE = 2**18
"""Bytes that are read at once of an array."""

_MOST_ROW = 2**28
"""Characters of one row of an array: beyond it a string is taken for one without an end."""


def read_json_lines(path: Path, is_gzip: bool, bad: BadRows) -> Iterator[Row]:
    """The objects of a JSON Lines file, or of the one object that pandas has put all rows into."""
    file = shown(path)
    lines = (entry for entry in numbered_lines(path, is_gzip) if entry[2] or not entry[1].isspace())
    first = next(lines, None)
    if first is None:
        return
    second = next(lines, None)
    after = [] if second is None else [second]
    number, text, fault = first
    if not fault and (second is None or text.rstrip()[-1:] in "{[,"):
        rest = _text_of(itertools.chain(after, lines), file)
        value = parse_json(text + rest, file) if rest else _object_of(first, bad)
        if value is None:
            bad.rows += 1
        else:
            yield from _rows_of_object(value, file, f"line {number}", bad)
        return
    for number, text, fault in itertools.chain([first], after, lines):
        bad.rows += 1
        value = _object_of((number, text, fault), bad)
        if value is not None:
            yield Row(value, file, f"line {number}")


def _text_of(lines: Iterable[tuple[int, str, str]], file: str) -> str:
    """The whole of some lines; ValueError where one is no text."""
    texts = []
    for number, line, fault in lines:
        if fault:
            raise ValueError(f"{file}, line {number}: {fault}.")
        texts.append(line)
    return "".join(texts)


def _object_of(entry: tuple[int, str, str], bad: BadRows) -> dict[str, Any] | None:
    """The object in a line; None, and a bad row, where there is none."""
    number, text, fault = entry
    place = f"line {number}"
    if not fault:
        try:
            value = parse_json(text.rstrip("\r\n"), place)
        except ValueError as error:
            fault = str(error).removeprefix(f"{place}: ").rstrip(".")
        else:
            if isinstance(value, dict):
                return value
            fault = f"needs a JSON object, got {text.strip()[:80]!r}"
    bad.add(place, fault)
    return None


def _rows_of_object(value: Any, file: str, place: str, bad: BadRows) -> Iterator[Row]:
    """The rows that one object holds: pandas' orients, or the object as the only row."""
    if not isinstance(value, dict):
        raise ValueError(f"{file}: needs a JSON object, got {value!r:.80}.")
    keys, values = set(value), list(value.values())
    if {"columns", "data"} <= keys <= {"columns", "data", "index"}:
        rows = _split(value["columns"], value["data"], file)
    elif {"schema", "data"} == keys and isinstance(value["data"], list):
        rows = value["data"]
    elif values and all(isinstance(v, dict) for v in values):
        rows = _objects(value, file)
    elif len(values) == 1 and _is_list_of(values[0], dict) and not keys & HEADER_NAMES:
        name = next(iter(keys))
        raise ValueError(
            f"{file} holds its rows under the key {name!r}: save the list itself, as an array or "
            "as JSON Lines."
        )
    else:
        bad.rows += 1
        yield Row(value, file, place)
        return
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number}: needs an object, got {row!r:.80}.")
        bad.rows += 1
        yield Row(row, file, f"row {number}")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def _split(columns: Any, data: Any, file: str) -> list[dict[str, Any]]:
    """Rows of `{"columns": […], "data": [[…], …]}`."""
    if not (_is_list_of(columns, str) and len(set(columns)) == len(columns)):
        raise ValueError(f"{file}: 'columns' must be a list of different names.")
    if not isinstance(data, list):
        raise ValueError(f"{file}: 'data' must be a list of rows.")
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise ValueError(
                f"{file}, row {number}: needs a list of {len(columns)} values, one of each of "
                f"'columns', got {row!r:.80}."
            )
    return [dict(zip(columns, row, strict=True)) for row in data]


def _objects(value: dict[str, dict[str, Any]], file: str) -> list[dict[str, Any]]:
    """Rows of an object of objects: column → row → value, or row → column → value."""
    inner = next(iter(value.values()))
    if inner and all(key.isdecimal() for key in inner):
        for name, column in value.items():
            if column.keys() != inner.keys():
                raise ValueError(f"{file}: the column {name!r} has other rows than the first one.")
        return [{name: column[row] for name, column in value.items()} for row in inner]
    if all(key.isdecimal() for key in value):
        return list(value.values())
    raise ValueError(
        f"{file} is an object of objects, and neither its keys nor theirs number the rows: write "
        'it with orient="records".'
    )


def read_array(path: Path, is_gzip: bool, is_strings: bool, bad: BadRows) -> Iterator[Row]:
    """The elements of a JSON array, one at a time: objects, or strings, each the row of a text.

    Raises:
        ValueError: it is no JSON. What follows a defect can't be told apart, so nothing is skipped.
    """
    file = shown(path)
    with file_errors(file), opened(path, is_gzip) as stream:
        for number, value in enumerate(_Elements(stream, file), 1):
            bad.rows += 1
            place = f"row {number}"
            if is_strings and isinstance(value, str):
                yield Row({"text": value}, file, place)
            elif isinstance(value, dict) and not is_strings:
                yield Row(value, file, place)
            elif isinstance(value, list):
                raise ValueError(
                    f'{file}, {place}: it is a list, as of pandas\' orient="values", and nothing '
                    'names its columns: write the table with orient="records".'
                )
            else:
                needed = "a string" if is_strings else "an object"
                bad.add(place, f"needs {needed}, got {value!r:.80}")


class _Elements:
    """The elements of an array in a stream; of the text, only what is not yet done is kept."""

    def __init__(self, stream: IO[bytes], file: str) -> None:
        self.stream, self.file = stream, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.number = "", 0, 0
        self.is_all = False
        self.is_first = True

    def __iter__(self) -> Iterator[Any]:
        self._expect("[")
        if self._next() == "]":
            self.at += 1
        else:
            while True:
                self.number += 1
                yield self._element()
                if self._next() == "]":
                    self.at += 1
                    break
                self._expect(",")
        if self._next():
            raise self._error("there is more behind the end of the array")

    def _error(self, what: str) -> ValueError:
        place = f", row {self.number}" if self.number else ""
        return ValueError(f"{self.file}{place}: not valid JSON ({what.rstrip('.')}).")

    def _read_more(self) -> None:
        """Add a piece, as large as what waits already: what is read twice stays a constant part."""
        waiting = self.buffer[self.at :]
        piece = self.stream.read(max(_PIECE, len(waiting)))
        if self.is_first:
            piece, self.is_first = piece.removeprefix(BOM), False
        self.is_all = not piece
        try:
            text = self.decoder.decode(piece, final=self.is_all)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.file}, row {max(1, self.number)} or soon after: not UTF-8 text "
                f"({error.reason})."
            ) from None
        self.buffer, self.at = waiting + text, 0

    def _next(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.is_all:
                return ""
            self._read_more()

    def _expect(self, character: str) -> None:
        found = self._next()
        if found != character:
            raise self._error(
                f"expecting {character!r}, got {found!r}" if found else "the array has no end"
            )
        self.at += 1

    def _element(self) -> Any:
        self._next()
        while True:
            try:
                value, end = scan_json(self.buffer, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    error.pos >= len(self.buffer) - 16
                )
                if self.is_all or not is_cut or len(self.buffer) - self.at > _MOST_ROW:
                    raise self._error(error.msg) from None
            except ValueError as error:
                raise self._error(str(error)) from None
            else:
                if end < len(self.buffer) or self.is_all:  # a number could go on
                    self.at = end
                    return value
            self._read_more()
