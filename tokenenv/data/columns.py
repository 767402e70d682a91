"""Columns by what they mean: the user's own names for them, and guesses where names are near."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["check_columns", "missing_column", "parse_columns", "rename"]


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """`("prompt=question", "chosen=good")` → what a column means → its name in the file.

    Raises:
        ValueError: a text is no such pair, or one meaning stands twice.
    """
    columns: dict[str, str] = {}
    for text in texts:
        meaning, is_pair, name = text.partition("=")
        if not (is_pair and meaning.strip() and name.strip()):
            raise ValueError(
                f"columns={text!r}: give what a column means and its name in the file, as in "
                "prompt=question."
            )
        if meaning.strip() in columns:
            raise ValueError(f"columns={text!r}: {meaning.strip()!r} stands twice.")
        columns[meaning.strip()] = name.strip()
    return columns


def check_columns(
    columns: Any, known: Collection[str] | None, name: str = "columns"
) -> dict[str, str]:
    """A mapping of meanings to names; ValueError where it is none, or a meaning is not known.

    Args:
        columns: None for none.
        known: the meanings there are; None where any name may be given to a column.
        name: of the argument, for messages.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise ValueError(
            f"{name}={columns!r:.80} must say what columns mean, as in "
            '{"prompt": "question"}, or be None.'
        )
    for meaning, column in columns.items():
        if not (isinstance(meaning, str) and isinstance(column, str) and column.strip()):
            raise ValueError(
                f"{name}={{{meaning!r:.40}: {column!r:.40}}}: both must be names, as in "
                '{"prompt": "question"}.'
            )
        if known is not None and meaning not in known:
            near = difflib.get_close_matches(meaning, sorted(known), 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name}={{{meaning!r:.40}: {column!r:.40}}}: no column here means "
                f"{meaning!r:.40}, it can be {', '.join(sorted(known))}.{hint}"
            )
    names = list(columns.values())
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"{name}={dict(columns)!r:.200}: {twice!r:.40} stands for two columns.")
    return dict(columns)


def rename(fields: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a row under the names of what they mean."""
    if not columns:
        return fields
    moved = set(columns.values())
    renamed = {k: v for k, v in fields.items() if k not in moved and k not in columns}
    return {**{m: fields[name] for m, name in columns.items() if name in fields}, **renamed}


def missing_column(file: str, wanted: str, present: Iterable[str], why: str) -> ValueError:
    """The error that a column is missing, with those there are and the nearest of them.

    Args:
        file: where it is missing.
        wanted: what it means.
        present: the names there are.
        why: the layouts that are read, as a sentence.
    """
    names = list(present)
    near = difflib.get_close_matches(wanted.lower(), [n.lower() for n in names], 1, 0.6)
    meant = next((n for n in names if near and n.lower() == near[0]), None)
    shown = ", ".join(repr(n[:60]) for n in names[:12]) + ", …" * (len(names) > 12)
    hint = f" Did you mean {meant!r} (--columns {wanted}={meant})?" if meant else ""
    return ValueError(
        f"{file} has no column {wanted!r}; its columns are {shown or 'none'}.{hint} {why} Other "
        f'names are given by columns={{"{wanted}": …}} (--columns {wanted}=…).'
    )
