"""A task: models, prompts, limits, and a gold reward where one is known.

A task is found by name (`"reviews"`), or as `"package.module:ATTRIBUTE"` naming a `Task` of yours.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenenv.addresses import names_server
from tokenenv.tasks.splits import SPLITS, check_split

__all__ = [
    "ASSETS",
    "SPLITS",
    "Task",
    "check_split",
    "is_bundled",
    "load_object",
    "load_task",
    "model_source",
    "names_code",
]

ASSETS = Path(__file__).resolve().parent.parent / "assets"
"""Where the bundled models live."""

_BUNDLED = {
    "reviews": "tokenenv.tasks.reviews:TASK",
    "exact": "tokenenv.tasks.exact:TASK",
}


@dataclass(frozen=True, slots=True)
class Task:
    """The defaults that one name stands for; every one of them can be overridden in `gym.make`.

    Args:
        name: the task's name.
        reference: folder or hub id of the causal LM that is the reference.
        reward_model: folder or hub id of the reward model, `"package.module:function"`, or the
            address of a reward server.
        prompts: split ("train" or "eval") → prompts, disjoint between the splits unless all that
            can happen is enumerated.
        max_prompt_tokens: P.
        max_new_tokens: T.
        kl_coef: β.
        gold_reward: (prompt, response, stopped) → the true reward of two texts, `stopped` where
            the response ended with EOS; or None if unknown.
        card: path of the model card's JSON, or None.
        grammar: (prompt, response, stopped) → of two texts, whether the task's grammar generates
            them together, or where the response has not stopped yet, some text that begins so; or
            None where there is no grammar. `tokenenv.wrappers.ActionMask` holds agents to it.
    """

    name: str
    reference: str
    reward_model: str
    prompts: Callable[[str], list[str]]
    max_prompt_tokens: int
    max_new_tokens: int
    kl_coef: float
    gold_reward: Callable[[str, str, bool], float] | None = None
    card: Path | None = None
    grammar: Callable[[str, str, bool], bool] | None = None


def is_bundled(name: str) -> bool:
    """Whether `name` is a task that ships with tokenenv."""
    return name in _BUNDLED


def load_task(name: str, role: str = "task") -> Task:
    """The task called `name`.

    Args:
        name: of a bundled task, or `"package.module:ATTRIBUTE"`.
        role: the argument that named it, for messages.

    Raises:
        ValueError: there is no such task.
    """
    if name in _BUNDLED:
        return load_object(_BUNDLED[name])
    if ":" not in name:
        raise ValueError(
            f"{role}={name!r} is unknown: bundled are {', '.join(map(repr, _BUNDLED))}; "
            "name yours as 'package.module:ATTRIBUTE'."
        )
    task = load_object(name, role)
    if not isinstance(task, Task):
        raise ValueError(
            f"{role}={name!r} names a {type(task).__name__}, it must be a tokenenv Task."
        )
    return task


def names_code(value: Any) -> bool:
    """Whether a task, reward model or prompts are `"module:attribute"`: code to import.

    The address of a reward server, `http://…`, is none.
    """
    is_name = isinstance(value, str) and ":" in value and not names_server(value)
    return is_name and not os.path.exists(value)


def model_source(name: Any, role: str) -> Any:
    """The source of a model argument: a bundled task's name means its model in that role.

    Args:
        name: a task's name, a folder, a hub id; anything else passes through.
        role: `"reference"` or `"reward_model"`.
    """
    is_task = isinstance(name, str) and name in _BUNDLED
    return getattr(load_task(name), role) if is_task else name


def load_object(path: str, role: str = "name") -> Any:
    """The object that `"package.module:attribute"` names.

    Args:
        path: the name.
        role: the argument that named it, for messages.

    Raises:
        ValueError: there is no such module or attribute, or importing the module failed.
    """
    module, _, attribute = path.rpartition(":")
    if module.endswith(".py"):
        return _from_file(module, attribute, path, role)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # errors of the module's import included
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{role}={path!r} can't be loaded ({reason}): it must be 'package.module:attribute', "
            "and the module must be importable from here; or 'path/to/file.py:attribute'."
        ) from error


def _from_file(file: str, attribute: str, path: str, role: str) -> Any:
    """The object in a Python file; the file is imported once, under its path.

    Raises:
        ValueError: as `load_object`.
    """
    if not os.path.isfile(file):
        raise ValueError(
            f"{role}={path!r}: there is no file {file!r} here. Give the path of a Python file and "
            "the name of what is in it, 'path/to/file.py:attribute', or 'package.module:attribute'."
        )
    location = os.path.abspath(file)
    try:
        if location not in sys.modules:
            spec = importlib.util.spec_from_file_location(location, location)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[location] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[location]
                raise
        return getattr(sys.modules[location], attribute)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{role}={path!r} can't be loaded ({reason}): the file must be importable, and have "
            f"{attribute!r} at its top level."
        ) from error
