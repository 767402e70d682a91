"""The runs of `--seeds` and `--sweep`: their settings, their folders, and how far they are."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.runs.folder import RunFolder
from agents.settings import parse_sweep
from tokenenv.json_files import read_json_object

__all__ = ["Variant", "variants"]

_OF_THE_CALL = (
    *("config", "out", "overwrite", "resume", "trust_code", "seeds"),
    *("sweep", "launcher", "workers"),
)
_SINGLE = {"seeds": None, "sweep": (), "launcher": None, "workers": None, "config": None}


@dataclass(frozen=True)
class Variant:
    """One run.

    Attributes:
        point: setting of the sweep → its value.
        config: the run's settings, with its folder.
    """

    point: dict[str, Any]
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """Of the run."""
        assert self.config.out is not None
        return self.config.out

    @property
    def label(self) -> str:
        """The point in words; empty without a sweep."""
        return ", ".join(f"{name}={value}" for name, value in self.point.items())

    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None where it is not finished.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        run = RunFolder(self.folder)
        if not run.config.is_file():
            return None
        stored = read_json_object(run.config, "a run's settings")
        wanted = json.loads(json.dumps(self.config.as_json()))
        for name, value in wanted.items():
            if name not in _OF_THE_CALL and stored.get(name, value) != value:
                raise ValueError(
                    f"{str(self.folder)!r} holds a run with {name}={stored.get(name)!r}, and "
                    f"{value!r} is asked for: choose another --out, or pass --overwrite to replace "
                    "it."
                )
        path = self.folder / "summary.json"
        summary = read_json_object(path, "a run's summary") if path.is_file() else {}
        return summary if summary and summary.get("finished", True) else None

    def arguments(self, settings: Path) -> list[str]:
        """Of `tokenrlhf`, to start the run or to go on with it.

        Args:
            settings: file to write its settings to.
        """
        has_begun = any(path.is_dir() for path in self.folder.glob("checkpoints/tokens-*"))
        if has_begun and not self.config.overwrite:
            return ["train", "--resume", str(self.folder), "--trust-code"]
        content = {**self.config.as_json(), "overwrite": True}
        settings.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return ["train", "--config", str(settings)]


def variants(config: TrainConfig, root: Path) -> list[Variant]:
    """Every combination of the sweep with every seed.

    Raises:
        ValueError: a value of the sweep is not for its setting.
    """
    swept = parse_sweep(config.sweep, (field.name for field in dataclasses.fields(config)))
    found = []
    for values in itertools.product(*swept.values()):
        texts = dict(zip(swept, values, strict=True))
        point = {name: _value(text) for name, text in texts.items()}
        folder = root
        if point:
            folder = root / ",".join(f"{name}={_plain(text)}" for name, text in texts.items())
        for seed in range(config.seed, config.seed + (config.seeds or 1)):
            settings = {**_SINGLE, **point, "seed": seed, "out": folder / f"seed-{seed}"}
            try:
                content = {**config.as_json(), **{n: v for n, v in point.items()}}
                TrainConfig.from_json(content)  # of the types that a file may have
                one = dataclasses.replace(config, **settings)
            except ValueError as error:
                raise ValueError(f"--sweep {' '.join(config.sweep)}: {error}") from None
            found.append(Variant(point, one))
    folders = [variant.folder for variant in found]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ValueError(
            f"--sweep {' '.join(config.sweep)}: two of its values would have the folder "
            f"{str(twice)!r}: name folders or files that differ in letters and digits."
        )
    return found


def _value(text: str) -> Any:
    """A number, truth value or None where the text is one."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]", "_", text)
