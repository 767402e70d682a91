"""What a file of token tables must be like: one list of rules for its reader and its writer.

Every function raises ValueError with the place, what stands there, and what must.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from agents.credit.columns import COLUMNS, SCHEMA, TOP, WHOLE_COLUMNS
from agents.settings import LOSS_AGGREGATIONS
from tokenenv.maths import ADVANTAGE_ESTIMATORS, UNIFORM

__all__ = ["KINDS", "check_header", "check_response"]

KINDS = ("fresh", "fixed", "rollout")
"""New responses to held-out prompts; the same responses at every step; of the last rollout."""

_WHITENED_BY = ("the last rollout", "these responses")
_FINISHES = ("stop", "length", "cut")
_TEXTS = ("text", "top_texts")
_INTEGERS = ("position", "token", "top_tokens")
_CLIPS = ("", "high", "low")

Rule = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    """Whether it is one that a file can hold: halves of surrogate pairs can't be written."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number_or(*others: Any) -> Callable[[Any], bool]:
    return lambda value: value in others or _is_number(value)


def _one_of(*names: str) -> Rule:
    return lambda value: value in names, f"one of {', '.join(map(repr, names))}"


def _object(**rules: Rule) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping)
        and set(rules) <= set(value)
        and all(rule(value[name]) for name, (rule, _) in rules.items())
    )


_NUMBER: Rule = (_is_number, "a finite number")
_POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "a positive number")
_OPTIONAL: Rule = (_number_or(None), "a finite number or null")
_INDEX: Rule = (_is_index, "a whole number of at least 0")
_TEXT: Rule = (_is_text, "a text")
_BOOL: Rule = (lambda value: isinstance(value, bool), "true or false")

_is_whitening = _object(mean=_NUMBER, deviation=_POSITIVE, of=_one_of(*_WHITENED_BY))

_HEADER: dict[str, Rule] = {
    "step": _INDEX,
    "update": _INDEX,
    "task": _TEXT,
    "estimator": _one_of(*ADVANTAGE_ESTIMATORS),
    **dict.fromkeys(("gamma", "gae_lambda"), _NUMBER),
    "group_size": _INDEX,
    "kl_coef": _NUMBER,
    "kl_estimator": _TEXT,
    "use_kl_loss": _BOOL,
    "clip_range": _NUMBER,
    "clip_range_vf": _OPTIONAL,
    **dict.fromkeys(("temperature", "ent_coef", "vf_coef"), _NUMBER),
    "has_critic": _BOOL,
    "whitening": (
        lambda value: value is None or _is_whitening(value),
        "null, or an object with the number mean, the positive number deviation and of: "
        + " or ".join(map(repr, _WHITENED_BY)),
    ),
    "reward_scale": (
        _object(factor=_NUMBER, shift=_NUMBER),
        "an object with the numbers factor and shift",
    ),
}
"""Field of the header → its rule."""

_OPTIONS: dict[str, Rule] = {
    **dict.fromkeys(("clip_range_high", "gae_lambda_value", "gae_lambda_alpha"), _OPTIONAL),
    "vine_samples": _INDEX,
    "loss_aggregation": _one_of(*LOSS_AGGREGATIONS),
    **dict.fromkeys(("loss_divisor", "max_new_tokens"), _OPTIONAL),
    "return_deviation": _POSITIVE,
}
"""Fields that a header may lack → their rules."""

_RESPONSE: dict[str, Rule] = {
    "kind": _one_of(*KINDS),
    "index": _INDEX,
    "prompt": _TEXT,
    "response": _TEXT,
    "score": (_number_or(None), "a finite number, or null of a response that was cut"),
    "gold_reward": _OPTIONAL,
    "finish_reason": _one_of(*_FINISHES),
    "bootstrap_value": _NUMBER,
    "uniform": (
        _object(**dict.fromkeys(UNIFORM, _OPTIONAL)),
        f"an object with {', '.join(UNIFORM)}, each a finite number or null",
    ),
}
"""Field of a response → its rule."""


