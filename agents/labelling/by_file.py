"""Labels from a file in which people have filled them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.labelling.pair_file import PairRow, as_label
from tokenenv.data import read_rows

__all__ = ["FileLabels", "label_by_file"]


@dataclass(frozen=True, slots=True)
class FileLabels:
    """What a file of labels has done.

    Attributes:
        labelled: the rows with a label from it, by their index.
        without_label: its rows in which none is filled in.
        unknown: its rows whose pair is not among the pairs.
    """

    labelled: dict[int, PairRow]
    without_label: int
    unknown: int


def label_by_file(rows: Sequence[PairRow], path: Path) -> FileLabels:
    """The rows for which a file has a label.

    Its rows are found again by their texts, in either order; the labels are turned then.

    Args:
        rows: the pairs.
        path: a file with the columns `prompt`, `response_a`, `response_b` and `label`.

    Raises:
        ValueError: it can't be read, a label is none, a pair has two different ones, or no row of
            it is one of the pairs.
    """
    by_key: dict[tuple[str, str, str], list[int]] = {}
    for index, row in enumerate(rows):
        by_key.setdefault(_key(row.prompt, row.response_a, row.response_b), []).append(index)
    labelled: dict[int, PairRow] = {}
    places: dict[int, str] = {}
    count = without_label = unknown = 0
    for given in read_rows(path, what="labels"):
        count += 1
        fields = given.fields
        missing = [n for n in ("prompt", "response_a", "response_b", "label") if n not in fields]
        if missing:
            raise ValueError(
                f"labels: {given.where} has no field {missing[0]!r}: keep the columns of the file "
                "of pairs, and fill in 'label' with a, b or tie."
            )
        try:
            label = as_label(fields["label"])
        except ValueError as error:
            raise ValueError(f"labels: {given.where}: {error}.") from None
        if label is None:
            without_label += 1
            continue
        found = _find(by_key, fields, label)
        unknown += not found
        for index, of_row in found:
            if index in labelled and labelled[index].label != of_row:
                raise ValueError(
                    f"labels: {given.where} says otherwise than {places[index]} about the same "
                    "pair: decide on one, and leave the other row out."
                )
            labelled[index] = rows[index].labelled(of_row, "file", skipped=False)
            places[index] = given.place
    if count and not labelled and unknown:
        raise ValueError(
            f"labels={str(path)!r}: none of its {count:,} rows is one of the pairs: their texts "
            "must be as they are in the file of pairs, spaces included."
        )
    return FileLabels(labelled, without_label, unknown)


def _find(
    by_key: dict[tuple[str, str, str], list[int]], fields: dict[str, Any], label: str
) -> list[tuple[int, str]]:
    """The pairs that a row is about, each with its label."""
    prompt, a, b = (fields[name] for name in ("prompt", "response_a", "response_b"))
    turned = {"a": "b", "b": "a", "tie": "tie"}[label]
    straight = [(index, label) for index in by_key.get(_key(prompt, a, b), ())]
    crossed = [(index, turned) for index in by_key.get(_key(prompt, b, a), ())]
    return straight or crossed


def _key(prompt: Any, a: Any, b: Any) -> tuple[str, str, str]:
    """What tells a pair from others, a conversation as JSON: a cell of CSV holds it so."""
    if not isinstance(prompt, str):
        prompt = json.dumps([dict(message) for message in prompt])
    elif prompt.lstrip().startswith("[{"):
        try:
            prompt = json.dumps(json.loads(prompt))
        except ValueError:
            pass
    return prompt, str(a), str(b)
