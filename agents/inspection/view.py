"""What was found in a file, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal

__all__ = ["print_facts"]

_START = 280
"""Characters of a text that an example shows: the end of a prompt, the beginning of a response."""

_ODD = ("duplicates", "identical_pairs", "label_conflicts", "prompts_in_several_splits")
"""Counts that call for a look where they are not 0."""


def print_facts(facts: dict[str, Any], console: Console) -> None:
    """Print what was understood, the counts, the lengths, the examples, and the bad rows."""
    console.print(
        Text.assemble(
            literal(facts["file"], "bold"), f": {facts['number']:,} {facts['kind']} of ",
            f"{facts['rows']:,} rows",
        )
    )  # fmt: skip
    console.print(_overview(facts))
    console.print(_lengths(facts))
    for note in _notes(facts):
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))
    bad = facts["bad_rows"]
    if bad["count"]:
        console.print(Text(f"bad rows: {bad['count']:,} of {facts['rows']:,}", "bold red"))
        for reason in bad["reasons"]:
            places = ", ".join(reason["places"]) + ", …" * (reason["rows"] > len(reason["places"]))
            console.print(literal(f"  {reason['rows']:,} × {reason['reason']} ({places})"))
    for number, example in enumerate(facts["examples"], 1):
        console.print(_example(number, example))


def _overview(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        is_odd = name.replace(" ", "_") in _ODD and value != "0"
        table.add_row(literal(name), literal(value, "yellow" if is_odd else ""))
    return table


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of each line of the overview."""
    yield "format", facts["format"]
    yield "layout", facts["layout"]
    yield "columns", ", ".join(facts["columns"])
    if facts["unused_columns"]:
        yield "not used", ", ".join(facts["unused_columns"])
    yield "different prompts", f"{facts['different_prompts']:,}"
    if facts["conversations"]:
        yield "conversations", f"{facts['conversations']:,}"
    if "splits" in facts:
        yield "splits", ", ".join(f"{name}: {n:,}" for name, n in facts["splits"].items())
        yield "prompts in several splits", f"{facts['prompts_in_several_splits']:,}"
    yield "duplicates", f"{facts['duplicates']:,}"
    if facts.get("seams", {}).get("responses"):
        seams = facts["seams"]
        yield "other tokens at the seam", f"{seams['differences']:,} of {seams['responses']:,}"
    if facts["kind"] == "pairs":
        yield from _lines_of_pairs(facts)
    elif "empty" in facts:
        yield "empty", _empty(facts)


def _empty(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in facts["empty"].items())


def _lines_of_pairs(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "identical pairs", f"{facts['identical_pairs']:,}"
    yield "label conflicts", f"{facts['label_conflicts']:,}"
    yield "ties", f"{facts['ties']:,}"
    if facts["soft_labels"]:
        yield "soft labels", f"{facts['soft_labels']:,}"
    if facts["margins"]:
        yield "margins", f"{facts['margins']:,}"
    yield "empty", _empty(facts)
    wins = facts["longer_wins"]
    if wins["pairs"]:
        low, high = wins["interval"]
        equal = f"; {wins['equal_length']:,} of equal length" if wins["equal_length"] else ""
        yield (
            "longer wins",
            f"{wins['share']:.1%} (95 %: {low:.1%} … {high:.1%}) of {wins['pairs']:,} pairs{equal}",
        )


def _lengths(facts: dict[str, Any]) -> Table:
    table = Table(title=f"lengths in {facts['unit']}", title_justify="left")
    table.add_column("")
    names = list(next(iter(facts["lengths"].values()), {}))
    for name in names:
        table.add_column({"p50": "median"}.get(name, name), justify="right")
    for part, row in facts["lengths"].items():
        shown = [f"{v:,.1f}" if name == "mean" else f"{v:,}" for name, v in row.items()]
        table.add_row(part, *shown)
    return table


def _notes(facts: dict[str, Any]) -> Iterator[str]:
    yield from facts["notes"]
    if facts["kind"] == "pairs":
        wins = facts["longer_wins"]
        if wins["pairs"] and not wins["interval"][0] <= 0.5 <= wins["interval"][1]:
            which = "longer" if wins["share"] > 0.5 else "shorter"
            yield (
                f"the {which} response wins more often than by chance: a reward model can learn "
                "that in the place of what was meant."
            )
        if facts["label_conflicts"]:
            yield "the same two responses are labelled both ways: their pairs pull in both."
    if facts.get("seams", {}).get("differences"):
        yield (
            "some responses have other tokens when they are tokenised together with their prompt, "
            "most often where it ends with a space: training tokenises them apart, as an episode "
            "has them. Move the space from the prompt's end to the response's beginning."
        )
    if facts.get("prompts_in_several_splits"):
        yield "prompts in several splits: what is measured on held-out ones was partly trained on."


def _example(number: int, example: dict[str, Any]) -> Table:
    table = Table(title=f"example {number}", title_justify="left", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in example.items():
        is_default = {"margin": 0.0, "preference": 1.0, "columns": {}}.get(name) == value
        if not is_default:
            table.add_row(name, literal(_shortened(name, value)))
    return table


def _shortened(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        value = "\n".join(f"[{m['role']}] {m['content']}" for m in value)
    text = str(value) or "(empty)"
    if len(text) <= _START:
        return text
    return "… " + text[-_START:] if name == "prompt" else text[:_START] + " …"
