"""Rows of Parquet, of a folder of `datasets`, and of a dataset on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tokenenv.data.row import BadRows, Row
from tokenenv.data.text_lines import file_errors, opened, shown

__all__ = ["SPLIT_OF", "is_dataset_folder", "is_hub_id", "read_dataset", "read_parquet"]

SPLIT_OF = {
    **{"train": "train", "training": "train"},
    **dict.fromkeys(("eval", "validation", "valid", "val", "dev", "test"), "eval"),
}
"""Name of a split of a dataset → what it is here."""

_ROWS = 512
"""Rows of a Parquet file that become objects at once."""

_BUFFER = 2**18
"""Bytes of a column of a Parquet file that are read at once."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*(@\w+)?")

_FILE_SUFFIXES = (
    *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".md", ".arrow"),
    *(".xlsx", ".zip", ".pkl", ".py"),
)


def _import(module: str, for_what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{for_what} needs {module.partition('.')[0]!r}, which can't be imported here "
            f'({error}): pip install "tokenrlhf[data]", or give JSON Lines or CSV.'
        ) from None


def read_parquet(path: Path, is_gzip: bool, bad: BadRows) -> Iterator[Row]:
    """The rows of a Parquet file, some hundred at a time.

    Raises:
        ValueError: it is damaged, has a column twice, or pyarrow is not installed.
    """
    file = shown(path)
    parquet = _import("pyarrow.parquet", f"{file} is Parquet: reading it")
    with contextlib.ExitStack() as stack:
        stack.enter_context(file_errors(file))
        stream = stack.enter_context(_unpacked(path) if is_gzip else opened(path, False))
        with _damage(file):
            # Without a buffer of its own it reads a column of a whole row group at once.
            table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER)
            names = table.schema_arrow.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{file} has the column {twice!r} twice: rename one of them.")
        batches = table.iter_batches(batch_size=_ROWS, use_threads=False)
        number = 0
        while True:
            with _damage(file):
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            for fields in rows:
                number += 1
                bad.rows += 1
                yield Row(fields, file, f"row {number}")


@contextlib.contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into a ValueError with its name."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{file} is a damaged Parquet file ({reason}): make or fetch it again."
        ) from None


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file packed by gzip as one that can be read at any place: Parquet's index is at its end."""
    with opened(path, True) as packed, tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(packed, unpacked, 2**20)
        unpacked.seek(0)
        yield unpacked


def is_dataset_folder(path: str) -> bool:
    """Whether a folder is one that `datasets` has written with `save_to_disk`."""
    marks = ("dataset_dict.json", "dataset_info.json")
    return os.path.isdir(path) and any(os.path.isfile(os.path.join(path, m)) for m in marks)


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file may be that of a dataset on the hub: `owner/name[@split]`."""
    return bool(_HUB_ID.fullmatch(name)) and not name.lower().endswith(_FILE_SUFFIXES)


def read_dataset(name: str, bad: BadRows) -> Iterator[Row]:
    """The rows of a folder of `datasets`, or of a dataset on the hub, which is streamed.

    `NAME@SPLIT` names a split. Without it the rows of all splits come with a field `"split"`, by
    its meaning (`SPLIT_OF`), where they have none of their own.

    Raises:
        ValueError: there is no such split, it can't be read, or `datasets` is not installed.
    """
    datasets = _import("datasets", f"{name!r} is a folder or hub id of datasets: reading it")
    source, _, split = name.partition("@")
    if os.path.isdir(name):
        source, split = name, ""
    loaded = _load(datasets, source)
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    if split and split not in parts:
        raise ValueError(
            f"{source!r} has no split {split!r}: it has {', '.join(map(repr, parts))}."
        )
    if split:
        parts = {split: parts[split]}
    for part, rows in parts.items():
        where = f"{source}@{part}" if part else source
        iterator = iter(rows)
        number = 0
        while True:
            with _dataset_errors(source):
                fields = next(iterator, None)
            if fields is None:
                break
            number += 1
            bad.rows += 1
            if part in SPLIT_OF and not split and len(parts) > 1:
                fields = {"split": SPLIT_OF[part], **fields}
            yield Row(fields, where, f"row {number}")


def _load(datasets: Any, source: str) -> Any:
    with _dataset_errors(source):
        if os.path.isdir(source):
            return datasets.load_from_disk(source)
        return datasets.load_dataset(source, streaming=True)


@contextlib.contextmanager
def _dataset_errors(source: str) -> Iterator[None]:
    """Turn what `datasets` raises into a ValueError with the remedy."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if os.path.isdir(source):
            raise ValueError(
                f"{source} is a folder of datasets that can't be read ({reason}): write it again "
                "with save_to_disk."
            ) from None
        raise ValueError(
            f"{source!r} is no file here, and as a dataset of the hub it can't be read ({reason}). "
            "Give a file, or a folder that datasets has written (save_to_disk) where the hub can "
            "be reached."
        ) from None
