"""Which format a file has, by its content; its name decides only what the content leaves open."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tokenenv.data.text_lines import BOM, file_errors, opened, shown

__all__ = ["HEADER_NAMES", "READ", "FileFormat", "is_file", "recognise", "suffix_of"]

READ = (
    "JSON Lines, JSON, CSV, TSV and Parquet, each of them packed by gzip or not, plain text, and "
    "folders of datasets (save_to_disk)"
)
"""What is read, for messages."""

HEADER_NAMES = frozenset(
    [
        *("prompt", "prompts", "text", "messages", "conversations", "split", "question", "query"),
        *("instruction", "input", "context", "chosen", "rejected", "margin", "preference", "label"),
        *("winner", "response", "responses", "completion", "completions", "answer", "answers"),
        *("output", "rating", "ratings", "score", "scores", "reward", "rewards", "response_a"),
        *("response_b", "score_chosen", "score_rejected"),
    ]
)
"""Names of columns by which a first line is known as the header of a table."""

_HEAD = 2**16
"""Bytes by which a file is recognised."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
"""Suffixes of text whose meaning counts where the content leaves it open."""

_NO_TEXT_SUFFIXES = frozenset(
    [
        *(".parquet", ".arrow", ".feather", ".pkl", ".pickle", ".zip", ".xlsx", ".xls", ".html"),
        *(".htm", ".xml", ".yaml", ".yml", ".toml", ".py", ".ipynb", ".npy", ".npz", ".pt"),
        *(".safetensors", ".bin", ".db", ".sqlite", ".orc", ".avro", ".png", ".jpg", ".pdf"),
    ]
)
"""Suffixes of files that hold no prompts line by line, whatever their text is."""

_MAGIC: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "a zip archive, as .xlsx, .npz and torch's files are"),
    (b"\x1f\x8b", "a gzip file inside of a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft Office file, as .xls is"),
    (b"ARROW1", "an Arrow file (Feather): write it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream: give the folder of datasets that it is in"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself (git lfs pull)"),
    (b"\xff\xfe", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16: save it as UTF-8"),
    (b"{\\rtf", "rich text (RTF)"),
]
"""First bytes of files that are not read, and what they are."""

_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95c(}\]K\x8cX]")
_HTML = re.compile(rb"\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml\b")
_COLUMN = re.compile(r"[A-Za-z_][\w.\-]*")
"""A cell of a header where nothing but the content says that it is one: no sentence."""
_JSON_ARRAY = re.compile(r"\[\s*(\{|\"|\]|\[|-?\d|true\b|false\b|null\b)")
_JSON_OBJECT = re.compile(r"\{\s*(\"|\})")


@dataclass(frozen=True, slots=True)
class FileFormat:
    """What a file is.

    Attributes:
        name: `jsonl`, `json` (an array of objects), `strings` (one of strings), `csv`, `parquet`,
            `text`, or `datasets`.
        is_gzip: whether it is packed.
        delimiter: between the cells of a row of CSV.
    """

    name: str
    is_gzip: bool = False
    delimiter: str = ","

    @property
    def title(self) -> str:
        """Its name for people."""
        titles = {"jsonl": "JSON Lines", "json": "JSON", "csv": "CSV", "parquet": "Parquet"}
        titles |= {"strings": "JSON, an array of texts", "text": "plain text"}
        title = titles.get(self.name, self.name)
        if self.name == "csv" and self.delimiter != ",":
            title = "TSV" if self.delimiter == "\t" else f"CSV with {self.delimiter!r}"
        return f"{title}, packed by gzip" if self.is_gzip else title


