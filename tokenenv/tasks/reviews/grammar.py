"""A seeded, unambiguous probabilistic grammar of short film reviews.

A review is one neutral opening sentence and one to three judgement sentences, each about a
different aspect of the film:

    ``We watched an old western at home. The cast was rather dull but great. I liked the songs.``

The grammar is a tree of three node types (:class:`Word`, :class:`Seq`, :class:`Choice`), built
once from the data tables below. Sampling, parsing, probability, entropy and counting all walk that
same tree. Because no string has two derivations, the entropy of the text equals the entropy of the
choices, so both are known exactly.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = [
    "ASPECTS",
    "SENTIMENT_WORDS",
    "GrammarSentence",
    "ParsedReview",
    "ParsedSentence",
    "count_reviews",
    "enumerate_openings",
    "enumerate_sentences",
    "parse_review",
    "review_entropy",
    "review_log_prob",
    "sample_review",
    "vocabulary",
]

# ---------------------------------------------------------------------------------------------
# Weighted grammar nodes
# ---------------------------------------------------------------------------------------------

Node: TypeAlias = "Word | Seq | Choice"


@dataclass(frozen=True)
class Word:
    """A terminal: fixed text, with a role and a value for the meaning of the sentence.

    Attributes:
        text: One or more words, separated by single spaces.
        role: "", "aspect", "adjective", "verb", "intensifier" or "not".
        value: Sentiment of an adjective or verb; factor of an intensifier.
    """

    text: str
    role: str = ""
    value: float = 0.0


@dataclass(frozen=True)
class Seq:
    """All parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Exactly one of the options, with probabilities that sum to 1."""

    options: tuple[tuple[float, Node], ...]


def _node(item: Node | str) -> Node:
    return Word(item) if isinstance(item, str) else item


def _seq(*parts: Node | str) -> Seq:
    return Seq(tuple(_node(part) for part in parts))


def _choice(*options: tuple[float, Node | str]) -> Choice:
    total = math.fsum(weight for weight, _ in options)
    return Choice(tuple((weight / total, _node(item)) for weight, item in options))


def _uniform(*items: Node | str) -> Choice:
    return _choice(*((1.0, item) for item in items))


def _expansions(
    node: Node, opaque: tuple[Node, ...] = ()
) -> Iterator[tuple[float, tuple[Node, ...]]]:
    """Yields every derivation as (probability, leaves); ``opaque`` nodes are kept as leaves."""
    if isinstance(node, Word) or any(node is slot for slot in opaque):
        yield 1.0, (node,)
    elif isinstance(node, Choice):
        for weight, option in node.options:
            for probability, leaves in _expansions(option, opaque):
                yield weight * probability, leaves
    else:
        parts = [list(_expansions(part, opaque)) for part in node.parts]
        for combination in itertools.product(*parts):
            yield (
                math.prod(probability for probability, _ in combination),
                tuple(leaf for _, leaves in combination for leaf in leaves),
            )


def _words(node: Node) -> Iterator[Word]:
    """Yields every terminal of the tree."""
    if isinstance(node, Word):
        yield node
    else:
        children = (
            node.parts if isinstance(node, Seq) else tuple(option for _, option in node.options)
        )
        for child in children:
            yield from _words(child)


def _entropy(node: Node) -> float:
    """Entropy in nats of the choices below a node."""
    if isinstance(node, Word):
        return 0.0
    if isinstance(node, Seq):
        return math.fsum(_entropy(part) for part in node.parts)
    return math.fsum(
        weight * (_entropy(option) - math.log(weight)) for weight, option in node.options
    )


def _count(node: Node) -> int:
    """Number of derivations of a node."""
    if isinstance(node, Word):
        return 1
    if isinstance(node, Seq):
        return math.prod(_count(part) for part in node.parts)
    return sum(_count(option) for _, option in node.options)


def _sample_into(node: Node, rng: np.random.Generator, out: list[str]) -> None:
    if isinstance(node, Word):
        out.append(node.text)
    elif isinstance(node, Seq):
        for part in node.parts:
            _sample_into(part, rng, out)
    else:
        _sample_into(_pick(node, rng), rng, out)


def _pick(choice: Choice, rng: np.random.Generator) -> Node:
    rest = rng.random()
    for weight, option in choice.options:
        rest -= weight
        if rest < 0.0:
            return option
    return choice.options[-1][1]  # only rounding of the weights can lead here


def _sample_sentence(node: Node, rng: np.random.Generator) -> str:
    out: list[str] = []
    _sample_into(node, rng, out)
    return " ".join(out) + "."


# ---------------------------------------------------------------------------------------------
# The data: every word, weight and sentiment of the grammar
# ---------------------------------------------------------------------------------------------

NEGATION = -0.5
"""Factor of ``not`` on the sentiment it governs."""
CONTRAST = (0.3, 0.7)
"""Weights of the two sides of ``... but ...``."""

_SENTENCE_COUNT = ((1, 0.35), (2, 0.45), (3, 0.20))

_SINGULAR = ("plot", "acting", "music", "ending", "cast", "pace", "script", "sound")
_PLURAL = ("jokes", "songs", "scenes", "actors")

ASPECTS: tuple[str, ...] = _SINGULAR + _PLURAL
"""What a judgement can be about; sampled uniformly without replacement within one review."""

# word, sentiment, weight within its class
_POSITIVE = (
    ("good", 0.5, 0.26),
    ("fun", 0.6, 0.20),
    ("nice", 0.4, 0.16),
    ("fresh", 0.5, 0.13),
    ("great", 0.8, 0.18),
    ("superb", 1.0, 0.07),
)
_NEGATIVE = (
    ("bad", -0.5, 0.24),
    ("dull", -0.6, 0.22),
    ("weak", -0.4, 0.17),
    ("flat", -0.5, 0.13),
    ("poor", -0.7, 0.15),
    ("awful", -1.0, 0.09),
)
_NEUTRAL = (
    ("simple", 0.0, 0.4),
    ("quiet", 0.0, 0.3),
    ("modern", 0.0, 0.2),
    ("plain", 0.0, 0.1),
)
_CLASS_WEIGHTS = (0.32, 0.56, 0.12)  # positive, negative, neutral

# word, factor, probability; no intensifier has the rest
_INTENSIFIERS = (
    ("very", 1.3, 0.13),
    ("really", 1.3, 0.07),
    ("truly", 1.3, 0.04),
    ("rather", 0.6, 0.06),
    ("fairly", 0.6, 0.05),
)
_NOT_PROBABILITY = 0.15
_CONTRAST_PROBABILITY = 0.25

# past, base form, sentiment, weight
_VERBS = (
    ("loved", "love", 0.9, 0.10),
    ("liked", "like", 0.5, 0.22),
    ("enjoyed", "enjoy", 0.6, 0.12),
    ("noticed", "notice", 0.0, 0.10),
    ("disliked", "dislike", -0.5, 0.28),
    ("hated", "hate", -0.9, 0.18),
)


def _opening_node() -> Choice:
    verb = _uniform("saw", "watched")
    film = _seq(
        _choice((0.4, "this"), (0.35, "the new"), (0.25, "an old")),
        _uniform("film", "comedy", "drama", "thriller", "western"),
    )
    when = _uniform("last night", "on Sunday", "at home", "with friends", "today")
    when_first = _uniform("Last night", "On Sunday", "Today")
    return _choice(
        (0.65, _seq(_uniform("I", "We"), verb, film, when)),
        (0.35, _seq(when_first, _uniform("I", "we"), verb, film)),
    )


def _adjectives(table: tuple[tuple[str, float, float], ...]) -> Choice:
    return _choice(*((weight, Word(word, "adjective", value)) for word, value, weight in table))


_NOT = Word("not", "not")
_POS, _NEG, _NEU = _adjectives(_POSITIVE), _adjectives(_NEGATIVE), _adjectives(_NEUTRAL)
_ADJECTIVE = _choice(*zip(_CLASS_WEIGHTS, (_POS, _NEG, _NEU), strict=True))


def _graded(adjective: Node) -> Choice:
    """[intensifier] adjective."""
    bare = 1.0 - math.fsum(probability for _, _, probability in _INTENSIFIERS)
    return _choice(
        (bare, adjective),
        *(
            (probability, _seq(Word(word, "intensifier", factor), adjective))
            for word, factor, probability in _INTENSIFIERS
        ),
    )


_SIMPLE = _choice(
    (1.0 - _NOT_PROBABILITY, _graded(_ADJECTIVE)),
    (_NOT_PROBABILITY, _seq(_NOT, _graded(_ADJECTIVE))),
)
# The two sides of a contrast have opposite polarity by construction.
_POS_SIDE = _choice((1.0 - _NOT_PROBABILITY, _graded(_POS)), (_NOT_PROBABILITY, _seq(_NOT, _NEG)))
_NEG_SIDE = _choice((1.0 - _NOT_PROBABILITY, _graded(_NEG)), (_NOT_PROBABILITY, _seq(_NOT, _POS)))
_ADJP = _choice(
    (1.0 - _CONTRAST_PROBABILITY, _SIMPLE),
    (
        _CONTRAST_PROBABILITY,
        _uniform(_seq(_POS_SIDE, "but", _NEG_SIDE), _seq(_NEG_SIDE, "but", _POS_SIDE)),
    ),
)
_SLOTS: tuple[Choice, ...] = (_ADJP, _SIMPLE)


def _judgement_node(aspect: str) -> Choice:
    """All judgement sentences about one aspect."""
    plural = aspect in _PLURAL
    be = _choice((0.35, "are"), (0.65, "were")) if plural else _choice((0.35, "is"), (0.65, "was"))
    noun = Word(aspect, "aspect")
    past = _choice(*((weight, Word(word, "verb", value)) for word, _, value, weight in _VERBS))
    base = _choice(*((weight, Word(word, "verb", value)) for _, word, value, weight in _VERBS))
    frames: list[tuple[float, Node]] = [
        (0.38, _seq("The", noun, be, _ADJP)),
        (0.15, _seq("I found the", noun, _ADJP)),
        (0.13, _seq("I thought the", noun, "were" if plural else "was", _SIMPLE)),
        (0.08, _seq("My friends called the", noun, _SIMPLE)),
        (0.18, _seq("I", past, "the", noun)),
        (0.08, _seq("I did", _NOT, base, "the", noun)),
    ]
    if plural:
        frames.append((0.20, _seq("It has", _graded(_ADJECTIVE), noun)))
    return _choice(*frames)


_OPENING = _opening_node()
_LENGTH = dict(_SENTENCE_COUNT)
MAX_SENTENCES = max(_LENGTH)
"""The most judgement sentences a grammatical review can have."""
_JUDGEMENTS: dict[str, Choice] = {aspect: _judgement_node(aspect) for aspect in ASPECTS}

SENTIMENT_WORDS: frozenset[str] = frozenset(
    word.text
    for node in _JUDGEMENTS.values()
    for word in _words(node)
    if word.role in ("adjective", "verb", "intensifier", "not")
)
"""Every word that sets or changes the sentiment of a judgement (neutral ones included)."""


def _sentiment(leaves: Sequence[Node]) -> float:
    """Sentiment in [-1, 1] of the leaves of one judgement sentence or adjective phrase."""
    values: list[float] = []
    factor, negated = 1.0, False
    for leaf in leaves:
        if not isinstance(leaf, Word):
            continue
        if leaf.role == "not":
            negated = True
        elif leaf.role == "intensifier":
            factor = leaf.value
        elif leaf.role in ("adjective", "verb"):
            value = max(-1.0, min(1.0, factor * leaf.value))
            values.append(NEGATION * value if negated else value)
            factor, negated = 1.0, False
    if len(values) == 2:
        return CONTRAST[0] * values[0] + CONTRAST[1] * values[1]
    return values[0] if values else 0.0


# ---------------------------------------------------------------------------------------------
# Sampling and enumeration
# ---------------------------------------------------------------------------------------------


def sample_review(rng: np.random.Generator) -> str:
    """Draws one review from the grammar.

    Args:
        rng: Source of randomness; the same state gives the same review.

    Returns:
        The opening and one to three judgement sentences, separated by single spaces.
    """
    sentences = [_sample_sentence(_OPENING, rng)]
    rest = rng.random()
    count = MAX_SENTENCES
    for number, probability in _SENTENCE_COUNT:
        rest -= probability
        if rest < 0.0:
            count = number
            break
    remaining = list(ASPECTS)
    for _ in range(count):
        aspect = remaining.pop(int(rng.random() * len(remaining)))
        sentences.append(_sample_sentence(_JUDGEMENTS[aspect], rng))
    return " ".join(sentences)


@dataclass(frozen=True)
class GrammarSentence:
    """One judgement sentence of the grammar.

    Attributes:
        text: The sentence, with its full stop.
        aspect: What it judges.
        sentiment: Its sentiment in [-1, 1].
        probability: Its probability given the aspect.
    """

    text: str
    aspect: str
    sentiment: float
    probability: float


def _text(leaves: Sequence[Node]) -> str:
    return " ".join(leaf.text for leaf in leaves if isinstance(leaf, Word))


def enumerate_openings() -> Iterator[tuple[str, float]]:
    """Yields every opening sentence with its probability."""
    for probability, leaves in _expansions(_OPENING):
        yield _text(leaves) + ".", probability


def enumerate_sentences(aspect: str) -> Iterator[GrammarSentence]:
    """Yields every judgement sentence about one aspect, by expanding the grammar in full.

    Args:
        aspect: One of :data:`ASPECTS`.

    Raises:
        ValueError: If there is no such aspect.
    """
    if aspect not in _JUDGEMENTS:
        raise ValueError(f"unknown aspect {aspect!r}; use one of {', '.join(ASPECTS)}")
    for probability, leaves in _expansions(_JUDGEMENTS[aspect]):
        yield GrammarSentence(_text(leaves) + ".", aspect, _sentiment(leaves), probability)


@functools.cache
def vocabulary() -> frozenset[str]:
    """Returns every distinct word of the grammar (case matters, full stops are left out)."""
    nodes = (_OPENING, *_JUDGEMENTS.values())
    return frozenset(
        part for node in nodes for word in _words(node) for part in word.text.split(" ")
    )


# ---------------------------------------------------------------------------------------------
# Parsing
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParsedSentence:
    """A judgement sentence found in a text, or the unfinished last sentence.

    Attributes:
        text: The sentence as it stands in the text, without surrounding spaces.
        aspect: What it judges; None in an unfinished sentence that names no aspect yet.
        sentiment: Its sentiment in [-1, 1]; 0 for an unfinished sentence.
        is_complete: False for a last sentence that breaks off before its full stop.
        log_prob: Natural log probability given its aspect; -inf for an unfinished sentence.
    """

    text: str
    aspect: str | None
    sentiment: float
    is_complete: bool
    log_prob: float


@dataclass(frozen=True)
class ParsedReview:
    """What the parser found in a text.

    Attributes:
        opening: The opening sentence, None if the text does not start with one.
        sentences: Judgement sentences in order; only the last one can be unfinished.
        stray_words: Number of words that belong to no grammatical sentence; a full stop with no
            sentence before it counts as one word.
        is_grammatical: Whether the whole text is a review of the grammar, spacing included.
    """

    opening: str | None
    sentences: tuple[ParsedSentence, ...]
    stray_words: int
    is_grammatical: bool

    @property
    def judgements(self) -> tuple[ParsedSentence, ...]:
        """The complete judgement sentences."""
        return tuple(sentence for sentence in self.sentences if sentence.is_complete)

    @property
    def is_unfinished(self) -> bool:
        """Whether the text breaks off within a sentence that could still become grammatical."""
        return bool(self.sentences) and not self.sentences[-1].is_complete


@dataclass(frozen=True)
class _Tables:
    """Look-up tables of the parser; keys carry no full stop.

    Every judgement is either a key of ``whole`` or a key of ``heads`` (frame and aspect), a space
    and a key of the phrase table that the head asks for.
    """

    openings: dict[str, float]  # -> log probability
    whole: dict[str, tuple[str, float, float]]  # -> aspect, sentiment, log probability
    heads: dict[str, tuple[str, int, float]]  # -> aspect, phrase table, log probability
    phrases: tuple[dict[str, tuple[float, float]], ...]  # -> sentiment, log probability
    head_lengths: frozenset[int]  # in words
    sorted_starts: list[str]  # openings, whole sentences and heads
    sorted_phrases: tuple[list[str], ...]


@functools.cache
def _tables() -> _Tables:
    whole: dict[str, tuple[str, float, float]] = {}
    heads: dict[str, tuple[str, int, float]] = {}
    for aspect, node in _JUDGEMENTS.items():
        for probability, leaves in _expansions(node, opaque=_SLOTS):
            text, log_prob, last = _text(leaves), math.log(probability), leaves[-1]
            if isinstance(last, Word):
                whole[text] = (aspect, _sentiment(leaves), log_prob)
            else:
                slot = next(i for i, slot in enumerate(_SLOTS) if slot is last)
                heads[text] = (aspect, slot, log_prob)
    phrases = tuple(
        {_text(leaves): (_sentiment(leaves), math.log(p)) for p, leaves in _expansions(slot)}
        for slot in _SLOTS
    )
    openings = {text[:-1]: math.log(probability) for text, probability in enumerate_openings()}
    return _Tables(
        openings=openings,
        whole=whole,
        heads=heads,
        phrases=phrases,
        head_lengths=frozenset(head.count(" ") + 1 for head in heads),
        sorted_starts=sorted([*openings, *whole, *heads]),
        sorted_phrases=tuple(sorted(table) for table in phrases),
    )


def _split_head(body: str, tables: _Tables) -> tuple[str, str] | None:
    """Splits a sentence body into a known head and what follows its space."""
    cut = -1
    for length in range(1, max(tables.head_lengths) + 1):
        cut = body.find(" ", cut + 1)
        if cut < 0:
            return None
        if length in tables.head_lengths and body[:cut] in tables.heads:
            return body[:cut], body[cut + 1 :]
    return None


def _parse_judgement(body: str, tables: _Tables) -> ParsedSentence | None:
    """Parses one judgement sentence, given without its full stop."""
    found = tables.whole.get(body)
    if found is not None:
        aspect, sentiment, log_prob = found
        return ParsedSentence(body + ".", aspect, sentiment, True, log_prob)
    split = _split_head(body, tables)
    if split is None:
        return None
    aspect, slot, head_log_prob = tables.heads[split[0]]
    phrase = tables.phrases[slot].get(split[1])
    if phrase is None:
        return None
    return ParsedSentence(body + ".", aspect, phrase[0], True, head_log_prob + phrase[1])


def _is_prefix(stub: str, ordered: list[str]) -> bool:
    """Whether some string of a sorted list starts with ``stub``."""
    place = bisect_left(ordered, stub)
    return place < len(ordered) and ordered[place].startswith(stub)


def _parse_stub(stub: str, tables: _Tables) -> ParsedSentence | None:
    """Parses an unfinished last sentence; None if no sentence of the grammar starts so."""
    if not _is_prefix(stub, tables.sorted_starts):
        split = _split_head(stub, tables)
        if split is None:
            return None
        slot = tables.heads[split[0]][1]
        if not _is_prefix(split[1], tables.sorted_phrases[slot]):
            return None
    aspect = next((word for word in stub.split(" ") if word in _JUDGEMENTS), None)
    return ParsedSentence(stub, aspect, 0.0, False, -math.inf)


def _count_stray(piece: str) -> int:
    return max(1, len(piece.split()))


def parse_review(text: str) -> ParsedReview:
    """Finds the sentences of the grammar in any text; never raises on a string.

    A sentence counts only when it is spelled and spaced exactly as in the grammar. A text that
    lacks the opening is still searched for judgements, so that it can be scored.

    Args:
        text: Any string.

    Returns:
        The opening, the judgement sentences and the number of words outside them.
    """
    tables = _tables()
    opening: str | None = None
    sentences: list[ParsedSentence] = []
    stray = 0
    *finished, last = text.split(".")
    for index, piece in enumerate(finished):
        if index == 0:
            body = piece
            if body in tables.openings:
                opening = body + "."
                continue
        elif piece.startswith(" "):
            body = piece[1:]
        else:
            body = ""
        sentence = _parse_judgement(body, tables)
        if sentence is None:
            stray += _count_stray(piece)
        else:
            sentences.append(sentence)
    if last:
        spaced = not finished or last.startswith(" ")
        stub = _parse_stub(last[1:] if finished else last, tables) if spaced else None
        if stub is None:
            stray += _count_stray(last)
        else:
            sentences.append(stub)
    aspects = {sentence.aspect for sentence in sentences}
    is_grammatical = (
        opening is not None
        and stray == 0
        and last == ""
        and len(sentences) in _LENGTH
        and len(aspects) == len(sentences)
    )
    return ParsedReview(opening, tuple(sentences), stray, is_grammatical)


# ---------------------------------------------------------------------------------------------
# Exact facts
# ---------------------------------------------------------------------------------------------


def review_log_prob(text: str) -> float:
    """Natural log probability of a text under the grammar.

    Args:
        text: Any string.

    Returns:
        The log probability, -inf for a text that the grammar does not generate.
    """
    review = parse_review(text)
    if not review.is_grammatical or review.opening is None:
        return -math.inf
    log_prob = _tables().openings[review.opening[:-1]] + math.log(_LENGTH[len(review.sentences)])
    for index, sentence in enumerate(review.sentences):
        log_prob += sentence.log_prob - math.log(len(ASPECTS) - index)
    return log_prob


@functools.cache
def review_entropy() -> float:
    """Entropy of a review in nats, summed over the choices of the grammar.

    The aspect of every judgement is uniform over all aspects when seen on its own, so each
    sentence adds the entropy of the draw without replacement and the mean over aspects of the
    entropy of a sentence about that aspect.
    """
    sentence = math.fsum(_entropy(node) for node in _JUDGEMENTS.values()) / len(ASPECTS)
    total = _entropy(_OPENING)
    for number, probability in _SENTENCE_COUNT:
        aspects = math.fsum(math.log(len(ASPECTS) - index) for index in range(number))
        total += probability * (aspects + number * sentence - math.log(probability))
    return total


def count_reviews(aspects: Sequence[str] = ASPECTS) -> int:
    """Exact number of distinct reviews.

    Args:
        aspects: Count only reviews whose judgements are all about these aspects.

    Returns:
        The number of different strings that the grammar generates.
    """
    # symmetric[k]: sum over all sets of k aspects of the product of their sentence counts
    symmetric = [1] + [0] * MAX_SENTENCES
    for aspect in aspects:
        ways = _count(_JUDGEMENTS[aspect])
        for size in range(MAX_SENTENCES, 0, -1):
            symmetric[size] += ways * symmetric[size - 1]
    judgements = sum(math.factorial(number) * symmetric[number] for number in _LENGTH)
    return _count(_OPENING) * judgements
