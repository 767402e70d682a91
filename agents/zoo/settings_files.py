"""Settings of `tokenrlhf train` from a file: YAML, JSON, or the `config.json` of a run."""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from agents.config import TrainConfig
from tokenenv.json_files import parse_json, read_lines

__all__ = ["as_number", "near", "read_mapping", "read_settings"]

RUN_CONFIG = "config.json"
TRACKERS = ("wandb", "trackio")
"""Trackers that are no code of a user's."""
_NOT_OF_A_RUN = ("out", "overwrite", "seeds", "launcher", "workers", "sweep")
"""Settings of a run that its `config.json` does not hand on: another run would replace it."""


def read_settings(path: Path) -> TrainConfig:
    """The settings in a file, and defaults for those that it does not name.

    The file is a mapping from names of settings, with `_` or `-`, to values. Of a run's own
    `config.json`, the folder to write to is left out.

    Raises:
        ValueError: the file can't be read, is no such mapping, names a setting that does not exist,
            gives one a value that it can't have, or, being of a run, names code.
    """
    content = read_mapping(path)
    defaults = TrainConfig()
    hints = get_type_hints(TrainConfig)
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"config"}
    settings = {}
    for key, value in content.items():
        name = str(key).strip().removeprefix("--").replace("-", "_")
        if name == "config" and value is None:  # as a run notes it
            continue
        if name not in names:
            raise ValueError(f"{str(path)!r}: there is no setting {key!r}{near(name, names)}")
        if name in settings:
            raise ValueError(f"{str(path)!r}: the setting {name!r} stands there twice.")
        settings[name] = _as_json(value, hints[name])
    is_of_run = path.name == RUN_CONFIG
    if is_of_run:
        settings = {name: v for name, v in settings.items() if name not in _NOT_OF_A_RUN}
    try:
        config = TrainConfig.from_json({**defaults.as_json(), **settings})
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    code = dict(config.names_of_code())
    if config.tracker not in (None, *TRACKERS):
        code["tracker"] = str(config.tracker)
    if is_of_run and code:
        name, value = next(iter(code.items()))
        raise ValueError(
            f"{str(path)!r} is of a run and says {name}={value!r}, which names code to import, or "
            "a server to send texts to: "
            "copy the settings that you trust into a file of another name, and give that."
        )
    return config


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping that a file of YAML or JSON holds.

    Raises:
        ValueError: the file can't be read, or holds something else; it is named.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds no settings: it must be a mapping such as `kl_coef: 0.05`, "
            f"and is {type(content).__name__}."
        )
    return content


def near(name: str, names: set[str]) -> str:
    """The end of a message about a name that does not exist: a full stop, or a suggestion."""
    similar = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(similar)}?" if similar else "."


def _read(path: Path) -> Any:
    if not os.path.isfile(path):
        raise ValueError(f"config={str(path)!r} is no file: give YAML or JSON of settings.")
    text = "\n".join(read_lines(path))
    if path.suffix == ".json":
        return parse_json(text, repr(str(path)))
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{str(path)!r}{place}: not valid YAML ({said}).") from None
    except RecursionError:
        raise ValueError(f"{str(path)!r}: the YAML is nested too deeply to be read.") from None


def _loader() -> Any:
    """YAML's safe loader, which refuses a setting that stands there twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    problem = f"{key!r} stands there twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, problem, node.value[index][0].start_mark
                    )
            return super().construct_mapping(node, deep=deep)

    return Loader


def _as_json(value: Any, hint: Any) -> Any:
    """A value of YAML as JSON has it: `1e-4` is a string to YAML 1.1, and a number to people."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    options = get_args(hint) if is_union else (hint,)
    if isinstance(value, str) and str not in options:
        value = as_number(value, [kind for kind in (int, float) if kind in options])
    takes_list = any(get_origin(option) is tuple for option in options)
    if takes_list and isinstance(value, str) and str not in options:
        return [value]
    return value


def as_number(value: Any, kinds: Sequence[type] = (int, float)) -> Any:
    """A text as the first of `kinds` that it can be read as; else the value itself."""
    for kind in kinds if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value
