"""Edits of a response that keep its meaning: what a policy could do without answering better.

A response may begin in the middle of a sentence that its prompt began, and may have been cut off:
edits that add or wrap sentences touch whole ones alone, where there are any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from agents.reward_quality.text_features import SENTENCE_END

__all__ = ["EDITS", "SENTENCES", "Sentences", "edit", "load_sentences"]

SENTENCES = ("padding", "openers")
"""The lists of sentences that edits take from."""

FOLDER = Path(__file__).resolve().parent / "sentences"

Sentences = Mapping[str, tuple[str, ...]]
"""List of `SENTENCES` → its sentences."""


def load_sentences(path: str | Path | None = None) -> Sentences:
    """The sentences that edits add: a user's in the place of the package's.

    Args:
        path: `padding.txt` or `openers.txt`, with a sentence a line, or a folder with one or both;
            what follows `#` is a comment. None: the package's.

    Raises:
        ValueError: there is no such file, or it holds no sentence.
    """
    sentences = {name: _read(FOLDER / f"{name}.txt") for name in SENTENCES}
    if path is None:
        return sentences
    path = Path(path)
    said = f"probe_sentences={str(path)!r}"
    names = " or ".join(f"{name}.txt" for name in SENTENCES)
    if "\0" in str(path) or not path.exists():
        raise ValueError(f"{said} does not exist: give a file {names}, or a folder with them.")
    files = [path] if not path.is_dir() else [path / f"{name}.txt" for name in SENTENCES]
    files = [file for file in files if file.stem in SENTENCES and file.is_file()]
    if not files or any(file.suffix != ".txt" for file in files):
        raise ValueError(f"{said} is neither a file {names} nor a folder with one of them.")
    return {**sentences, **{file.stem: _read(file) for file in files}}


def _read(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"probe_sentences: {str(file)!r} is no UTF-8: save it as plain text."
        ) from error
    sentences = tuple(filter(None, (line.partition("#")[0].strip() for line in lines)))
    if not sentences:
        raise ValueError(
            f"probe_sentences: {str(file)!r} holds no sentence: write one a line, or take the file "
            "away."
        )
    return sentences


def edit(name: str, prompt: str, response: str, sentences: Sentences, number: int = 0) -> str:
    """The response with an edit of `EDITS`.

    Args:
        name: of the edit.
        prompt: the text before the response; whether it ends within a sentence decides where the
            response's first sentence begins.
        response: text.
        sentences: of `load_sentences`.
        number: of the response; which of the sentences it gets.
    """
    return EDITS[name](prompt, response, sentences, number)


def _whole_sentences(prompt: str, response: str) -> list[tuple[int, int]]:
    """Start and end of every sentence that begins and ends in the response."""
    ends = [match.end() for match in SENTENCE_END.finditer(response)]
    starts = [0, *ends][: len(ends)]
    places = [
        (start + len(part) - len(part.lstrip()), start + len(part.rstrip()))
        for start, end in zip(starts, ends, strict=True)
        if re.search(r"\w", part := response[start:end])
    ]
    first = re.search(r"[^\W\d_]", response)
    begins_inside = prompt.rstrip()[-1:].isalnum() and first is not None and first[0].islower()
    return places[1:] if begins_inside else places


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip())


def _insert(text: str, place: int, sentence: str) -> str:
    """A sentence of its own at a place between sentences, with spaces around it where needed."""
    before, after = text[:place], text[place:]
    left = "" if not before or before[-1].isspace() else " "
    right = "" if not after or after[0].isspace() else " "
    return f"{before}{left}{sentence}{right}{after}"


def _pick(sentences: Sentences, name: str, number: int) -> str:
    return sentences[name][number % len(sentences[name])]


def _pad(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    whole = _whole_sentences(prompt, response)
    place = whole[-1][1] if whole else len(response.rstrip())
    return _insert(response, place, _pick(sentences, "padding", number))


def _repeat(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    whole = _whole_sentences(prompt, response)
    if not whole:
        return _insert(response, len(response.rstrip()), response.strip())
    start, end = whole[-1]
    return _insert(response, end, response[start:end])


def _open(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    whole = _whole_sentences(prompt, response)
    place = whole[0][0] if whole else _leading(response)
    return _insert(response, place, _pick(sentences, "openers", number))


def _mark_up(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    """Every whole sentence an item of a list; bold, where there is none."""
    whole = _whole_sentences(prompt, response)
    if not whole:
        text = response.strip()
        return response.replace(text, f"**{text}**", 1) if text else response
    parts, done = [], 0
    for start, end in whole:
        parts += [response[done:start].rstrip(" "), "\n- ", response[start:end]]
        done = end
    listed = "".join([*parts, response[done:]])
    return listed if prompt else listed.lstrip("\n")


def _raise_case(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    return response.upper()


def _exclaim(prompt: str, response: str, sentences: Sentences, number: int) -> str:
    """`!` for every full stop that ends a sentence; one at the end, where there is none."""
    exclaimed = SENTENCE_END.sub(lambda end: re.sub(r"[.。…]+", "!", end[0]), response)
    return exclaimed if exclaimed != response else f"{response.rstrip()}!"


EDITS: dict[str, Callable[[str, str, Sentences, int], str]] = {
    "padding": _pad,
    "repetition": _repeat,
    "opener": _open,
    "markup": _mark_up,
    "upper_case": _raise_case,
    "exclamation": _exclaim,
}
"""Edit → a function of prompt, response, sentences and the response's number."""
