"""Preference pairs from files, in the layouts that people have them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenenv.data.labels import number
from tokenenv.data.messages import Message
from tokenenv.data.pair_layouts import (
    MEANINGS,
    RATINGS,
    Layout,
    Rated,
    find_layout,
    pairs_of_ratings,
)
from tokenenv.data.preference_pair import MOST_MARGIN, PreferencePair
from tokenenv.data.reading import OpenedFile, ReadReport, good_rows, open_file
from tokenenv.data.turns import Turns, as_turns, join_turns

__all__ = ["MOST_MARGIN", "PreferencePair", "iterate_pairs", "read_pairs"]


def read_pairs(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    ratings: str = "all",
    report: ReadReport | None = None,
) -> list[PreferencePair]:
    """The pairs of a file.

    Args:
        path: a file of any format that is read, a folder of `datasets`, or a hub id. Its rows hold
            `chosen` and `rejected`, with a `prompt` or as whole dialogues that begin alike;
            `response_a`, `response_b` and `preference`, `winner` or `label`; `prompt`, `responses`
            and `ratings`; or `prompt`, `response` and `rating`. Texts may be lists of messages.
        columns: what columns mean → their names in the file: `{"prompt": "question"}`.
        skip_bad: whether to go on without rows that can't be used.
        ratings: where several responses have ratings: `"all"` pairs, or the `"best-worst"`.
        report: filled in with what was understood, and how many rows were left out.

    Raises:
        ValueError: the file can't be read, has none of these layouts, has no pairs, or rows can't
            be used: all are counted, and the first ones named.
    """
    report = ReadReport() if report is None else report
    pairs = list(iterate_pairs(path, columns, skip_bad, ratings, report))
    if not pairs:
        why = " ".join(report.notes)
        raise ValueError(f"preference file {path} has no pair. {why}".rstrip())
    return pairs


def iterate_pairs(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    ratings: str = "all",
    report: ReadReport | None = None,
) -> Iterator[PreferencePair]:
    """The pairs of a file, one at a time, with the arguments of `read_pairs`.

    Memory stays flat over a file of any size, but for rows of one response each: their pairs come
    when the whole file has been read.

    Raises:
        ValueError: as `read_pairs`; for rows that can't be used, at the end of the file. After the
            first of them nothing is yielded any more, unless they are skipped.
    """
    if ratings not in RATINGS:
        raise ValueError(f"ratings={ratings!r:.60} must be one of {', '.join(map(repr, RATINGS))}.")
    opened = open_file(path, columns, MEANINGS, skip_bad, report, "pairs")
    layout = find_layout(opened, ratings)
    opened.report.layout = layout.name
    opened.report.unused = [name for name in opened.names if name not in layout.used]
    if layout.parse is not None:
        return good_rows(opened, layout.parse)
    return _grouped(opened, layout, ratings)


def _grouped(opened: OpenedFile, layout: Layout, ratings: str) -> Iterator[PreferencePair]:
    """The pairs of rows that hold one response each, by their prompt."""
    response, rating = layout.columns
    is_text = opened.format.name == "csv"

    def parse(fields: dict[str, Any]) -> list[tuple[Turns, Turns, float]]:
        for name in ("prompt", response, rating):
            if name not in fields:
                raise ValueError(f"the field {name!r} is missing")
        turns = {response: as_turns(fields[response], response)}
        prompt, (answer,) = join_turns(as_turns(fields["prompt"], "prompt"), turns)
        return [(prompt, answer, number(fields[rating], rating, is_text))]

    groups: dict[Any, tuple[Turns, list[Rated]]] = {}
    for prompt, answer, figure in good_rows(opened, parse):
        key = prompt if isinstance(prompt, str) else tuple(map(_key, prompt))
        rated = Rated(answer, figure, opened.report.split)
        groups.setdefault(key, (prompt, []))[1].append(rated)
    for prompt, responses in groups.values():
        if len(responses) < 2:
            opened.report.count("prompts with one response alone, which makes no pair")
        else:
            yield from pairs_of_ratings(prompt, responses, ratings, opened.report)


def _key(message: Message) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(message.items()))
