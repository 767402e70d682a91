"""The training data of `exact`: melodies of the grammar, and pairs of answers.

The cadence is rare under the reference. To give the reward model enough examples of it, most of the
answers in the pairs are explored: cadences with every lead-in, near misses, and random notes, which
cover the rest of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenenv.building.parts import EOS, LabelledPairs, annotate
from tokenenv.models import LanguageModel, sample_responses
from tokenenv.tasks.exact import TASK
from tokenenv.tasks.exact.gold import CADENCE, MAX_NOTES, gold_reward
from tokenenv.tasks.exact.grammar import NOTES, sample_melody

__all__ = ["explored_answer", "grammar_sequence", "sample_answer_pairs"]

_CADENCE_SHARE, _NEAR_SHARE = 0.5, 0.35  # of the explored answers; the rest is random


def grammar_sequence(tokenizer: object, rng: np.random.Generator) -> np.ndarray:
    """(n,) token ids of a melody of the grammar, EOS included where it stopped in time.

    Args:
        tokenizer: of the task.
        rng: of the draw.
    """
    notes, stopped = sample_melody(rng, TASK.max_prompt_tokens + TASK.max_new_tokens)
    words = [*notes, EOS] if stopped else notes
    return np.array(tokenizer.convert_tokens_to_ids(words))  # type: ignore[attr-defined]


def explored_answer(rng: np.random.Generator) -> list[str]:
    """An answer as words, EOS included where there is room for it: a cadence, nearly one, or noise.

    Args:
        rng: of the draw.
    """
    kind = rng.random()
    if kind < _CADENCE_SHARE:
        notes = [*_random_notes(rng, rng.integers(2)), *CADENCE]
    elif kind < _CADENCE_SHARE + _NEAR_SHARE:
        notes = _near_cadence(rng)
    else:
        notes = _random_notes(rng, rng.integers(MAX_NOTES + 2))
    return [*notes, EOS] if len(notes) <= MAX_NOTES else notes


def _near_cadence(rng: np.random.Generator) -> list[str]:
    """A cadence with a wrong, a missing or an additional note, in disorder, or come too late."""
    kind = rng.integers(5)
    before = _random_notes(rng, 2 if kind == 4 else rng.integers(2))
    notes = list(CADENCE)
    where = int(rng.integers(len(notes)))
    if kind == 0:
        notes[where] = str(rng.choice(NOTES))
    elif kind == 1:
        del notes[where if rng.random() < 0.5 else 0]
    elif kind == 2:
        notes.insert(where + 1, str(rng.choice(NOTES)))
    elif kind == 3:
        notes = [str(note) for note in rng.permutation(notes)]
    return [*before, *notes]


def _random_notes(rng: np.random.Generator, count: int | np.integer) -> list[str]:
    return [str(note) for note in rng.choice(NOTES, size=count)]


def sample_answer_pairs(
    reference: LanguageModel, count: int, explored_share: float, sharpness: float, seed: int
) -> LabelledPairs:
    """Pairs of answers to calls drawn at random, labelled by their gold rewards.

    Args:
        reference: the reference, which gives the answers that are not explored.
        count: pairs.
        explored_share: share of the answers that are explored.
        sharpness: of the annotator, P(a ≻ b) = σ(sharpness·Δgold).
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    calls = [str(call) for call in rng.choice(TASK.prompts("train"), size=count)]
    prompts = [reference.encode(call) for call in calls]
    sides = [_answers(reference, prompts, explored_share, rng) for _ in range(2)]
    gold = [
        np.array(
            [
                gold_reward(call, reference.decode(answer), answer[-1] in reference.eos_token_ids)
                for call, answer in zip(calls, side, strict=True)
            ]
        )
        for side in sides
    ]
    # Every pair counts as a separate prompt: five calls can't be held out from each other.
    names = [f"{call} {index}" for index, call in enumerate(calls)]
    return annotate(prompts, names, sides[0], sides[1], (gold[0], gold[1]), sharpness, rng)


def _answers(
    reference: LanguageModel,
    prompts: Sequence[np.ndarray],
    explored_share: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """One answer to each prompt, explored or sampled from the reference."""
    sampled = sample_responses(
        reference.model,
        reference.eos_token_ids,
        prompts,
        TASK.max_new_tokens,
        seed=int(rng.integers(2**31)),
    )
    is_explored = rng.random(len(prompts)) < explored_share
    ids = reference.tokenizer.convert_tokens_to_ids
    return [
        np.array(ids(explored_answer(rng))) if explored else answer.tokens
        for explored, answer in zip(is_explored, sampled, strict=True)
    ]
