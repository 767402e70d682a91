"""A run's folder: the paths of its files, creating it, and reading it again.

`config.json`, `metrics.jsonl` (and TensorBoard), `samples.jsonl`, `alarms.jsonl`, `tokens/`,
`refresh/`, `checkpoints/`, `policy/`, `reward_model/`, `summary.json`, `curves.png`, `report.html`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.atomic_files import append_lines, json_text, put_back_folder, write_json
from agents.config import TrainConfig
from agents.runs.output_folder import OutputFolder, has_leftovers
from tokenenv.addresses import names_server
from tokenenv.json_files import read_json_object
from tokenenv.tasks import names_code

__all__ = ["RunFolder", "new_folder"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places of a run.

    Attributes:
        root: the folder.
        output: the folder, locked by the process that makes the run; None for readers.
    """

    root: Path
    output: OutputFolder | None = field(default=None, compare=False)

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Lock the folder of a new run for this process, until `output.close()`.

        Nothing is written into it yet. With `overwrite` the run in it is set aside, until
        `output.keep()` removes it.

        Raises:
            ValueError: it exists and holds something, and `overwrite` is off; or another process
                writes a run there.
        """
        output = OutputFolder(config.out or new_folder(config), _CONTENTS)
        try:
            if output.entries():
                _set_aside(output, config)
        except BaseException:
            output.close()
            raise
        return cls(output.root, output)

    @classmethod
    def reopen(cls, root: Path) -> RunFolder:
        """Lock the folder of a run that is gone on with, until `output.close()`.

        Raises:
            ValueError: there is no run, or another process writes it.
        """
        if not root.is_dir():
            raise ValueError(f"resume={str(root)!r} is no folder of a run.")
        output = OutputFolder(root, _CONTENTS)
        run = cls(root, output)
        if not run.config.is_file():
            output.close()
            raise ValueError(f"resume={str(root)!r} holds no run: {run.config.name} is missing.")
        return run

    def tidy(self) -> None:
        """Put what a process that was killed has left back into its place; it may stay as it is."""
        if has_leftovers(self.root):
            with contextlib.suppress(OSError):
                OutputFolder(self.root, _CONTENTS).close()

    def begin(self, config: TrainConfig) -> None:
        """Write the first files of a run."""
        self.checkpoints.mkdir(exist_ok=True)
        write_json(self.config, config.as_json())

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """The folder of a finished run.

        Raises:
            ValueError: there is no run, or it has not been finished.
        """
        run = cls(root)
        run.tidy()
        if not os.path.isfile(run.config):
            raise ValueError(f"{str(root)!r} holds no run: {run.config.name} is missing.")
        with contextlib.suppress(OSError):
            put_back_folder(run.policy)
        if not (run.policy / "config.json").is_file():
            raise ValueError(
                f"the run in {str(root)!r} has no policy: it was stopped before it had one."
            )
        return run

    def read_config(self, trust_code: bool = False) -> TrainConfig:
        """The configuration that the run was made with.

        Args:
            trust_code: allow it to name code (`"module:attribute"`), which using it would import,
                or a reward server, which texts would be sent to.

        Raises:
            ValueError: the file is broken, or names code or a server and `trust_code` is off.
        """
        content = read_json_object(self.config, "the configuration of a run")
        try:
            config = TrainConfig.from_json(content)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{str(self.config)!r} is no configuration of a run ({str(error).rstrip('.')}): "
                "restore the file, or train again."
            ) from error
        for name, value in config.names_of_code().items():
            if not trust_code and names_server(value):
                raise ValueError(
                    f"{str(self.config)!r} says {name}={value!r}, which names a server: using this "
                    "run would send prompts and responses to it. Where you trust the run and know "
                    "that server, pass --trust-code (in Python trust_code=True)."
                )
            if not trust_code:
                raise ValueError(
                    f"{str(self.config)!r} says {name}={value!r}, which names code: using this run "
                    f"would import {value.partition(':')[0]!r}. Where you trust the run and know "
                    "that module, pass --trust-code (in Python trust_code=True)."
                )
        return config

    def environment(self, config: TrainConfig, split: str = "train") -> dict[str, Any]:
        """The keyword arguments of the environment, with the reward as the run has left it.

        A reward model that was refreshed is the one in the run's folder, not the one it began as.

        Args:
            config: the run's.
            split: of the prompts.

        Raises:
            ValueError: several reward models with weights were refreshed: which is which is not
                known.
        """
        settings = config.environment(split)
        if not (config.refresh_every and config.refresh_epochs):
            return settings
        if (self.reward_model / "config.json").is_file():
            return {**settings, "reward_model": str(self.reward_model)}
        folders = sorted(str(path.parent) for path in self.reward_model.glob("*/config.json"))
        given = config.reward_model if isinstance(config.reward_model, tuple) else ()
        if len(folders) == 1 and given:  # beside functions
            places = [one if names_code(one) or names_server(one) else folders[0] for one in given]
            return {**settings, "reward_model": places}
        if folders and config.reward_weights is not None:
            raise ValueError(
                f"the run in {str(self.root)!r} has refreshed {len(folders)} reward models with "
                "weights, and its folder does not say which weight is whose: measure it with the "
                "reward models in reward_model/ in an environment of your own."
            )
        if folders:
            return {**settings, "reward_model": folders, "reward_combine": config.combine or "mean"}
        return settings

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
    def alarms(self) -> Path:
        """Alarms of the monitor of reward hacking, JSON Lines; only where one was raised."""
        return self.root / "alarms.jsonl"

    @property
    def refresh(self) -> Path:
        """Pairs that the reward model was refreshed with, a file for each round."""
        return self.root / "refresh"

    @property
    def skipped(self) -> Path:
        """Rollouts that an update was not made from, as their numbers were not finite."""
        return self.root / "skipped"

    @property
    def tokens(self) -> Path:
        """Token tables, one file per step."""
        return self.root / "tokens"

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
        """The results of the run."""
        return self.root / "summary.json"

    @property
    def curves(self) -> Path:
        """The curves as a picture."""
        return self.root / "curves.png"

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.root / "report.html"

    def append_alarm(self, alarm: Any) -> None:
        """Append a dataclass `alarm` to the alarms."""
        append_lines(self.alarms, [json_text(asdict(alarm))])

    def append_samples(self, tokens: int, reports: list[Any]) -> None:
        """Append dataclass `reports` to the samples."""
        append_lines(
            self.samples, [json_text({"tokens": tokens, **asdict(report)}) for report in reports]
        )


_CONTENTS = (
    *("config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "curves.png"),
    *("tensorboard", "tokens", "checkpoints", "policy", "reward_model", "report.html"),
    *("alarms.jsonl", "audit.json", "refresh", "skipped"),
)


def new_folder(config: TrainConfig) -> Path:
    """Make a folder in runs/ with a new name, which begins with that of the run."""
    first = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    number, root = 1, first
    while True:
        try:
            root.mkdir(parents=True)
            return root
        except FileExistsError:
            number += 1
            root = first.with_name(f"{first.name}-{number}")


def _set_aside(output: OutputFolder, config: TrainConfig) -> None:
    """Set the run in the folder aside, and nothing else that a user may keep there.

    Raises:
        ValueError: `overwrite` is off, what is there is no run, or this run reads from it.
    """
    root = output.root
    if not config.overwrite:
        raise ValueError(
            f"out={str(root)!r} exists already: choose another folder, or pass "
            "--overwrite to replace the run in it."
        )
    if root.is_symlink():
        raise ValueError(
            f"out={str(root)!r} is a link to {os.path.realpath(root)!r}: nothing is removed behind "
            "a link. Give that folder itself, or remove the link."
        )
    held = [name for name in _CONTENTS if os.path.lexists(root / name)]
    if held and not _is_run(root):
        raise ValueError(
            f"out={str(root)!r} holds {', '.join(held)}, but not of a run: nothing was removed. "
            "Choose another folder."
        )
    rewards = config.reward_model if isinstance(config.reward_model, tuple) else ()
    sources = (
        *(config.actor, config.reference, config.reward_model, config.critic, config.prompts),
        *(config.shift_pairs, config.refresh_old_pairs, config.refresh_labels, *rewards),
    )
    for source in sources:
        if isinstance(source, str) and _lies_in(source, root):
            raise ValueError(
                f"{source!r} lies in out={str(root)!r}, which --overwrite would remove: choose "
                "another folder."
            )
    output.set_aside(held)


def _lies_in(source: str, root: Path) -> bool:
    """Whether a path leads into `root`, by its name or through links."""
    path = Path(source)
    if not path.exists():  # a hub id, or the name of code
        return False
    places = {Path(os.path.abspath(path)), path.resolve()}
    return any(
        folder in [place, *place.parents]
        for folder in (Path(os.path.abspath(root)), root.resolve())
        for place in places
    )


def _is_run(root: Path) -> bool:
    try:
        RunFolder(root).read_config(trust_code=True)  # nothing of it is used
    except (OSError, TypeError, ValueError):
        return False
    return True
