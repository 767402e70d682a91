"""What is counted of prompts, of pairs and of examples, one after another.

Of what was seen, 64-bit hashes are kept to find it again: among a million texts two share one with
a probability of 3e-8.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from agents.inspection.lengths import Counter, Lengths, text_of
from agents.inspection.seams import Seams
from tokenenv.data import EVAL_EVERY, Example, PreferencePair, Prompt, Turns, split_of

__all__ = ["ExampleMeasures", "Measures", "PairMeasures", "PromptMeasures", "wilson_interval"]

_BATCH = 256
"""Items whose texts are counted at once."""

_SHOWN = 3
"""Examples of each file."""

Item = TypeVar("Item")


def wilson_interval(successes: float, number: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share that holds it with 95 % (Wilson 1927, JASA 22).

    Args:
        successes: how often it was so.
        number: of how many; 1 or more.
        z: quantile of the normal distribution.
    """
    share = successes / number
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    spread = math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    half = z * spread / (1 + z * z / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def _key(*parts: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def _written(turns: Turns) -> str:
    """A text that is the same for equal turns alone."""
    if isinstance(turns, str):
        return turns
    return "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in turns)


class Measures(Generic[Item]):
    """Counts over the items of a file.

    Args:
        parts: what of an item has a length.
        counter: texts → lengths.
        seams: where prompts and responses are tokenised as one; None without a tokenizer.
    """

    def __init__(self, parts: Sequence[str], counter: Counter, seams: Seams | None = None) -> None:
        self.counter, self.seams = counter, seams
        self.lengths = Lengths(parts)
        self.number = self.duplicates = self.conversations = 0
        self.examples: list[Item] = []
        self._waiting: list[Item] = []
        self._seen: set[int] = set()
        self._splits: dict[str, int] = {}
        self._bits: dict[str, int] = {}
        self._prompts: dict[int, int] = {}
        self._lot = random.Random(0)

    def add(self, item: Item, split: Any) -> None:
        """Count one more; a tuple names the splits of its rows, where they are of several."""
        self.number += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(item)
        elif (place := self._lot.randrange(self.number)) < _SHOWN:
            self.examples[place] = item
        self._waiting.append(item)
        if len(self._waiting) == _BATCH:
            self._flush()
        splits = split if isinstance(split, tuple) else (split,)
        self._count(item, tuple("" if name is None else str(name) for name in splits))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._measure(waiting)

    def _count(self, item: Item, splits: tuple[str, ...]) -> None:
        raise NotImplementedError

    def _measure(self, items: list[Item]) -> None:
        raise NotImplementedError

    def _note_duplicate(self, key: int) -> None:
        self.duplicates += key in self._seen
        self._seen.add(key)

    def _note_prompt(self, prompt: Turns, splits: tuple[str, ...]) -> None:
        """Note in which splits a prompt is: every split has a bit."""
        self.conversations += not isinstance(prompt, str)
        shown = " and ".join(name or "none" for name in splits) if len(splits) > 1 else splits[0]
        self._splits[shown] = self._splits.get(shown, 0) + 1
        key = _key(_written(prompt))
        for name in splits:
            bit = self._bits.setdefault(name, 1 << len(self._bits))
            self._prompts[key] = self._prompts.get(key, 0) | bit

    def in_several_splits(self) -> int:
        """How many different prompts are in more than one split."""
        return sum(bits & (bits - 1) != 0 for bits in self._prompts.values())

    def facts(self) -> dict[str, Any]:
        """What was counted, for JSON."""
        self._flush()
        found: dict[str, Any] = {
            "number": self.number,
            "conversations": self.conversations,
            "duplicates": self.duplicates,
            "different_prompts": len(self._prompts),
        }
        if set(self._splits) != {""}:
            found["splits"] = {split or "none": n for split, n in self._splits.items()}
            found["prompts_in_several_splits"] = self.in_several_splits()
        if self.seams is not None:
            found["seams"] = self.seams.facts()
        return found


class PairMeasures(Measures[PreferencePair]):
    """Of preference pairs."""

    def __init__(self, counter: Counter, seams: Seams | None = None) -> None:
        parts = ("prompt", "chosen", "rejected", "prompt and longer response")
        super().__init__(parts, counter, seams)
        self.ties = self.soft = self.same = self.margins = 0
        self.empty = {"prompt": 0, "chosen": 0, "rejected": 0}
        self.longer, self.shorter, self.equal = 0.0, 0.0, 0
        self._labels: dict[int, int] = {}

    def _count(self, pair: PreferencePair, splits: tuple[str, ...]) -> None:
        prompt, chosen, rejected = map(_written, (pair.prompt, pair.chosen, pair.rejected))
        self._note_prompt(pair.prompt, splits)
        self._note_duplicate(_key(prompt, chosen, rejected, str(pair.preference)))
        self.ties += pair.preference == 0.5
        self.soft += 0 < pair.preference < 1 and pair.preference != 0.5
        self.same += chosen == rejected
        self.margins += pair.margin != 0
        for name in self.empty:
            self.empty[name] += not text_of(getattr(pair, name)).strip()
        if pair.preference != 0.5 and chosen != rejected:
            first, second = sorted((chosen, rejected))
            better = chosen if pair.preference > 0.5 else rejected
            key = _key(prompt, first, second)
            self._labels[key] = self._labels.get(key, 0) | (1 if better == first else 2)

    def _measure(self, items: list[PreferencePair]) -> None:
        lengths = {
            name: self.counter([text_of(getattr(pair, name)) for pair in items])
            for name in ("prompt", "chosen", "rejected")
        }
        for name, values in lengths.items():
            self.lengths.add(name, values)
        if self.seams is not None:
            for pair in items:
                self.seams.look(pair.prompt, (pair.chosen, pair.rejected))
        rows = list(zip(*lengths.values(), strict=True))
        self.lengths.add("prompt and longer response", [p + max(c, r) for p, c, r in rows])
        for pair, (_, chosen, rejected) in zip(items, rows, strict=True):
            if pair.preference == 0.5:
                continue
            if chosen == rejected:
                self.equal += 1
            elif (chosen > rejected) == (pair.preference > 0.5):
                self.longer += 1
            else:
                self.shorter += 1

    def facts(self) -> dict[str, Any]:
        """What was counted, for JSON."""
        found = super().facts()
        decided = int(self.longer + self.shorter)
        low, high = wilson_interval(self.longer, decided) if decided else (0.0, 1.0)
        return {
            **found,
            "ties": self.ties,
            "soft_labels": self.soft,
            "margins": self.margins,
            "identical_pairs": self.same,
            "empty": self.empty,
            "label_conflicts": sum(bits == 3 for bits in self._labels.values()),
            "longer_wins": {
                "share": self.longer / decided if decided else None,
                "interval": [low, high] if decided else None,
                "pairs": decided,
                "equal_length": self.equal,
            },
            "lengths": self.lengths.summary(),
            "examples": [
                {
                    **{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected},
                    **{"margin": pair.margin, "preference": pair.preference},
                }
                for pair in self.examples
            ],
        }


class PromptMeasures(Measures[Prompt]):
    """Of prompts."""

    def __init__(self, counter: Counter, seams: Seams | None = None) -> None:
        super().__init__(("prompt",), counter)  # without responses there is no seam
        self._by_place: dict[int, int] = {}

    def _count(self, prompt: Prompt, splits: tuple[str, ...]) -> None:
        key = _key(_written(prompt.content))
        bit = 1 if split_of(self.number - 1) == "train" else 2
        self._by_place[key] = self._by_place.get(key, 0) | bit
        self._note_prompt(prompt.content, splits)
        self._note_duplicate(key)

    def _measure(self, items: list[Prompt]) -> None:
        self.lengths.add("prompt", self.counter([text_of(prompt.content) for prompt in items]))

    def facts(self) -> dict[str, Any]:
        """What was counted, for JSON.

        Where no row names a split, the splits are those that training makes.
        """
        found = super().facts()
        if "splits" in found:  # a row without one is trained on
            found["splits"] = {
                "train" if name == "none" else name: count
                for name, count in found["splits"].items()
            }
        elif self.number >= EVAL_EVERY:
            held_out = self.number // EVAL_EVERY
            found["splits"] = {"train": self.number - held_out, "eval": held_out}
            found["prompts_in_several_splits"] = sum(b == 3 for b in self._by_place.values())
        return {
            **found,
            "lengths": self.lengths.summary(),
            "examples": [
                {"prompt": prompt.content, "columns": dict(prompt.columns)}
                for prompt in self.examples
            ],
        }


class ExampleMeasures(Measures[Example]):
    """Of examples for supervised training."""

    def __init__(self, counter: Counter, seams: Seams | None = None) -> None:
        super().__init__(("prompt", "response"), counter, seams)
        self.empty = {"prompt": 0, "response": 0}

    def _count(self, example: Example, splits: tuple[str, ...]) -> None:
        self._note_prompt(example.prompt, splits)
        self._note_duplicate(_key(_written(example.prompt), _written(example.response)))
        for name in self.empty:
            self.empty[name] += not text_of(getattr(example, name)).strip()

    def _measure(self, items: list[Example]) -> None:
        for name in ("prompt", "response"):
            self.lengths.add(name, self.counter([text_of(getattr(e, name)) for e in items]))
        if self.seams is not None:
            for example in items:
                if text_of(example.prompt):  # a document has none
                    self.seams.look(example.prompt, (example.response,))

    def facts(self) -> dict[str, Any]:
        """What was counted, for JSON."""
        return {
            **super().facts(),
            "empty": self.empty,
            "lengths": self.lengths.summary(),
            "examples": [{"prompt": e.prompt, "response": e.response} for e in self.examples],
        }
