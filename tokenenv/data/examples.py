"""Examples of what a model is to write: documents, prompts with a response, conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenenv.data.reading import OpenedFile, ReadReport, good_rows, open_file
from tokenenv.data.row import BadRows, Row
from tokenenv.data.text_lines import numbered_lines, shown
from tokenenv.data.turns import Turns, as_messages, as_turns, is_list, join_turns, response_of

__all__ = ["Example", "read_examples"]

_RESPONSES = ("response", "completion", "answer", "output")
"""Columns that hold the response, where there is a prompt."""

_MEANINGS = frozenset(["text", "prompt", "messages", "response"])

_UNITS = {"lines": "line", "paragraphs": "paragraph", "whole": "file"}
"""Where a document of plain text ends, but for a marker → what it is then."""

_LAYOUTS = (
    "Examples are plain text, a column 'text', 'prompt' and 'response' (or 'completion', 'answer', "
    "'output'), or 'messages'."
)


@dataclass(frozen=True, slots=True)
class Example:
    """A response that is to be imitated.

    Attributes:
        prompt: a text, or the messages of a conversation; empty for a document.
        response: a text; messages where it is more than one turn, the first and the last of which
            are the assistant's.
    """

    prompt: Turns
    response: Turns


Parse = Callable[[dict[str, Any]], list[Example]]


def read_examples(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    documents: str = "lines",
    report: ReadReport | None = None,
) -> Iterator[Example]:
    """The examples of a file, one at a time.

    Args:
        path: a file of any format that is read, a folder of `datasets`, or a hub id.
        columns: what columns mean → their names in the file: `{"prompt": "question"}`.
        skip_bad: whether to go on without rows that can't be used.
        documents: where a document of plain text ends: `"lines"` (each line is one),
            `"paragraphs"` (at blank lines), `"whole"` (nowhere), or a marker such as
            `"<|endoftext|>"`, which belongs to no document.
        report: filled in with what was understood.

    Yields:
        Documents with an empty prompt; prompt and response; or, of a conversation, all turns
        before the assistant's first as the prompt, and the turns from there as the response.

    Raises:
        ValueError: the file can't be read, has none of these layouts, or, at its end, rows can't be
            used: all are counted, and the first ones named.
    """
    if not isinstance(documents, str) or not documents.strip():
        raise ValueError(
            f"documents={documents!r:.60} must be 'lines', 'paragraphs', 'whole', or the marker "
            "between documents, such as '<|endoftext|>'."
        )
    opened = open_file(path, columns, _MEANINGS, skip_bad, report, "path")
    if opened.format.name == "text":
        opened.report.layout = f"plain text, a document per {_UNITS.get(documents, documents)}"
        if documents == "lines":
            return good_rows(opened, _line)
        return good_rows(_by_documents(path, opened, documents), _document)
    layout, used, parse = _layout_of(opened)
    opened.report.layout = layout
    opened.report.unused = [name for name in opened.names if name not in used]
    return good_rows(opened, parse)


def _layout_of(opened: OpenedFile) -> tuple[str, set[str], Parse]:
    """The layout of a table, the columns it uses, and what makes examples of its rows."""
    names = opened.names
    conversation = next((name for name in ("messages", "conversations") if name in names), None)
    if conversation is not None:
        return "conversations", {conversation}, _conversation(conversation)
    if "prompt" in names:
        column = _response_column(opened)
        return "prompt and response", {"prompt", column}, _answered(column)
    if "text" in names:
        return "documents", {"text"}, _document
    wanted = "prompt" if any(name in names for name in _RESPONSES) else "text"
    raise opened.missing(wanted, _LAYOUTS)


def _response_column(opened: OpenedFile) -> str:
    present = [name for name in _RESPONSES if name in opened.names]
    if "response" in opened.columns or len(present) == 1:
        return "response" if "response" in opened.columns else present[0]
    if not present:
        raise opened.missing("response", _LAYOUTS)
    raise ValueError(
        f"{opened.file} has several columns that may be the response, "
        f"{', '.join(map(repr, present))}: say which, as columns={{'response': {present[0]!r}}} "
        f"(--columns response={present[0]})."
    )


def _document(fields: dict[str, Any]) -> list[Example]:
    text = fields.get("text")
    if not isinstance(text, str):
        raise ValueError(f"the field 'text' is {text!r:.60}, it must be a string")
    if not text.strip():
        raise ValueError("the field 'text' is empty")
    return [Example("", str(as_turns(text, "text")))]


def _answered(column: str) -> Parse:
    def parse(fields: dict[str, Any]) -> list[Example]:
        for name in ("prompt", column):
            if name not in fields:
                raise ValueError(f"the field {name!r} is missing")
        prompt = as_turns(fields["prompt"], "prompt")
        response = as_turns(fields[column], column)
        prompt, (response,) = join_turns(prompt, {column: response})
        return [Example(prompt, response)]

    return parse


def _conversation(column: str) -> Parse:
    def parse(fields: dict[str, Any]) -> list[Example]:
        value = fields.get(column)
        if not is_list(value):
            raise ValueError(f"the field {column!r} is {value!r:.60}, it must be a list")
        messages = as_messages(value, column)
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
        if first is None:
            raise ValueError(f"{column!r} has no turn of the assistant")
        if not first:
            raise ValueError(f"{column!r} begins with an assistant turn, which answers nothing")
        return [Example(messages[:first], response_of(messages[first:], column))]

    return parse


def _line(fields: dict[str, Any]) -> list[Example]:
    line = fields["text"].strip()
    if line.startswith("<|") and line.endswith("|>") and line.count("|") == 2:
        raise ValueError(
            f"the line is a marker between documents, {line!r:.40}: read the file with "
            f"documents={line!r:.40} (--documents)"
        )
    return _document(fields)


def _by_documents(path: str | Path, opened: OpenedFile, documents: str) -> OpenedFile:
    """The opened text with a row per document instead of one per line."""
    bad = opened.report.bad = BadRows(opened.report.bad.is_skipping)
    return dataclasses.replace(
        opened, rows=_document_rows(Path(path), opened.format.is_gzip, documents, bad)
    )


def _document_rows(path: Path, is_gzip: bool, documents: str, bad: BadRows) -> Iterator[Row]:
    pieces: list[str] = []
    first, broken = 1, ""

    def finished(after: int) -> Iterator[Row]:
        nonlocal pieces, first, broken
        text, place, fault = "".join(pieces).strip("\n"), f"line {first}", broken
        pieces, first, broken = [], after, ""
        if fault or text.strip():
            bad.rows += 1
            if fault:
                bad.add(place, fault)
            else:
                yield Row({"text": text}, shown(path), place)

    for number, line, fault in numbered_lines(path, is_gzip):
        if fault:
            broken = fault
            continue
        line = line.replace("\r\n", "\n")
        if documents == "paragraphs" and line.isspace():
            yield from finished(number + 1)
        elif documents in _UNITS or documents not in line:
            pieces.append(line)
        else:
            *ended, rest = line.split(documents)
            for piece in ended:
                pieces.append(piece)
                yield from finished(number)
            pieces.append(rest)
    yield from finished(0)
