"""One pass over a file: its rows under the names of what they mean, and what was noticed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tokenenv.data.columns import check_columns, missing_column, rename
from tokenenv.data.formats import FileFormat
from tokenenv.data.row import BadRows, Row
from tokenenv.data.rows import find_format, rows_of
from tokenenv.data.text_lines import shown
from tokenenv.data.turns import parse_cell

__all__ = ["FileFault", "OpenedFile", "ReadReport", "good_rows", "open_file"]

Item = TypeVar("Item")

_LOOK = 64
"""Rows whose columns say which layout a file has."""


class FileFault(ValueError):
    """A row shows that the file was misunderstood: no other row could be trusted either."""


@dataclass
class ReadReport:
    """What was understood of a file; filled in while it is read.

    Attributes:
        format: as `JSON Lines, packed by gzip`.
        layout: as `implicit prompt`, of pairs.
        columns: the names of the file's columns, in the first rows.
        unused: those that mean nothing here.
        bad: the rows that can't be used.
        counts: what was noticed → how often: "pairs of equal ratings, left out".
        hints: sentences on what could be meant.
        split: what the row that was read last names as its split; of a pair of two rows that name
            different ones, a tuple of both.
    """

    format: str = ""
    layout: str = ""
    columns: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)
    counts: dict[str, int] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)
    split: Any = None

    def count(self, what: str, number: int = 1) -> None:
        """Note that something was noticed, so many times more."""
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def notes(self) -> list[str]:
        """What a reader of the file should know, as sentences."""
        notes = [f"{what}: {number:,}." for what, number in self.counts.items()] + self.hints
        if self.bad.count and self.bad.is_skipping:
            notes.append(f"Left out: {self.bad.describe('in the file')}")
        return notes


@dataclass
class OpenedFile:
    """A file whose first rows have been looked at.

    Attributes:
        file: its name, for messages.
        format: of the file.
        names: its columns, under the names of what they mean.
        rows: all of its rows, likewise.
        report: where what is noticed goes.
        columns: what columns mean → their names in the file.
    """

    file: str
    format: FileFormat
    names: list[str]
    rows: Iterator[Row]
    report: ReadReport
    columns: dict[str, str]

    @property
    def is_text(self) -> bool:
        """Whether it is plain text, a row per line, or an array of strings."""
        return self.format.name in ("text", "strings")

    def missing(self, wanted: str, why: str) -> ValueError:
        """The error that a column is missing."""
        return missing_column(self.file, wanted, self.report.columns, why)


def open_file(
    path: str | Path,
    columns: Mapping[str, str] | None,
    known: frozenset[str] | None,
    skip_bad: bool,
    report: ReadReport | None,
    what: str,
) -> OpenedFile:
    """Recognise a file and look at the columns of its first rows.

    Args:
        path: of the file.
        columns: what columns mean → their names in it.
        known: the meanings there are; None where any may be given.
        skip_bad: whether to go on without the rows that can't be used.
        report: to be filled in; a new one unless given.
        what: the argument that named the path.

    Raises:
        ValueError: it can't be read, or a column that is named is not there.
    """
    named = check_columns(columns, known)
    if not isinstance(skip_bad, bool):
        raise ValueError(f"skip_bad={skip_bad!r:.60} must be true or false.")
    report = ReadReport() if report is None else report
    report.bad = BadRows(skip_bad)
    file_format = find_format(path, named.values(), what)
    file = shown(path)
    rows = rows_of(path, file_format, report.bad)
    first = list(itertools.islice(rows, _LOOK))
    report.format = file_format.title
    report.columns = list(dict.fromkeys(name for row in first for name in row.fields))
    if not first:
        report.bad.refuse(file)
        raise ValueError(_nothing(file, report.bad))
    for meaning, name in named.items():
        if name not in report.columns and not _is_difference(meaning, name):
            raise missing_column(
                file, name, report.columns, f"It is named by columns={{{meaning!r}: {name!r}}}."
            )
    named = {meaning: name for meaning, name in named.items() if name in report.columns}
    renamed = (
        Row(rename(row.fields, named), row.file, row.place) for row in itertools.chain(first, rows)
    )
    names = list(rename(dict.fromkeys(report.columns), named))
    return OpenedFile(file, file_format, names, renamed, report, dict(columns or {}))


def _is_difference(meaning: str, name: str) -> bool:
    return meaning == "margin" and "-" in name


def _nothing(file: str, bad: BadRows) -> str:
    if bad.count:
        return f"{bad.describe(file)} There is none left."
    return f"{file} is empty: it needs at least one row."


def good_rows(opened: OpenedFile, parse: Callable[[dict[str, Any]], list[Item]]) -> Iterator[Item]:
    """What `parse` makes of the rows; all that it refuses is reported together.

    After the first bad row nothing more is yielded, unless bad rows are skipped: the rest is only
    looked at for more of them.

    Args:
        opened: the file.
        parse: the fields of a row → what it holds; ValueError, without place and full stop, for
            one that can't be used.

    Raises:
        ValueError: at the end of the file, if rows are bad and not skipped, or none is good.
    """
    bad = opened.report.bad
    is_csv = opened.format.name == "csv"
    number = 0
    for row in opened.rows:
        try:
            fields = row.fields
            if is_csv:
                fields = {name: parse_cell(cell, name) for name, cell in fields.items()}
            items = parse(fields)
        except FileFault as error:
            raise ValueError(f"{row.where}: {error}.") from None
        except ValueError as error:
            bad.add(row.place, str(error))
            continue
        if bad.count and not bad.is_skipping:
            continue
        number += len(items)
        opened.report.split = fields.get("split")
        yield from items
    bad.refuse(opened.file)
    if not number and bad.count == bad.rows:
        raise ValueError(_nothing(opened.file, bad))