def suffix_of(path: Path) -> str:
    """The suffix that says the format: `.csv` of `pairs.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def recognise(path: Path, named_columns: Collection[str] = ()) -> FileFormat:
    """The format of a file.

    Args:
        path: a file that exists.
        named_columns: columns that are asked for by name: a first line with them is a header.

    Raises:
        ValueError: it is empty, unreadable or of a format that is not read; it says of which.
    """
    file = shown(path)
    with file_errors(file):
        with opened(path, False) as stream:
            is_gzip = stream.read(2) == b"\x1f\x8b"
        with opened(path, is_gzip) as stream:
            head = stream.read(_HEAD)
    if head[:4] == b"PAR1":
        return FileFormat("parquet", is_gzip)
    text = _text_of(head, file)
    if not text.strip():
        if len(head) < _HEAD:
            raise ValueError(f"{file} is empty: it needs at least one row.")
        raise ValueError(f"{file} begins with {_HEAD:,} blanks: it holds no rows that are read.")
    return _format_of_text(text, file, suffix_of(path), is_gzip, frozenset(named_columns))


def _refusal(file: str, what: str) -> ValueError:
    return ValueError(f"{file} looks like {what}. What is read: {READ}.")


def _text_of(head: bytes, file: str) -> str:
    """The beginning of a file as text; ValueError where it is none."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise _refusal(file, what)
    if _PICKLE.match(head):
        raise _refusal(file, "a pickle, which could run any code when loaded")
    if _HTML.match(head):
        raise _refusal(file, "HTML: a page was saved in the place of the data")
    if _XML.match(head):
        raise _refusal(file, "XML")
    if b"\0" in head:
        zeros = head.count(b"\0")
        if len(head) >= 4 and 0.3 < zeros / len(head) <= 0.55 and max(head) < 128:
            raise _refusal(file, "text in UTF-16: save it as UTF-8")
        raise _refusal(file, "binary data (it holds NUL bytes)")
    lines = head.removeprefix(BOM).split(b"\n")
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()  # it may be cut
    return b"\n".join(lines).decode("utf-8", "ignore" if len(head) == _HEAD else "replace")


def _format_of_text(
    text: str, file: str, suffix: str, is_gzip: bool, named_columns: Collection[str]
) -> FileFormat:
    start = text.lstrip()
    if "\n" not in text and "\r" in text.rstrip("\r\n"):
        raise _refusal(file, "text whose lines end in CR alone: save it with LF or CR LF")
    if _JSON_OBJECT.match(start):
        return FileFormat("jsonl", is_gzip)
    if _JSON_ARRAY.match(start) and _begins_an_array(start):
        return FileFormat("strings" if start[1:].lstrip()[:1] == '"' else "json", is_gzip)
    kind = _SUFFIXES.get(suffix)
    first = start.split("\n", 1)[0].rstrip("\r")
    delimiter, cells = _header(first, kind, named_columns)
    if kind in ("csv", "tsv"):
        return FileFormat("csv", is_gzip, delimiter)
    known = sum(_is_known(cell, named_columns) for cell in cells)
    index = int(len(cells) > 1 and not cells[0])  # pandas names the column of its index so
    is_header = bool(known) and all(map(_COLUMN.fullmatch, cells[index:]))
    if is_header and (len(cells) > 1 or kind is not None):
        return FileFormat("csv", is_gzip, delimiter)
    if kind is not None:
        return FileFormat("jsonl", is_gzip)
    if suffix in _NO_TEXT_SUFFIXES:
        raise _refusal(file, f"text, and is called {suffix}: that is no format of rows here")
    if is_header:
        raise ValueError(
            f"{file}: its first line is {first.strip()!r}, the header of a table of one column: "
            "name the file .csv, or remove the line if every line is a text of its own."
        )
    return FileFormat("text", is_gzip)


def _begins_an_array(start: str) -> bool:
    """Whether text that begins with a bracket is JSON: `[1] Who wrote it?` is a text."""
    if start[1:].lstrip()[:1] in ("{", "]"):
        return True
    try:
        _, end = json.JSONDecoder().raw_decode(start, len(start) - len(start[1:].lstrip()))
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated")
    except (ValueError, RecursionError):
        return True  # the reader says what is wrong
    follows = start[end:].lstrip()
    if follows.startswith("]"):  # the end of the array, and of the file
        return not follows[1:].strip()
    return follows.startswith(",") or not follows


def _header(line: str, kind: str | None, named_columns: Collection[str]) -> tuple[str, list[str]]:
    """The delimiter of a table by its first line, and the cells of that."""
    best: tuple[tuple[int, int], str, list[str]] = ((-1, -1), ",", [line])
    for delimiter in ("\t",) if kind == "tsv" else (",", "\t", ";", "|"):
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            continue
        known = sum(_is_known(cell, named_columns) for cell in cells)
        is_header = all(len(cell) <= 64 for cell in cells)
        score = (known if is_header else 0, len(cells))
        if score > best[0]:
            best = (score, delimiter, cells)
    _, delimiter, cells = best
    return delimiter, cells


def _is_known(cell: str, named_columns: Collection[str]) -> bool:
    name = cell.strip()
    return name in HEADER_NAMES or name in named_columns


def is_file(path: object) -> bool:
    """Whether there is such a file; False too for what is no path at all."""
    try:
        return os.path.isfile(path)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
