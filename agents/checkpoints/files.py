"""The folder of a checkpoint: written as a whole or not at all, and checked when it is read.

`checkpoint.json` has format, version, counters and the JSON of every part, the size and CRC-32 of
every other file, and the CRC-32 of all that; `PART.safetensors` has a part's arrays. Nothing is
unpickled.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agents.atomic_files import json_text, whole_folder
from agents.checkpoints.states import split_state, whole_state
from tokenenv.json_files import read_json_object

__all__ = [
    "FORMAT_VERSION",
    "BrokenCheckpoint",
    "Checkpoint",
    "OtherVersion",
    "read_checkpoint",
    "write_checkpoint",
]

FORMAT_VERSION = 2
"""Raised whenever a version that came before could not go on from what is written."""

FORMAT = "tokenrlhf checkpoint"
INDEX = "checkpoint.json"

_LIBRARIES = ("tokenrlhf", "torch", "transformers", "stable-baselines3", "numpy")


class BrokenCheckpoint(ValueError):
    """A folder holds no checkpoint, or not a whole one."""


class OtherVersion(ValueError):
    """A checkpoint was written by a version of this package whose format is another."""


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from.

    Attributes:
        parts: name → state.
        tokens: that had been trained on.
        updates: that had been made.
        folder: where it was read from; None: it was not.
        libraries: name → version, of those that wrote it.
    """

    parts: Mapping[str, Any]
    tokens: int
    updates: int
    folder: Path | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; `folder` holds all of it, or is as it was.

    The files are on the disk, and not in the system's memory alone, before the folder has its name.

    Raises:
        TypeError: a part holds what no checkpoint can.
        OSError: it can't be written.
    """
    split = {name: split_state(state, name) for name, state in checkpoint.parts.items()}
    with whole_folder(folder) as stage:
        files: dict[str, dict[str, int]] = {}
        for name, (_, tensors) in split.items():
            if tensors:
                path = stage / f"{name}.safetensors"
                save_file(tensors, path)
                files[path.name] = _measured(path)
                _flush(path)
        index = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "tokens": checkpoint.tokens,
            "updates": checkpoint.updates,
            "libraries": _libraries(),
            "files": files,
            "parts": {name: content for name, (content, _) in split.items()},
        }
        index["crc32"] = _crc_of_index(index)
        (stage / INDEX).write_text(json_text(index) + "\n", encoding="utf-8")
        _flush(stage / INDEX)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, every file of it checked.

    Raises:
        BrokenCheckpoint: there is none, or a file of it is missing, cut off or changed.
        OtherVersion: its format is another.
    """
    index = _read_index(folder)
    try:
        parts = {}
        for name, content in index["parts"].items():
            file = f"{name}.safetensors"
            tensors = _read_tensors(folder / file, index["files"].get(file))
            parts[name] = whole_state(content, tensors)
        return Checkpoint(
            parts, int(index["tokens"]), int(index["updates"]), folder, dict(index["libraries"])
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, BrokenCheckpoint):
            raise
        raise _broken(folder, f"{INDEX} is not as this package writes it") from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise _broken(folder, f"{INDEX} is missing")
    try:
        index = read_json_object(path, "the index of a checkpoint")
    except (OSError, ValueError) as error:
        raise _broken(folder, str(error).rstrip(".")) from error
    if index.get("format") != FORMAT:
        raise _broken(folder, f"{INDEX} is of something else")
    if index.get("version") != FORMAT_VERSION:
        libraries = index.get("libraries")
        writer = libraries.get("tokenrlhf") if isinstance(libraries, dict) else None
        raise OtherVersion(
            f"the checkpoint {str(folder)!r} has version {index.get('version')!r} of its format"
            f"{f' (written by tokenrlhf {writer})' if writer else ''}, and this tokenrlhf reads "
            f"version {FORMAT_VERSION}: go on with the tokenrlhf that wrote it, or load the "
            "archive beside it (TokenPPO.load, which unpickles) into a new training."
        )
    if index.pop("crc32", None) != _crc_of_index(index):
        raise _broken(folder, f"{INDEX} is changed")
    return index


def _crc_of_index(index: Mapping[str, Any]) -> int:
    """CRC-32 of an index without this number: of the text that is written of it."""
    return zlib.crc32(json_text(index).encode("utf-8"))


def _read_tensors(path: Path, measured: Any) -> dict[str, torch.Tensor]:
    """The tensors of a part; none where it has no file."""
    if measured is None:
        return {}
    if not path.is_file() or _measured(path) != measured:
        what = "changed or cut off" if path.is_file() else "missing"
        raise _broken(path.parent, f"{path.name} is {what}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path.parent, f"{path.name} can't be read: {error}") from error


def _broken(folder: Path, why: str) -> BrokenCheckpoint:
    return BrokenCheckpoint(
        f"{str(folder)!r} holds no whole checkpoint ({why}): take another one, or train again."
    )


def _measured(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def _flush(path: Path) -> None:
    """Let the system bring a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # called out of a folder of its files
            continue
    return found
