"""Settings read back from JSON into their frozen dataclass, without filling in defaults."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["settings_from_json"]

Settings = TypeVar("Settings")

_WORDS: dict[Any, str] = {
    str: "a string",
    Path: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def settings_from_json(kind: type[Settings], content: Any) -> Settings:
    """The settings that a JSON object holds: all of them, of the right types, and no others.

    A missing one is refused and never filled in: today's default need not be what was used then.

    Args:
        kind: a dataclass whose fields are strings, paths, numbers, truth values, literals, tuples
            of any length, or optional ones of these.
        content: the parsed JSON.

    Raises:
        ValueError: it is no object, or a setting is unknown, missing, of another type or refused by
            `kind` itself; it is named.
    """
    if not isinstance(content, dict):
        raise ValueError(f"settings are a JSON object, not {content!r:.80}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = ", ".join(map(repr, sorted(content.keys() - fields)))
    if unknown:
        raise ValueError(
            f"unknown settings: {unknown:.200}. Remove them, or use the version that wrote them."
        )
    hints = get_type_hints(kind)
    values = {name: _as_type(name, value, hints[name]) for name, value in content.items()}
    missing = [name for name in fields if name not in content]
    if missing:
        raise ValueError(
            f"missing settings, which are not guessed: {', '.join(map(repr, missing))}. Add them "
            f"as they were when this was written{_defaults([fields[name] for name in missing])}."
        )
    return kind(**values)


def _defaults(fields: list[dataclasses.Field[Any]]) -> str:
    """Their present defaults, as JSON, where they have some."""
    known = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return f" (today's defaults: {json.dumps(known, default=str)[1:-1]})" if known else ""


def _as_type(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that a field wants; ValueError where JSON gave another."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if type(value) is str and value in get_args(option):
                return value
        elif get_origin(option) is tuple:
            of = get_args(option)[0]
            if isinstance(value, list | tuple) and all(_is_of(one, of) for one in value):
                return tuple(value)
        elif _is_of(value, option):
            return Path(value) if option is Path else value
    allowed = " or ".join(map(_in_words, options))
    raise ValueError(f"{name}={value!r:.80} must be {allowed}.")


def _is_of(value: Any, option: Any) -> bool:
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is Path:
        return isinstance(value, str)
    return type(value) is option


def _in_words(option: Any) -> str:
    if get_origin(option) is Literal:
        return "one of " + ", ".join(map(repr, get_args(option)))
    if get_origin(option) is tuple:
        return f"a list ({_WORDS[get_args(option)[0]]} each)"
    return _WORDS[option]
