"""Prompts of the reviews task: beginnings of reviews that give no sentiment away."""

from __future__ import annotations

import functools

import numpy as np

from tokenenv.tasks.reviews.grammar import SENTIMENT_WORDS, enumerate_openings, sample_review

__all__ = ["SPLITS", "reviews_prompts"]

SPLITS: dict[str, int] = {"train": 1024, "eval": 128}
"""Number of prompts of every split."""

STUB_PROBABILITY = 0.6
"""How often a prompt goes on into the first judgement sentence."""

_EVAL_OPENINGS = 1 / 8  # share of the opening sentences that only eval prompts have
_OPENING_SEED = 20_011
_PROMPT_SEEDS = {"train": 20_021, "eval": 20_023}


def _eval_openings() -> frozenset[str]:
    openings = sorted(opening for opening, _ in enumerate_openings())
    order = np.argsort(np.random.default_rng(_OPENING_SEED).random(len(openings)))
    return frozenset(openings[i] for i in order[: round(_EVAL_OPENINGS * len(openings))])


def _cut(review: str, rng: np.random.Generator) -> str:
    """Cuts a review after its opening or before the first sentiment word of its judgement."""
    opening, judgement = review.split(". ")[:2]
    prompt = opening + "."
    if rng.random() >= STUB_PROBABILITY:
        return prompt
    words = judgement.rstrip(".").split(" ")
    neutral = next(i for i, word in enumerate(words) if word in SENTIMENT_WORDS)
    keep = 1 + int(rng.random() * neutral)
    return " ".join([prompt, *words[:keep]])


@functools.cache
def _prompts(split: str) -> tuple[str, ...]:
    rng = np.random.default_rng(_PROMPT_SEEDS[split])
    held_out = _eval_openings()
    prompts: dict[str, None] = {}  # a set that keeps its order
    while len(prompts) < SPLITS[split]:
        review = sample_review(rng)
        opening = review[: review.index(".") + 1]
        if (opening in held_out) == (split == "eval"):
            prompts[_cut(review, rng)] = None
    return tuple(prompts)


def reviews_prompts(split: str) -> list[str]:
    """Prompts of one split, always the same ones in the same order.

    A prompt is the beginning of a review drawn from the grammar, cut at a word boundary before
    any word that bears sentiment, with no space at its end. Prompts drawn twice are kept once.
    No opening sentence is in both splits.

    Args:
        split: "train" (1024 prompts) or "eval" (128 prompts).

    Returns:
        Distinct prompts.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(map(repr, SPLITS))}")
    return list(_prompts(split))