def _check(fields: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    for name, (holds, words) in rules.items():
        if name not in fields:
            raise ValueError(f"{where}: {name!r} is missing, which must be {words}.")
        if not holds(fields[name]):
            raise ValueError(f"{where}: {name!r} is {fields[name]!r:.80}, it must be {words}.")


def check_header(header: Mapping[str, Any], where: str) -> None:
    """Check the first line.

    Args:
        header: the object.
        where: the place, for the message.

    Raises:
        ValueError: it is the header of something else, of another version, or a field is wrong.
    """
    if header.get("kind") != "tokens" or "schema" not in header:
        raise ValueError(
            f'{where}: this is no file of token tables, whose first line has "kind": "tokens" '
            "and a schema: give one of the files in a run's folder tokens/."
        )
    if header["schema"] != SCHEMA:
        raise ValueError(
            f"{where}: schema {header['schema']!r:.40}, and this version of tokenrlhf reads schema "
            f"{SCHEMA}: read the file with the version that wrote it, or make the run again."
        )
    _check(header, _HEADER, where)
    _check(header, {name: rule for name, rule in _OPTIONS.items() if name in header}, where)
    meanings = header.get("columns")
    if not isinstance(meanings, Mapping) or not all(map(_is_text, meanings.values())):
        raise ValueError(f"{where}: 'columns' must be an object of names and their meanings.")
    missing = [name for name in (*COLUMNS, *WHOLE_COLUMNS) if name not in meanings]
    if missing:
        raise ValueError(f"{where}: 'columns' lacks {', '.join(missing)}: all are needed.")


def check_response(response: Mapping[str, Any], names: frozenset[str], where: str) -> int:
    """Check the line of a response.

    Args:
        response: the object.
        names: the columns that the header names.
        where: the place, for the message.

    Returns:
        Number of its tokens.

    Raises:
        ValueError: a field or a column is missing, unknown, of another length, or holds what its
            column can't hold.
    """
    _check(response, _RESPONSE, where)
    columns = response.get("columns")
    if not isinstance(columns, Mapping):
        raise ValueError(f"{where}: 'columns' is {columns!r:.80}, it must be an object of lists.")
    for name in sorted(names ^ set(columns)):
        what = "is missing" if name in names else "is not in the header's list"
        raise ValueError(f"{where}: the column {name!r} {what}.")
    for name, entries in columns.items():
        if not isinstance(entries, list):
            raise ValueError(f"{where}: the column {name!r} is {entries!r:.60}, it must be a list.")
    lengths = {name: len(entries) for name, entries in columns.items()}
    count = lengths["token"]
    for name, length in lengths.items():
        if length != count:
            raise ValueError(
                f"{where}: the column {name!r} has {length} entries and 'token' has {count}: every "
                "column needs one entry per token."
            )
    if not count:
        raise ValueError(f"{where}: a response has at least one token, this one has none.")
    for name, entries in columns.items():
        _check_column(name, entries, where)
    return count


def _check_column(name: str, entries: list[Any], where: str) -> None:
    if name in WHOLE_COLUMNS:
        for entry in entries:
            if not isinstance(entry, list) or len(entry) > TOP:
                raise ValueError(
                    f"{where}: an entry of {name!r} is {entry!r:.60}, it must be a list of at most "
                    f"{TOP}."
                )
        entries = [value for entry in entries for value in entry]
    holds, words = _rule_of(name)
    for value in entries:
        if not holds(value):
            raise ValueError(f"{where}: the column {name!r} holds {value!r:.60}, not {words}.")
    if name == "position" and entries and entries != [entries[0] + i for i in range(len(entries))]:
        raise ValueError(f"{where}: the column 'position' must count up by 1: {entries!r:.60}.")


def _rule_of(name: str) -> Rule:
    """The rule of the entries of a column; what no version knows yet may be number or text."""
    if name in _TEXTS:
        return _TEXT
    if name in _INTEGERS:
        return _INDEX
    if name == "clip":
        return lambda value: value is None or value in _CLIPS, "'high', 'low', '' or null"
    if name in COLUMNS or name in WHOLE_COLUMNS:
        return _OPTIONAL
    return (
        lambda value: value is None or _is_text(value) or _is_number(value),
        "a finite number, a text or null",
    )
