"""What a text looks like, in numbers that know nothing of its meaning.

A reward model that is fooled has most often learned one of these instead of what was meant, and a
policy that fools one moves along them. The first four are lengths. All others are shares or rates,
so that a longer text does not have more of them by being longer; that of repeated words alone grows
with the length by itself, as every text comes to use its words again.

Words are runs of letters and digits, joined by hyphens and apostrophes. A script without spaces has
one long word there, in which no word of a list is seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

__all__ = [
    "FEATURES",
    "SENTENCE_END",
    "WordLists",
    "describe_feature",
    "load_word_lists",
    "text_features",
]

FEATURES: dict[str, str] = {
    "tokens": "length in tokens",
    "characters": "length in characters",
    "words": "length in words",
    "sentences": "number of sentences",
    "punctuation": "punctuation, as a share of the characters, without exclamation and markup",
    "markup": "headings, list items, bold, code, links, tags, quotes and table rows per word",
    "exclamation": "exclamation marks per word",
    "upper_case": "capitals behind the first letter of a word, as a share of such letters",
    "repeated_words": "share of the words that the text has had before",
    "repeated_trigrams": "share of the three words in a row that the text has had before",
    "hedges": "words and phrases that hedge, per word",
    "confidence": "words and phrases that claim certainty, per word",
}
"""Feature → what it counts, in their order. A list of words of a user's adds one by its name."""

FOLDER = Path(__file__).resolve().parent / "word_lists"
"""The lists that ship with the package: `hedges.txt` and `confidence.txt`."""

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+|\n[^\S\n]*\n")
"""Marks at the end of a sentence with quotes and brackets behind them, or a blank line."""

_EXCLAMATIONS = "!！¡"
_MARKUP_CHARACTERS = frozenset("*#`_|<>~[]")
_MARKUP = re.compile(
    r"""
      ^\s{0,3}\#{1,6}\s          # a heading
    | ^\s*(?:[-*+•]|\d+[.)])\s   # an item of a list
    | ^\s*>                      # a quote
    | ^\s*\|.*\|\s*$             # a row of a table
    | ^\s*(?:```|~~~)            # a fence of code
    | `[^`\n]+`                  # code in a line
    | (\*{1,3}|_{2,3}|~~)(?=\S)[^\n]+?(?<=\S)\1     # emphasis
    | !?\[[^\]\n]*\]\([^)\n]*\)  # a link or a picture
    | </?[A-Za-z][^<>\n]*>       # a tag
    """,
    re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True)
class WordLists:
    """Lists of words and phrases by the name of the feature that counts them.

    Attributes:
        phrases: name → words or phrases.
    """

    phrases: Mapping[str, tuple[str, ...]]

    @cached_property
    def by_first_word(self) -> dict[str, dict[str, list[tuple[str, ...]]]]:
        """Name → first word → the phrases that begin with it, longest first."""
        table: dict[str, dict[str, list[tuple[str, ...]]]] = {}
        for name, phrases in self.phrases.items():
            table[name] = {}
            for words in sorted({tuple(_words(p)) for p in phrases}, key=len, reverse=True):
                table[name].setdefault(words[0], []).append(words)
        return table

    def count(self, name: str, words: Sequence[str]) -> int:
        """How many phrases of a list there are in lower-case words; of two that overlap, one."""
        table = self.by_first_word[name]
        number = place = 0
        while place < len(words):
            for phrase in table.get(words[place], ()):
                if tuple(words[place : place + len(phrase)]) == phrase:
                    number += 1
                    place += len(phrase)
                    break
            else:
                place += 1
        return number


def load_word_lists(path: str | Path | None = None) -> WordLists:
    """The lists of the package, with a user's in the place of those of the same name, or beside.

    A list is a text file NAME.txt with a word or phrase a line; what follows `#` is a comment. NAME
    is the feature: `hedges.txt` replaces the package's hedges, `brands.txt` adds a feature.

    Args:
        path: a file, or a folder of files; None: those of the package alone.

    Raises:
        ValueError: there is no such file, a list holds no word, or its name is that of a feature
            that is no list.
    """
    lists = {file.stem: _read(file) for file in sorted(FOLDER.glob("*.txt"))}
    if path is not None:
        lists |= {file.stem: _read(file) for file in _files_of(Path(path))}
    return WordLists({name: lists[name] for name in sorted(lists, key=_place)})


