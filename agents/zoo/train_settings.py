"""The zoo's settings for `tokenrlhf train`, by name: `--config zoo:exact`."""

from __future__ import annotations

from pathlib import Path

from agents.config import TrainConfig
from agents.zoo.settings_files import near, read_mapping, read_settings

__all__ = ["FOLDER", "PREFIX", "require_task", "settings_at", "train_names", "train_settings"]

FOLDER = Path(__file__).parent
"""Where the files are."""

PREFIX = "zoo:"
"""What the name of a file of the zoo begins with, where a path could stand too."""


def train_names() -> list[str]:
    """The names of the zoo's files for `tokenrlhf train`.

    They are named after tasks, in lower case; files for `tokenrlhf compare` are named after ids of
    environments, and say so in their field `env`.
    """
    paths = sorted(FOLDER.glob("*.yaml"))
    return [path.stem for path in paths if "env" not in read_mapping(path)]


def train_settings(name: str) -> TrainConfig:
    """The settings in the zoo's file of that name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    names = train_names()
    if name not in names:
        listed = ", ".join(PREFIX + known for known in names)
        raise ValueError(
            f"the zoo has no settings called {name!r} for `tokenrlhf train`"
            f"{near(name, set(names))} There are {listed}; `tokenrlhf zoo` shows them."
        )
    return read_settings(FOLDER / f"{name}.yaml")


def settings_at(place: str) -> TrainConfig:
    """The settings that `--config` names: `zoo:NAME`, or the path of a file.

    Raises:
        ValueError: there is no such file, or it can't be used.
    """
    if place.startswith(PREFIX):
        try:
            return train_settings(place.removeprefix(PREFIX))
        except ValueError as error:
            raise ValueError(f"config={place!r}: {error}") from None
    return read_settings(Path(place))


def require_task(config: TrainConfig) -> None:
    """Raise ValueError where settings of the zoo, tuned for one task, are to train another."""
    place = "" if config.config is None else str(config.config)
    if not place.startswith(PREFIX):
        return
    name = place.removeprefix(PREFIX)
    tuned = read_mapping(FOLDER / f"{name}.yaml").get("task")
    if tuned is not None and config.task != tuned:
        raise ValueError(
            f"config={place!r} has the settings that were tuned for the task {tuned!r}, and task "
            f"is {config.task!r}: leave --task out, or copy the file "
            f"({FOLDER / f'{name}.yaml'}), change it, and give that."
        )
