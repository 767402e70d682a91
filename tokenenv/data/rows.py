"""Rows of a file of any format, one at a time.

A format is recognised by the content of the file (`formats`). Memory stays flat whatever the size
of the file, but for pandas' orients other than "records", which are read whole.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from tokenenv.data.csv_rows import read_csv
from tokenenv.data.formats import READ, FileFormat, is_file, recognise
from tokenenv.data.json_rows import read_array, read_json_lines
from tokenenv.data.row import BadRows, Row
from tokenenv.data.table_rows import is_dataset_folder, is_hub_id, read_dataset, read_parquet
from tokenenv.data.text_lines import numbered_lines, shown

__all__ = ["find_format", "read_rows", "rows_of"]


def find_format(
    path: str | Path, named_columns: Collection[str] = (), what: str = "path"
) -> FileFormat:
    """The format of a file, a folder of `datasets` or a hub id.

    Args:
        path: of a file or folder; or `owner/name[@split]` of the hub, where no file is called so.
        named_columns: columns that are asked for by name: a first line with them is a header.
        what: the argument that named it, for messages.

    Raises:
        ValueError: there is nothing of that name, or it is of no format that is read.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        raise ValueError(f"{what}={path!r:.80} must be the path of a file, of {READ}.")
    if is_file(path):
        return recognise(Path(path), named_columns)
    name = str(path)
    if _is_folder(name):
        if is_dataset_folder(name):
            return FileFormat("datasets")
        inside = sorted(entry for entry in os.listdir(name) if not entry.startswith("."))[:5]
        holds = f"it holds {', '.join(map(repr, inside))}" if inside else "it is empty"
        raise ValueError(
            f"{what}={name!r} is a folder that datasets has not written (save_to_disk), and {holds}"
            f": name a file. What is read: {READ}."
        )
    if is_hub_id(name) or ("@" in name and is_dataset_folder(name.partition("@")[0])):
        return FileFormat("datasets")
    raise ValueError(
        f"{what}={name!r} is no file, and no dataset of the hub is called so (owner/name). What is "
        f"read: {READ}."
    )


def _is_folder(name: str) -> bool:
    try:
        return os.path.isdir(name)
    except ValueError:
        return False


def read_rows(
    path: str | Path,
    bad: BadRows | None = None,
    named_columns: Collection[str] = (),
    what: str = "path",
) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Args:
        path: as in `find_format`.
        bad: takes what is wrong with rows, and reading goes on; without it, ValueError for all of
            them at the end of the file.
        named_columns: as in `find_format`.
        what: likewise.

    Yields:
        The rows that can be read; blank lines are none.

    Raises:
        ValueError: the file is missing, empty, damaged, or of no format that is read.
    """
    file_format = find_format(path, named_columns, what)
    account = BadRows() if bad is None else bad
    yield from rows_of(path, file_format, account)
    if bad is None:
        account.refuse(shown(path))


def rows_of(path: str | Path, file_format: FileFormat, bad: BadRows) -> Iterator[Row]:
    """The rows of a file of a known format."""
    is_gzip = file_format.is_gzip
    if file_format.name == "datasets":
        return read_dataset(str(path), bad)
    file = Path(path)
    if file_format.name == "parquet":
        return read_parquet(file, is_gzip, bad)
    if file_format.name == "csv":
        return read_csv(file, is_gzip, file_format.delimiter, bad)
    if file_format.name in ("json", "strings"):
        return read_array(file, is_gzip, file_format.name == "strings", bad)
    if file_format.name == "jsonl":
        return read_json_lines(file, is_gzip, bad)
    return _text_rows(file, is_gzip, bad)


def _text_rows(path: Path, is_gzip: bool, bad: BadRows) -> Iterator[Row]:
    """A row per line, but for blank ones."""
    file = shown(path)
    for number, line, fault in numbered_lines(path, is_gzip):
        if fault or not line.isspace():
            bad.rows += 1
            text = line.removesuffix("\n").removesuffix("\r")
            if fault:
                bad.add(f"line {number}", fault)
            else:
                yield Row({"text": text}, file, f"line {number}")
