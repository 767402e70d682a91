"""Rows of CSV and TSV, by the csv module of the standard library."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenenv.data.row import BadRows, Row
from tokenenv.data.text_lines import numbered_lines, shown

__all__ = ["read_csv"]

_MOST_CELL = 2**24
"""Characters of a cell: the csv module's own limit is 131,072, less than a long document has."""


class _Lines:
    """The lines of a file for `csv.reader`; notes the lines that are no text."""

    def __init__(self, path: Path, is_gzip: bool) -> None:
        self.lines = numbered_lines(path, is_gzip)
        self.number = 0
        self.fault = ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, text, fault = next(self.lines)
        self.fault = self.fault or fault
        return "\n" if fault else text


def read_csv(path: Path, is_gzip: bool, delimiter: str, bad: BadRows) -> Iterator[Row]:
    """The rows below the header, by its names; cells are texts.

    Blank lines are skipped, and a column without a name, such as the index that pandas writes, is
    left out.

    Raises:
        ValueError: the header has a name twice, or none at all; a cell has no end.
    """
    file = shown(path)
    lines = _Lines(path, is_gzip)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header_of(reader, lines, file)
    while True:
        lines.fault = ""
        first = lines.number + 1
        try:
            cells = _next_row(reader)
        except csv.Error as error:
            if "field larger" in str(error):
                raise ValueError(
                    f"{file}, line {first}: a cell of more than {_MOST_CELL:,} characters begins "
                    "here: its quote has no end, or the file is not CSV."
                ) from None
            bad.rows += 1
            bad.add(f"line {first}", _fault_of(error))
            continue
        if cells is None:
            return
        while cells and not lines.fault and len(cells) > len(header) and not cells[-1].strip():
            cells.pop()  # a delimiter at the end of the line
        if not cells and not lines.fault:
            continue
        bad.rows += 1
        if lines.fault:
            bad.add(f"line {first}", lines.fault)
        elif len(cells) != len(header):
            bad.add(
                f"line {first}",
                f"{len(cells)} cells, where the header has {len(header)} (texts that hold "
                f"{delimiter!r}, a quote or a line break need quotes around them)",
            )
        else:
            fields: dict[str, Any] = dict(zip(header, cells, strict=True))
            fields.pop("", None)
            yield Row(fields, file, f"line {first}")


def _fault_of(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return "a quote has no end, and the row none before that of the file"
    if "new-line character" in said:
        return "a CR stands alone in it: end lines with LF or CR LF"
    return f"not valid CSV ({said}): double the quotes within quotes"


def _next_row(reader: Any) -> list[str] | None:
    """The next row; None at the end. The module's limit of a cell is its own again afterwards."""
    before = csv.field_size_limit(_MOST_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _header_of(reader: Any, lines: _Lines, file: str) -> list[str]:
    header: list[str] | None = []
    try:
        while header == []:
            header = _next_row(reader)
    except csv.Error as error:
        raise ValueError(f"{file}, line 1: the header is {_fault_of(error)}.") from None
    if lines.fault:
        raise ValueError(f"{file}, line {lines.number}: the header holds {lines.fault}.")
    names = [cell.strip() for cell in header or []]
    if not any(names):
        raise ValueError(f"{file}: its first line names no column: it must be the header.")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file}: the header has the column {twice!r} twice: rename one of them.")
    return names
