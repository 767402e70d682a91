"""`tokenrlhf data inspect`: read a file as training would, count, and show what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from agents.inspection.config import DataConfig
from agents.inspection.lengths import Counter, character_counts, token_counts
from agents.inspection.measures import ExampleMeasures, Measures, PairMeasures, PromptMeasures
from agents.inspection.seams import Seams
from agents.inspection.view import print_facts
from tokenenv.data import (
    ReadReport,
    guess_kind,
    iterate_pairs,
    iterate_prompts,
    parse_columns,
    read_examples,
)

__all__ = ["inspect_file", "run"]


_MEASURES: dict[str, Callable[[Counter, Seams | None], Measures[Any]]] = {
    "pairs": PairMeasures,
    "prompts": PromptMeasures,
    "examples": ExampleMeasures,
}


def run(config: DataConfig, console: Console) -> None:
    """Inspect a file and print what was found, as tables or as JSON.

    Raises:
        ValueError: the file can't be read, or none of its rows can be used.
    """
    facts = inspect_file(config)
    if config.json:
        console.out(json.dumps(facts, indent=2, ensure_ascii=True, default=str), highlight=False)
    else:
        print_facts(facts, console)


def inspect_file(config: DataConfig) -> dict[str, Any]:
    """What a file holds, for JSON; rows that can't be used are counted and left out.

    Raises:
        ValueError: as `run`.
    """
    columns = parse_columns(config.columns)
    counter, unit, seams = _counter(config)
    kind = guess_kind(config.file, columns) if config.kind == "auto" else config.kind
    report = ReadReport()
    measures = _MEASURES[kind](counter, seams)
    for item, split in _items(config, kind, columns, report):
        measures.add(item, split)
    return {
        "file": str(config.file),
        "kind": kind,
        "format": report.format,
        "layout": report.layout,
        "columns": report.columns,
        "unused_columns": report.unused,
        "rows": report.bad.rows,
        "bad_rows": {
            "count": report.bad.count,
            "reasons": [
                {"reason": reason, "rows": count, "places": places}
                for reason, (count, places) in report.bad.reasons.items()
            ],
        },
        "notes": [*(f"{what}: {n:,}." for what, n in report.counts.items()), *report.hints],
        "unit": unit,
        **measures.facts(),
    }


def _items(
    config: DataConfig, kind: str, columns: dict[str, str], report: ReadReport
) -> Iterator[tuple[Any, Any]]:
    """Everything in the file, each with the split that its row names."""
    if kind == "prompts":
        yield from iterate_prompts(config.file, columns, True, report)
    elif kind == "pairs":
        for pair in iterate_pairs(config.file, columns, True, config.ratings, report):
            yield pair, report.split
    else:
        for example in read_examples(config.file, columns, True, config.documents, report):
            yield example, report.split


def _counter(config: DataConfig) -> tuple[Counter, str, Seams | None]:
    """What counts, the unit that it counts in, and what looks at seams between tokens."""
    if config.tokenizer is None:
        return character_counts, "characters", None
    from tokenenv.models import check_source, load_tokenizer  # torch
    from tokenenv.tasks import model_source

    source = model_source(config.tokenizer, "reference")
    check_source(source, "tokenizer")
    tokenizer = load_tokenizer(source, "tokenizer")
    return token_counts(tokenizer), "tokens", Seams(tokenizer, config.tokenizer)
