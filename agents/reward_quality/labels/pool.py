"""A pool of pairs to choose from, and the reward models that choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.labelling.pair_file import PairRow, as_label
from tokenenv.data import Message, Row, as_prompt, check_columns, read_rows
from tokenenv.rewards import (
    PreferencePair,
    RewardModel,
    TokenPair,
    truncated_pairs,
)
from tokenenv.tasks import model_source

__all__ = ["Pool", "member_names", "read_pool", "tokens_of"]

_MEANINGS = ("prompt", "response_a", "response_b", "label")
_LABELLED = ("prompt", "chosen", "rejected")

Key = tuple[str, frozenset[str]]


@dataclass
class Pool:
    """Pairs without labels.

    Attributes:
        rows: the pairs.
        left_out: why a row is none of them → how many.
    """

    rows: list[PairRow] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, why: str) -> None:
        """Count a row that is no pair to choose."""
        self.left_out[why] = self.left_out.get(why, 0) + 1


def read_pool(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    exclude: Sequence[Path] = (),
    skip_bad: bool = False,
) -> Pool:
    """The pairs of a file that nobody has labelled, each once.

    Args:
        path: a file of any format that is read, with `prompt`, `response_a`, `response_b` and
            perhaps `label`, `id`, `finish_a` and `finish_b`.
        columns: what columns mean → their names in the file.
        exclude: files of pairs, of this layout or with `chosen` and `rejected`, that are left out.
        skip_bad: whether to go on without rows that can't be used.

    Raises:
        ValueError: a file can't be read, a row can't be used, or no pair is left.
    """
    names = {name: name for name in _MEANINGS} | check_columns(columns, _MEANINGS)
    known = {key for file in exclude for key in _keys_of(file)}
    pool, seen, number = Pool(), set(), 0
    for number, given in enumerate(read_rows(path, what="pool"), 1):
        try:
            row = _as_row(given.fields, names, number)
        except ValueError as error:
            if not skip_bad:
                why = str(error).rstrip(".")
                raise ValueError(
                    f"pool: {given.where}: {why}. Correct it, or pass --skip-bad."
                ) from None
            pool.leave_out("can't be used")
            continue
        key = _key(row.prompt, row.response_a, row.response_b)
        if row.label is not None or row.skipped:
            pool.leave_out("have a label already")
        elif row.response_a == row.response_b:
            pool.leave_out("have the same text twice")
        elif key in known:
            pool.leave_out("are in a file that was excluded")
        elif key in seen:
            pool.leave_out("stand there twice")
        else:
            seen.add(key)
            pool.rows.append(row)
    if not pool.rows:
        why = "; ".join(f"{count:,} {what}" for what, count in pool.left_out.items())
        raise ValueError(
            f"pool={str(path)!r} has no pair to choose: {f'of {number:,} rows ' if why else ''}"
            f"{why or 'it has no rows'}. Draw new ones with: tokenrlhf sample-pairs."
        )
    return pool


def _as_row(fields: Mapping[str, Any], names: Mapping[str, str], number: int) -> PairRow:
    """A row as a pair; ValueError without a place where it is none."""
    for meaning in _MEANINGS[:3]:
        if names[meaning] not in fields:
            there = ", ".join(map(repr, fields))
            raise ValueError(
                f"there is no column {names[meaning]!r} among {there:.200}: a pool has prompt, "
                "response_a and response_b (--columns prompt=… says how they are called)"
            )
    texts = []
    for meaning in ("response_a", "response_b"):
        value = fields[names[meaning]]
        if not isinstance(value, str):
            raise ValueError(f"the field {names[meaning]!r} is {value!r:.60}, not a text")
        texts.append(value)
    finishes = [fields.get(name) or "stop" for name in ("finish_a", "finish_b")]
    for name, finish in zip(("finish_a", "finish_b"), finishes, strict=True):
        if finish not in ("stop", "length"):
            raise ValueError(f"the field {name!r} is {finish!r:.60}, neither 'stop' nor 'length'")
    drawn = fields.get("drawn")
    return PairRow(
        id=str(fields.get("id") or f"{number}"),
        prompt=_prompt(fields[names["prompt"]]),
        response_a=texts[0],
        response_b=texts[1],
        finish_a=finishes[0],
        finish_b=finishes[1],
        label=as_label(fields.get(names["label"])),
        skipped=fields.get("skipped") is True,
        drawn=drawn if isinstance(drawn, dict) else None,
    )


def _prompt(value: Any) -> str | tuple[Message, ...]:
    """A text or messages; a cell of CSV holds these as JSON. An empty text is no prompt at all."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    return value if isinstance(value, str) else as_prompt(value, "the prompt").content


def _keys_of(path: Path) -> list[Key]:
    """What tells the pairs of a file that is left out from others."""
    keys = []
    for given in read_rows(path, what="exclude"):
        row: Row = given
        for layout in (_MEANINGS[:3], _LABELLED):
            if all(name in row.fields for name in layout):
                prompt, a, b = (row.fields[name] for name in layout)
                keys.append(_key(prompt, a, b))
                break
        else:
            raise ValueError(
                f"exclude: {row.where} has neither response_a and response_b nor chosen and "
                "rejected beside its prompt: give files of pairs."
            )
    return keys


def _key(prompt: Any, a: Any, b: Any) -> Key:
    if not isinstance(prompt, str):
        prompt = json.dumps([dict(message) for message in prompt], sort_keys=True)
    elif prompt.lstrip().startswith("[{"):
        try:
            prompt = json.dumps(json.loads(prompt), sort_keys=True)
        except ValueError:
            pass
    return prompt, frozenset((str(a), str(b)))


def tokens_of(
    rows: Sequence[PairRow], member: RewardModel, max_tokens: int | None, truncation: str
) -> list[TokenPair]:
    """The pairs as a reward model reads them, response a as the chosen one.

    Args:
        rows: the pairs.
        member: the reward model.
        max_tokens: of a prompt and a response; None: as many as it has positions for.
        truncation: `"error"` refuses longer ones; else the prompt loses its beginning.

    Raises:
        ValueError: a pair can't be read.
    """
    pairs = [
        PreferencePair(
            row.prompt,
            row.response_a,
            row.response_b,
            chosen_stopped=row.finish_a == "stop",
            rejected_stopped=row.finish_b == "stop",
        )
        for row in rows
    ]
    limit = member.max_tokens if max_tokens is None else min(max_tokens, member.max_tokens)
    return truncated_pairs(pairs, member, limit, "error" if truncation == "error" else "keep-end")[
        0
    ]


def member_names(names: Sequence[str]) -> list[str]:
    """The folders or hub ids of reward models, members of an ensemble's folder one by one.

    Raises:
        ValueError: there are fewer than two, or one stands there twice.
    """
    every: list[str] = []
    for name in names:
        folder = Path(str(model_source(name, "reward_model")))
        members = []
        if "\0" not in name and (folder / "member-1").is_dir():
            members = [
                p for p in folder.glob("member-*") if p.name.removeprefix("member-").isdigit()
            ]
        members.sort(key=lambda path: int(path.name.removeprefix("member-")))
        every += [str(path) for path in members] or [str(folder)]
    if len(every) < 2:
        raise ValueError(
            f"reward_models={' '.join(names)!r}: {len(every)} reward model can't contradict "
            "itself: give two or more, or a folder of an ensemble (tokenrlhf reward-model "
            "--members 4); or select at random (--by random)."
        )
    if len(set(every)) < len(every):
        raise ValueError(
            f"reward_models={' '.join(names)!r} names a reward model twice, which agrees with "
            "itself: give each once."
        )
    return every
