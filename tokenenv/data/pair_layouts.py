"""Layouts of preference pairs: from the fields of a row to pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenenv.data.implicit_prompts import ASSISTANT, HUMAN, split_dialogues, split_messages
from tokenenv.data.labels import (
    margin_of,
    number,
    preference_of,
    probability,
    stopped_of,
)
from tokenenv.data.preference_pair import PreferencePair
from tokenenv.data.reading import FileFault, OpenedFile, ReadReport
from tokenenv.data.turns import Turns, as_turns, is_list, join_turns, response_of

__all__ = ["MEANINGS", "RATINGS", "Layout", "Rated", "find_layout", "pairs_of_ratings"]

MEANINGS = frozenset(
    [
        *("prompt", "chosen", "rejected", "margin", "preference", "response_a", "response_b"),
        *("finish_a", "finish_b", "label", "winner", "responses", "ratings", "response", "rating"),
    ]
)
"""What a column of pairs can mean."""

RATINGS = ("all", "best-worst")
"""Which responses to a prompt become pairs, where several have ratings."""

_LABELS = ("preference", "winner", "label")
_LISTS = (("responses", "completions"), ("ratings", "scores", "rewards"))
_LONG = (("response", "completion", "answer", "output"), ("rating", "score", "reward"))

_LAYOUTS = (
    "Pairs are 'chosen' and 'rejected', with 'prompt' or whole dialogues that begin alike; "
    "'response_a', 'response_b' and 'preference', 'winner' or 'label'; 'prompt', 'responses' and "
    "'ratings'; or 'prompt', 'response' and 'rating', one response per row."
)

Fields = dict[str, Any]


class Rated(NamedTuple):
    """A response, its rating, and what its row names as its split."""

    answer: Turns
    rating: float
    split: Any = None


class Layout:
    """How the rows of a file hold pairs.

    Attributes:
        name: for people.
        used: the columns that it reads.
        parse: the fields of a row → its pairs; None where rows hold one response each.
        columns: of the response and of its rating, in that case.
    """

    def __init__(
        self,
        name: str,
        used: Sequence[str],
        parse: Callable[[Fields], list[PreferencePair]] | None = None,
        columns: tuple[str, str] = ("", ""),
    ) -> None:
        self.name, self.used, self.parse, self.columns = name, set(used), parse, columns


def find_layout(opened: OpenedFile, ratings: str) -> Layout:
    """The layout of a file by the columns of its first rows.

    Raises:
        ValueError: there is none; the nearest column is named.
    """
    names = set(opened.names)
    if {"chosen", "rejected"} <= names:
        return _chosen_rejected(opened)
    if {"response_a", "response_b"} <= names:
        return _labelled(opened)
    listed = [_one_of(opened, options) for options in _LISTS]
    if all(listed):
        _need_prompt(opened)
        return _rated(opened, listed[0], listed[1], ratings)
    single = [_one_of(opened, options) for options in _LONG]
    if all(single):
        _need_prompt(opened)
        name = "prompt, response and rating, one response per row"
        return Layout(name, ["prompt", *single], columns=(single[0], single[1]))
    if opened.is_text:
        raise ValueError(f"{opened.file} is plain text, which has no columns. {_LAYOUTS}")
    wanted = _nearest(names)
    raise opened.missing(wanted, _LAYOUTS)


def _one_of(opened: OpenedFile, options: Sequence[str]) -> str:
    """The one of some columns that the file has, "" for none; one that the user named comes first.

    Raises:
        ValueError: it has several.
    """
    named = [name for name in options if name in opened.columns]
    present = named or [name for name in options if name in opened.names]
    if len(present) > 1:
        raise ValueError(
            f"{opened.file} has several columns that may be the {options[0]}, "
            f"{', '.join(map(repr, present))}: say which, as columns={{{options[0]!r}: "
            f"{present[0]!r}}} (--columns {options[0]}={present[0]})."
        )
    return present[0] if present else ""


def _need_prompt(opened: OpenedFile) -> None:
    if "prompt" not in opened.names:
        raise opened.missing("prompt", _LAYOUTS)


def _nearest(names: set[str]) -> str:
    """The first column that is missing of the layout of which most is there."""
    layouts = (
        ("chosen", "rejected"),
        ("response_a", "response_b"),
        ("ratings", "responses"),
        ("rating", "response"),
    )
    best = max(layouts, key=lambda layout: len(names & set(layout)))
    return next((name for name in best if name not in names), "chosen")


def _prompt_and_responses(
    fields: Fields, columns: Sequence[str], has_prompt: bool, report: ReadReport
) -> tuple[Turns, list[Turns]]:
    """The prompt of a row, written down or implicit, and its responses."""
    for name in (*(("prompt",) * has_prompt), *columns):
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
    responses = {name: as_turns(fields[name], name) for name in columns}
    if not has_prompt and "prompt" in fields:
        raise FileFault(
            "it has a 'prompt', which the first rows of the file have not, so that theirs is taken "
            "for implicit: give every row one, or none"
        )
    if has_prompt:
        return join_turns(as_turns(fields["prompt"], "prompt"), responses)
    return _implicit(responses, report)


def _implicit(responses: Mapping[str, Turns], report: ReadReport) -> tuple[Turns, list[Turns]]:
    """What two responses have in common as their prompt, and what follows it in each."""
    (name_a, a), (name_b, b) = responses.items()
    if isinstance(a, str) and isinstance(b, str):
        prompt, *texts = split_dialogues(a, b)
        if any(HUMAN in text or ASSISTANT in text for text in texts):
            report.count(
                "dialogues that part before their last turn: their responses hold several turns"
            )
        if not prompt:
            report.count("texts without a common word at their beginning: their prompt is empty")
        return prompt, list(texts)
    if isinstance(a, str) or isinstance(b, str):
        raise ValueError(f"one of {name_a!r} and {name_b!r} is text, the other a list of messages")
    messages, *rests = split_messages(a, b)
    return messages, [
        response_of(rest, name) for rest, name in zip(rests, (name_a, name_b), strict=True)
    ]


def _chosen_rejected(opened: OpenedFile) -> Layout:
    has_prompt = "prompt" in opened.names
    is_text = opened.format.name == "csv"
    margins = _margin_reader(opened, is_text)

    def parse(fields: Fields) -> list[PreferencePair]:
        prompt, (chosen, rejected) = _prompt_and_responses(
            fields, ("chosen", "rejected"), has_prompt, opened.report
        )
        preference = 1.0
        if "preference" in fields:
            value = fields["preference"]
            preference = probability(value, "preference", "'chosen'", is_text)
        return [PreferencePair(prompt, chosen, rejected, margins(fields), preference)]

    name = "chosen and rejected, " + ("with their prompt" if has_prompt else "prompt implicit")
    return Layout(name, ["prompt", "chosen", "rejected", "margin", "preference"], parse)


def _margin_reader(opened: OpenedFile, is_text: bool) -> Callable[[Fields], float]:
    """What gives the margin of a row: a column, or the difference of two where asked for."""
    source = opened.columns.get("margin", "margin")
    if "margin" in opened.names or "margin" not in opened.columns:
        if {"score_chosen", "score_rejected"} <= set(opened.names) - {"margin"}:
            opened.report.hints.append(
                "score_chosen and score_rejected are not used; to take their difference as the "
                "margin, say columns={'margin': 'score_chosen-score_rejected'} "
                "(--columns margin=score_chosen-score_rejected)."
            )
        return lambda fields: margin_of(fields.get("margin", 0.0), is_text)
    better, _, worse = (part.strip() for part in source.partition("-"))
    for name in (better, worse):
        if name not in opened.names:
            raise opened.missing(name, f"It is named by columns={{'margin': {source!r}}}.")

    def difference(fields: Fields) -> float:
        for name in (better, worse):
            if name not in fields:
                raise ValueError(f"the field {name!r} is missing")
        values = [number(fields[name], name, is_text) for name in (better, worse)]
        return margin_of(values[0] - values[1], False)

    return difference


def _labelled(opened: OpenedFile) -> Layout:
    has_prompt = "prompt" in opened.names
    is_text = opened.format.name == "csv"
    label = _one_of(opened, _LABELS)
    if not label:
        raise opened.missing("label", _LAYOUTS)

    def parse(fields: Fields) -> list[PreferencePair]:
        if label not in fields:
            raise ValueError(f"the field {label!r} is missing")
        of_a = preference_of(fields[label], label)
        prompt, (a, b) = _prompt_and_responses(
            fields, ("response_a", "response_b"), has_prompt, opened.report
        )
        margin = margin_of(fields.get("margin", 0.0), is_text)
        whole_a, whole_b = (stopped_of(fields.get(n), n) for n in ("finish_a", "finish_b"))
        if of_a >= 0.5:
            return [PreferencePair(prompt, a, b, margin, of_a, whole_a, whole_b)]
        return [PreferencePair(prompt, b, a, margin, 1.0 - of_a, whole_b, whole_a)]

    used = ["prompt", "response_a", "response_b", label, "margin", "finish_a", "finish_b"]
    name = f"response_a, response_b and {label}" + ("" if has_prompt else ", prompt implicit")
    return Layout(name, used, parse)


def _rated(opened: OpenedFile, responses: str, column: str, ratings: str) -> Layout:
    def parse(fields: Fields) -> list[PreferencePair]:
        for name in ("prompt", responses, column):
            if name not in fields:
                raise ValueError(f"the field {name!r} is missing")
        texts, figures = fields[responses], fields[column]
        for name, value in ((responses, texts), (column, figures)):
            if not is_list(value):
                raise ValueError(f"the field {name!r} is {value!r:.60}, it must be a list")
        if len(texts) != len(figures):
            raise ValueError(f"{len(texts)} {responses} and {len(figures)} {column}")
        if len(texts) < 2:
            raise ValueError(f"a pair needs two {responses}, there is {len(texts)}")
        named = {f"{responses}[{i}]": as_turns(t, responses) for i, t in enumerate(texts)}
        prompt, answers = join_turns(as_turns(fields["prompt"], "prompt"), named)
        rated = [
            Rated(answer, number(figure, column, False))
            for answer, figure in zip(answers, figures, strict=True)
        ]
        return list(pairs_of_ratings(prompt, rated, ratings, opened.report))

    name = f"prompt, {responses} and {column}, {_described(ratings)}"
    return Layout(name, ["prompt", responses, column], parse)


def _described(ratings: str) -> str:
    return "all pairs" if ratings == "all" else "best against worst"


def pairs_of_ratings(
    prompt: Turns, rated: Sequence[Rated], ratings: str, report: ReadReport
) -> Iterator[PreferencePair]:
    """Pairs of responses to one prompt, the higher rating first.

    Equal ratings say that nobody preferred one to the other as far as the scale goes; on a scale
    of few steps most pairs are such. They are left out and counted, as are pairs of equal texts.

    Args:
        prompt: a text or messages.
        rated: responses and their ratings.
        ratings: `"all"` pairs, or the `"best-worst"`.
        report: counts what is left out, and has the split of the pair that was yielded last.
    """
    if ratings == "best-worst":
        couples = [(max(rated, key=lambda r: r.rating), min(rated, key=lambda r: r.rating))]
    else:
        couples = list(itertools.combinations(rated, 2))
    for a, b in couples:
        if a.rating == b.rating:
            report.count("pairs of equal ratings, left out")
        elif a.answer == b.answer:
            report.count("pairs of one response that was rated twice, left out")
        else:
            better, worse = (a, b) if a.rating > b.rating else (b, a)
            splits = (a.split, b.split)
            report.split = a.split if a.split == b.split else tuple(sorted(splits, key=str))
            yield PreferencePair(prompt, better.answer, worse.answer)