def _files_of(path: Path) -> list[Path]:
    said = f"word_lists={str(path)!r}"
    if "\0" in str(path) or not path.exists():
        raise ValueError(
            f"{said} does not exist: give a file NAME.txt with a word or phrase a line, or a "
            "folder of such files."
        )
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or (not path.is_dir() and path.suffix != ".txt"):
        raise ValueError(
            f"{said} holds no list of words: give a file NAME.txt, or a folder of such files; NAME "
            "is that of the feature."
        )
    for file in files:
        if file.stem in FEATURES and not (FOLDER / file.name).is_file():
            raise ValueError(
                f"{said}: {file.name} is named as the feature {file.stem!r}, which is no list of "
                "words: give it another name."
            )
    return files


def _place(name: str) -> tuple[int, str]:
    """Order of lists: those of `FEATURES` first."""
    names = list(FEATURES)
    return (names.index(name) if name in FEATURES else len(names), name)


def _read(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"word_lists: {str(file)!r} is no UTF-8: save it as plain text."
        ) from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    phrases = tuple(line for line in lines if _words(line))
    if not phrases:
        raise ValueError(
            f"word_lists: {str(file)!r} holds no word: write a word or phrase a line, or take the "
            "file away."
        )
    return phrases


def describe_feature(name: str) -> str:
    """What a feature counts, in words."""
    return FEATURES.get(name, f"words and phrases of the list {name!r}, per word")


def text_features(
    texts: Sequence[str],
    token_counts: Sequence[int] | np.ndarray | None = None,
    word_lists: WordLists | None = None,
) -> dict[str, np.ndarray]:
    """Feature → (B,) float64, for B texts: those of `FEATURES`, then those of added lists.

    Args:
        texts: B of them, of responses alone, without their prompts.
        token_counts: (B,) lengths in tokens; None leaves the feature `tokens` out.
        word_lists: of `load_word_lists`; None: those of the package.

    Raises:
        ValueError: there are not as many lengths as texts.
    """
    if token_counts is not None and len(token_counts) != len(texts):
        raise ValueError(
            f"token_counts has {len(token_counts)} lengths for {len(texts)} texts: give one each."
        )
    bundled = _bundled()
    lists = bundled if word_lists is None else word_lists
    rows = [_features_of(text, lists) for text in texts]
    names = [name for name in FEATURES if name != "tokens" and name not in bundled.phrases]
    columns = {
        name: np.array([row[name] for row in rows], dtype=np.float64)
        for name in [*names, *lists.phrases]
    }
    if token_counts is None:
        return columns
    return {"tokens": np.asarray(token_counts, dtype=np.float64), **columns}


@cache
def _bundled() -> WordLists:
    return load_word_lists()


def _features_of(text: str, lists: WordLists) -> dict[str, float]:
    words = _words(text)
    per_word = 1 / max(1, len(words))
    exclamations = sum(text.count(mark) for mark in _EXCLAMATIONS)
    return {
        "characters": len(text),
        "words": len(words),
        "sentences": _sentences(text),
        "punctuation": _punctuation(text) / max(1, len(text)),
        "markup": sum(1 for _ in _MARKUP.finditer(text)) * per_word,
        "exclamation": exclamations * per_word,
        "upper_case": _upper_case(text),
        "repeated_words": _repeated(words, 1),
        "repeated_trigrams": _repeated(words, 3),
        **{name: lists.count(name, words) * per_word for name in lists.phrases},
    }


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def _sentences(text: str) -> int:
    """Parts with a letter or a digit, between ends of sentences and blank lines."""
    return sum(_WORD.search(part) is not None for part in SENTENCE_END.split(text))


def _punctuation(text: str) -> int:
    """Characters that are punctuation, without exclamation and markup."""
    return sum(
        number
        for character, number in Counter(text).items()
        if unicodedata.category(character).startswith("P")
        and character not in _EXCLAMATIONS
        and character not in _MARKUP_CHARACTERS
    )


def _upper_case(text: str) -> float:
    """0 for ordinary text and for Titles Like This, 1 where all is in capitals."""
    letters = [c for word in _WORD.findall(text) for c in word[1:] if c.isalpha()]
    return sum(c.isupper() for c in letters) / max(1, len(letters))


def _repeated(words: Sequence[str], n: int) -> float:
    """1 − different n-grams / n-grams; 0 for a text that is shorter than one."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
