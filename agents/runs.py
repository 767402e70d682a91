"""A run's folder: where everything is, how it is made, and how it is read again.

`config.json`, `metrics.jsonl` (and TensorBoard), `samples.jsonl`, `checkpoints/`, `policy/`,
`reward_model/`, `summary.json`, `curves.png`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.files import write_json
from tokenenv.json_files import read_json_object

__all__ = ["RunFolder"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places of a run.

    Attributes:
        root: the folder.
    """

    root: Path

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            ValueError: it exists and holds something, and `overwrite` is off.
        """
        name = config.task.rpartition(":")[2].lower()
        root = config.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        if root.is_file():
            raise ValueError(f"out={str(root)!r} is a file: give a folder for the run.")
        if root.is_dir() and any(root.iterdir()):
            _clear(root, config)
        run = cls(root)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(run.config, config.as_json())
        return run

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """The folder of a finished run.

        Raises:
            ValueError: there is no run, or it has not been finished.
        """
        run = cls(root)
        if not run.config.is_file():
            raise ValueError(f"{str(root)!r} holds no run: {run.config.name} is missing.")
        if not (run.policy / "config.json").is_file():
            raise ValueError(
                f"the run in {str(root)!r} has no policy: it was stopped before it had one."
            )
        return run

    def read_config(self, trust_code: bool = False) -> TrainConfig:
        """The configuration that the run was made with.

        Args:
            trust_code: allow it to name code (`"module:attribute"`), which using it would import.

        Raises:
            ValueError: the file is broken, or names code and `trust_code` is off.
        """
        found = read_json_object(self.config, "the configuration of a run")
        try:
            config = TrainConfig.from_json(found)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{str(self.config)!r} is no configuration of a run ({str(error).rstrip('.')}): "
                "restore the file, or train again."
            ) from error
        for name, value in config.names_of_code().items():
            if not trust_code:
                raise ValueError(
                    f"{str(self.config)!r} says {name}={value!r}, which names code: using this run "
                    f"would import {value.partition(':')[0]!r}. Where you trust the run and know "
                    "that module, pass --trust-code (in Python trust_code=True)."
                )
        return config

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per update."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def samples(self) -> Path:
        """Responses of the policy during training, JSON Lines."""
        return self.root / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """SB3 archives that `TokenPPO.load` reads, and `best/`."""
        return self.root / "checkpoints"

    @property
    def policy(self) -> Path:
        """The trained policy, in transformers' format."""
        return self.root / "policy"

    @property
    def reward_model(self) -> Path:
        """The reward model that it was trained against, in transformers' format."""
        return self.root / "reward_model"

    @property
    def summary(self) -> Path:
        """The numbers that the run is judged by."""
        return self.root / "summary.json"

    @property
    def curves(self) -> Path:
        """The curves as a picture."""
        return self.root / "curves.png"

    def append_samples(self, tokens: int, reports: list[Any]) -> None:
        """Append dataclass `reports` to the samples."""
        with self.samples.open("a", encoding="utf-8") as file:
            for report in reports:
                file.write(
                    json.dumps({"tokens": tokens, **asdict(report)}, ensure_ascii=False) + "\n"
                )


_CONTENTS = (
    *("config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "curves.png"),
    *("tensorboard", "checkpoints", "policy", "reward_model"),
)


def _clear(root: Path, config: TrainConfig) -> None:
    """Remove the run in `root`, and nothing else that a user may keep there.

    Raises:
        ValueError: `overwrite` is off, what is there is no run, or this run reads from it.
    """
    if not config.overwrite:
        raise ValueError(
            f"out={str(root)!r} exists already: choose another folder, or pass "
            "--overwrite to replace the run in it."
        )
    held = [name for name in _CONTENTS if (root / name).exists()]
    if held and not _is_run(root):
        raise ValueError(
            f"out={str(root)!r} holds {', '.join(held)}, but not of a run: nothing was removed. "
            "Choose another folder."
        )
    for source in (config.actor, config.reference, config.reward_model, config.prompts):
        if source is not None and root.resolve() in [Path(source).resolve(), *_parents(source)]:
            raise ValueError(
                f"{source!r} lies in out={str(root)!r}, which --overwrite would remove: choose "
                "another folder."
            )
    for name in held:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _parents(source: str) -> list[Path]:
    return list(Path(source).resolve().parents)


def _is_run(root: Path) -> bool:
    try:
        RunFolder(root).read_config(trust_code=True)  # nothing of it is used
    except (OSError, TypeError, ValueError):
        return False
    return True
