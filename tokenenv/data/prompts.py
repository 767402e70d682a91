"""Prompts from files: one per line of text, or a column, as text or as messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenenv.data.messages import Message
from tokenenv.data.reading import OpenedFile, ReadReport, good_rows, open_file
from tokenenv.data.turns import Turns, as_messages, as_turns, is_list
from tokenenv.tasks import SPLITS, check_split

__all__ = [
    "EVAL_EVERY",
    "Prompt",
    "iterate_prompts",
    "read_prompt_rows",
    "read_prompts",
    "split_of",
]

EVAL_EVERY = 10
"""Without a `"split"` field, every tenth prompt of a file is held out for evaluation."""

_LAYOUTS = (
    "Prompts are the lines of a text, or a column 'prompt' or 'messages' of a table, with 'split' "
    "if wanted."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an episode starts from, and what else its row holds.

    Attributes:
        content: a text, or the messages of a conversation, to which the response is the next turn.
        columns: the other fields of its row, by name; reward functions ask for them.
    """

    content: str | tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path, split: str) -> list[str]:
    """The prompts of one split of a file, all of them texts; otherwise as `read_prompt_rows`.

    Raises:
        ValueError: as `read_prompt_rows`, or a prompt is a list of messages.
    """
    texts = []
    for prompt in read_prompt_rows(path, split):
        if not isinstance(prompt.content, str):
            raise ValueError(
                f"prompts file {path} holds conversations: read_prompt_rows gives them, texts are "
                "wanted here."
            )
        texts.append(prompt.content)
    return texts


def read_prompt_rows(
    path: str | Path,
    split: str,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    report: ReadReport | None = None,
) -> list[Prompt]:
    """The prompts of one split of a file, with the other columns of their rows.

    A table (JSON Lines, JSON, CSV, TSV, Parquet, `datasets`) has a column `prompt`, of text or of
    messages that end with a turn to be answered; or `messages`, whole conversations, of which the
    assistant's turns at the end are left out. A `split`, if there is one, is `"train"` or `"eval"`.
    Of plain text every line is a prompt; blank lines are skipped. Where no row names a split, every
    tenth prompt is held out as `"eval"`; a file of fewer than ten prompts serves whole as both.

    Args:
        path: a file of any format that is read, a folder of `datasets`, or a hub id.
        split: which part.
        columns: what columns mean → their names in the file: `{"prompt": "question"}`. Other names
            than `prompt`, `messages` and `split` rename columns for the reward functions.
        skip_bad: whether to go on without rows that can't be used.
        report: filled in with what was understood.

    Raises:
        ValueError: the file is missing or empty, has no prompts, rows can't be used (all are
            counted, and the first ones named), or the split holds no prompt.
    """
    check_split(split)
    rows = list(iterate_prompts(path, columns, skip_bad, report))
    if any(named is not None for _, named in rows):
        prompts = [prompt for prompt, named in rows if (named or "train") == split]
    elif len(rows) < EVAL_EVERY:
        prompts = [prompt for prompt, _ in rows]
    else:
        prompts = [prompt for index, (prompt, _) in enumerate(rows) if split_of(index) == split]
    if not prompts:
        raise ValueError(f"prompts file {path} has no prompt whose 'split' is {split!r}.")
    return prompts


def iterate_prompts(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    report: ReadReport | None = None,
) -> Iterator[tuple[Prompt, str | None]]:
    """The prompts of a file, each with the split that its row names, one at a time.

    Raises:
        ValueError: as `read_prompt_rows`, which has the same arguments; for rows that can't be
            used, at the end of the file.
    """
    opened = open_file(path, columns, None, skip_bad, report, "prompts")
    column = _column_of(opened)
    opened.report.layout = f"prompts in {column!r}" if column != "text" else "a prompt per line"
    return good_rows(opened, lambda fields: [_prompt_of(fields, column, opened.report)])


def _column_of(opened: OpenedFile) -> str:
    """The column that holds the prompts."""
    if "prompt" in opened.names:
        return "prompt"
    if opened.is_text:
        return "text"
    if "messages" in opened.names:
        return "messages"
    raise opened.missing("prompt", _LAYOUTS)


def split_of(index: int) -> str:
    """The split of a prompt of a file that names none, by its place from 0."""
    return "eval" if index % EVAL_EVERY == EVAL_EVERY - 1 else "train"


def _prompt_of(
    fields: dict[str, Any], column: str, report: ReadReport
) -> tuple[Prompt, str | None]:
    """A prompt, and the split that its row names."""
    if column not in fields:
        raise ValueError(f"the field {column!r} is missing")
    content = _content(fields[column], column, report)
    named = fields.get("split")
    if named is not None and (not isinstance(named, str) or named not in SPLITS):
        raise ValueError(f"'split' is {named!r:.60}, it must be one of {', '.join(SPLITS)}")
    more = {name: value for name, value in fields.items() if name not in (column, "split")}
    return Prompt(content, more), named


def _content(value: Any, column: str, report: ReadReport) -> Turns:
    if column == "messages":
        if not is_list(value):
            raise ValueError(f"the field 'messages' is {value!r:.60}, it must be a list")
        messages = as_messages(value, column)
        if messages[-1]["role"] == "assistant":
            report.count(
                "conversations with an answer at their end, which is no part of the prompt"
            )
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise ValueError("'messages' has no turn that could be answered")
        return messages
    content = as_turns(value, column)
    if isinstance(content, str):
        if not content.strip():
            raise ValueError("the prompt is empty")
    elif content[-1]["role"] == "assistant":
        raise ValueError(
            "the prompt ends with an assistant turn, and nothing is left to be answered: leave "
            "that turn out, or call the column 'messages'"
        )
    return content
