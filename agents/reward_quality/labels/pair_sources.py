"""Pairs to learn from and pairs to judge by: those of a file, or drawn and labelled anew."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from agents.reward_quality.labels.config import DRAWN
from agents.runs.reward_model import read_token_pairs
from agents.runs.reward_model_config import RewardTrainingOptions
from tokenenv.models import load_frozen
from tokenenv.rewards import (
    RewardModel,
    RewardTrainingSettings,
    TokenPair,
    split_pairs,
)
from tokenenv.tasks.reviews import FOLDER, TASK
from tokenenv.tasks.reviews.build import BuildSettings, sample_pairs

__all__ = ["DrawnPairs", "FilePairs", "PairSource", "SeedPairs", "pair_source"]

CHUNK = 500
"""Pairs that are drawn at once: those of a chunk do not depend on how many are drawn in all."""


@dataclass(frozen=True, slots=True)
class SeedPairs:
    """The pairs of one seed.

    Attributes:
        pool: pairs in random order; a set of n pairs is the first n of them.
        held_out: pairs to judge by, of prompts of which none is in the pool.
        best_accuracy: the expected accuracy on these of whoever knows the annotator, where he is
            known; None elsewhere.
    """

    pool: list[TokenPair]
    held_out: list[TokenPair]
    best_accuracy: float | None = None


class PairSource(Protocol):
    """Where pairs come from."""

    def most(self, seeds: range) -> int | None:
        """Pairs in the smallest pool of these seeds; None where there is no end."""

    def draw(self, seed: int, count: int) -> SeedPairs:
        """The pairs of a seed, with `count` in the pool or a few more."""

    def facts(self) -> dict[str, Any]:
        """What tells these pairs from others, for JSON."""


class FilePairs:
    """Pairs of a file; a seed says which prompts are held out, and the order of the others.

    Args:
        pairs: the pairs.
        held_out: share of the prompts to judge by.
    """

    def __init__(self, pairs: list[TokenPair], held_out: float) -> None:
        self.pairs = pairs
        self._settings = RewardTrainingSettings(
            eval_fraction=0.0, report_fraction=held_out, early_stopping=False
        )

    def most(self, seeds: range) -> int | None:
        """See `PairSource`."""
        return min(len(self.draw(seed, 0).pool) for seed in seeds)

    def draw(self, seed: int, count: int) -> SeedPairs:
        """See `PairSource`."""
        rng = np.random.default_rng((seed, 0))
        split = split_pairs(self.pairs, self._settings, rng)
        if all(pair.preference == 0.5 for pair in split.reported):
            raise ValueError(
                f"with seed {seed} all {len(split.reported):,} held-out pairs are ties, which have "
                "no accuracy: give more pairs, or a larger report_fraction."
            )
        return SeedPairs(
            [split.training[i] for i in rng.permutation(len(split.training))], split.reported
        )

    def facts(self) -> dict[str, Any]:
        """See `PairSource`."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(pair.chosen.tobytes() + b"|" + pair.rejected.tobytes())
            digest.update(f"|{pair.prompt}|{pair.margin}|{pair.preference}\n".encode())
        return {
            "pairs_in_the_file": len(self.pairs),
            "digest_of_the_pairs": digest.hexdigest()[:16],
        }


class DrawnPairs:
    """Pairs of the reference of `reviews`, labelled by its annotator; other ones for every seed.

    They are those of its build: P(a ≻ b) = σ(12·(gold(a) − gold(b))). The prompts to judge by are
    the task's held-out ones.

    Args:
        held_out: pairs to judge by.
        sharpness: of the annotator; that of the build unless given.
    """

    def __init__(self, held_out: int, sharpness: float | None = None) -> None:
        self.held_out = held_out
        self.sharpness = BuildSettings().sharpness if sharpness is None else sharpness

    def most(self, seeds: range) -> int | None:
        """See `PairSource`."""
        return None

    def draw(self, seed: int, count: int) -> SeedPairs:
        """See `PairSource`."""
        pool: list[TokenPair] = []
        for chunk in range(-(-count // CHUNK)):
            entropy = np.random.SeedSequence((seed, 1, chunk)).generate_state(1)[0]
            pool += sample_pairs(FOLDER, "train", CHUNK, self.sharpness, int(entropy)).pairs
        entropy = np.random.SeedSequence((seed, 2)).generate_state(1)[0]
        judged = sample_pairs(FOLDER, "eval", self.held_out, self.sharpness, int(entropy))
        return SeedPairs(pool, judged.pairs, judged.bayes_accuracy)

    def facts(self) -> dict[str, Any]:
        """See `PairSource`."""
        return {"annotator": DRAWN, "sharpness": self.sharpness, "held_out_pairs": self.held_out}


def pair_source(
    name: str,
    config: RewardTrainingOptions,
    held_out_pairs: int,
    reward_model: RewardModel,
    console: Console,
) -> PairSource:
    """The source that a name stands for.

    Args:
        name: a file of pairs, or `DRAWN`.
        config: how a file is read, and which share of its prompts is held out.
        held_out_pairs: pairs to judge by where they are drawn.
        reward_model: whose tokenizer reads the pairs.
        console: where what was read is said.

    Raises:
        ValueError: the file can't be used, or the reward model reads other tokens than the task.
    """
    if name == DRAWN:
        reference = load_frozen(str(TASK.reference))
        rows = reference.model.get_output_embeddings().weight.shape[0]
        if not reward_model.shares_tokenizer(reference.tokenizer, rows):
            raise ValueError(
                f"pairs that are drawn are of the task {DRAWN!r} and of its tokens, and the base "
                f"{reward_model.name!r} reads others: give base={DRAWN!r}, a model that was made "
                "from it, or a file of pairs."
            )
        return DrawnPairs(held_out_pairs)
    pairs, _ = read_token_pairs(name, config, reward_model, console)
    return FilePairs(pairs, config.report_fraction)
