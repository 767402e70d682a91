"""Weighted grammar nodes, and the exact quantities of a tree of them.

A grammar is a tree of three node types: :class:`Word`, :class:`Seq` and :class:`Choice`. Sampling,
expansion, entropy and counting all walk that same tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = [
    "Choice",
    "Node",
    "Seq",
    "Word",
    "choice",
    "count_derivations",
    "expansions",
    "node_entropy",
    "sample_text",
    "seq",
    "text_of",
    "uniform",
    "words",
]

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


def seq(*parts: Node | str) -> Seq:
    """All of the parts; a string is a word without a role."""
    return Seq(tuple(_node(part) for part in parts))


def choice(*options: tuple[float, Node | str]) -> Choice:
    """One of the options, by their weights."""
    total = math.fsum(weight for weight, _ in options)
    return Choice(tuple((weight / total, _node(item)) for weight, item in options))


def uniform(*items: Node | str) -> Choice:
    """One of the items, all equally likely."""
    return choice(*((1.0, item) for item in items))


def expansions(
    node: Node, opaque: tuple[Node, ...] = ()
) -> Iterator[tuple[float, tuple[Node, ...]]]:
    """Yields every derivation as (probability, leaves); ``opaque`` nodes are kept as leaves."""
    if isinstance(node, Word) or any(node is slot for slot in opaque):
        yield 1.0, (node,)
    elif isinstance(node, Choice):
        for weight, option in node.options:
            for probability, leaves in expansions(option, opaque):
                yield weight * probability, leaves
    else:
        parts = [list(expansions(part, opaque)) for part in node.parts]
        for combination in itertools.product(*parts):
            yield (
                math.prod(probability for probability, _ in combination),
                tuple(leaf for _, leaves in combination for leaf in leaves),
            )


def words(node: Node) -> Iterator[Word]:
    """Yields every terminal of the tree."""
    if isinstance(node, Word):
        yield node
    else:
        children = (
            node.parts if isinstance(node, Seq) else tuple(option for _, option in node.options)
        )
        for child in children:
            yield from words(child)


def node_entropy(node: Node) -> float:
    """Entropy in nats of the choices below a node."""
    if isinstance(node, Word):
        return 0.0
    if isinstance(node, Seq):
        return math.fsum(node_entropy(part) for part in node.parts)
    return math.fsum(
        weight * (node_entropy(option) - math.log(weight)) for weight, option in node.options
    )


def count_derivations(node: Node) -> int:
    """Number of derivations of a node."""
    if isinstance(node, Word):
        return 1
    if isinstance(node, Seq):
        return math.prod(count_derivations(part) for part in node.parts)
    return sum(count_derivations(option) for _, option in node.options)


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


def sample_text(node: Node, rng: np.random.Generator) -> str:
    """Draws the words of one derivation, joined by spaces, without a full stop."""
    out: list[str] = []
    _sample_into(node, rng, out)
    return " ".join(out)


def text_of(leaves: Sequence[Node]) -> str:
    """The words of a derivation, joined by spaces."""
    return " ".join(leaf.text for leaf in leaves if isinstance(leaf, Word))
