"""Results that are kept one by one, so that the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents.atomic_files import json_text, write_json
from agents.runs.output_folder import OutputFolder
from tokenenv.json_files import read_json_object

__all__ = ["KeptPoints", "changed_settings"]

SETTINGS, POINTS = "settings.json", "points"
RESULTS = ("curve.json", "curve.png")
STAGE = "reward_model"
"""Folder of the reward model that a policy is being trained with."""


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different, by name."""
    now = json.loads(json_text(now))  # lists where tuples were
    return [
        f"{name} was {before.get(name)!r:.60}, now {now.get(name)!r:.60}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


class KeptPoints:
    """The points of a curve: `points/SIZE-SEED.json`, each written in one step.

    Args:
        output: their folder, locked.
    """

    def __init__(self, output: OutputFolder) -> None:
        self.output = output
        self.root = output.root

    @classmethod
    @contextlib.contextmanager
    def opened(cls, root: Path, overwrite: bool) -> Iterator[KeptPoints]:
        """The points in a folder, which no other process can write into meanwhile.

        Args:
            root: the folder.
            overwrite: whether what is there is replaced, as soon as there is a first new point.

        Raises:
            ValueError: it is no folder, holds something else, or another process has it.
        """
        names = (SETTINGS, POINTS, *RESULTS, STAGE)
        with contextlib.closing(OutputFolder(root, names)) as output:
            held = output.entries()
            foreign = sorted(set(held) - set(names))
            if foreign:
                raise ValueError(
                    f"out={str(root)!r} holds {foreign[0]!r}, which is no part of a learning "
                    "curve: nothing was changed. Choose another folder."
                )
            if overwrite and held:
                if root.is_symlink():
                    raise ValueError(
                        f"out={str(root)!r} is a link to {os.path.realpath(root)!r}: name that "
                        "folder itself to replace what is in it."
                    )
                output.set_aside(held)
            yield cls(output)

    def begin(self, settings: dict[str, Any]) -> None:
        """Note what points depend on.

        Raises:
            ValueError: points that are there were made with other settings.
        """
        path = self.root / SETTINGS
        if path.exists() and any((self.root / POINTS).glob("*.json")):
            before = read_json_object(path, "the settings of a learning curve")
            changed = changed_settings(before, settings)
            if changed:
                raise ValueError(
                    f"out={str(self.root)!r} holds points with other settings "
                    f"({'; '.join(changed)}): give the same, choose another folder, or pass "
                    "--overwrite to measure anew."
                )
        write_json(path, settings)
        (self.root / POINTS).mkdir(exist_ok=True)

    def read(self, size: int, seed: int) -> dict[str, Any] | None:
        """A point; None where it has not been measured.

        Raises:
            ValueError: its file is broken.
        """
        path = self._path(size, seed)
        if not path.exists():
            return None
        point = read_json_object(path, "a point of a learning curve")
        accuracy = point.get("accuracy")
        if (point.get("size"), point.get("seed")) != (size, seed) or not isinstance(
            accuracy, int | float
        ):
            raise ValueError(
                f"{str(path)!r} is no point of {size} pairs and seed {seed}: remove it, and it is "
                "measured again."
            )
        return point

    def write(self, point: dict[str, Any]) -> None:
        """Keep a point."""
        write_json(self._path(point["size"], point["seed"]), point)
        self.output.keep()

    def _path(self, size: int, seed: int) -> Path:
        return self.root / POINTS / f"{size}-{seed}.json"
