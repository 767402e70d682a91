"""Writing so that a reader, or a kill in the middle, meets the old content or the whole new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["whole_folder", "write_json"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one step."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write into, and put it in the place of `path` once it is complete."""
    temporary, old = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
