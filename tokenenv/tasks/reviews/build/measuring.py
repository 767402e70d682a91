"""Samples from the models of `reviews`, and the measurements for their card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenenv.building.measuring import measure_reward_model
from tokenenv.building.parts import LabelledPairs, annotate, text_log_probs
from tokenenv.models import LanguageModel, Reference, SampledResponse, load_frozen, sample_responses
from tokenenv.optimum import Comparison, MixtureSamples, log_mean_exp
from tokenenv.rewards import Episode, EpisodeScorer, LearnedReward, load_reward_model
from tokenenv.tasks.reviews import TASK
from tokenenv.tasks.reviews.gold import gold_reward
from tokenenv.tasks.reviews.grammar import review_entropy, sample_review
from tokenenv.tasks.reviews.parsing import review_log_prob
from tokenenv.tasks.reviews.prompts import reviews_prompts

__all__ = [
    "load_scorer",
    "measure_cross_entropy",
    "measure_optimum",
    "measure_reward_model",
    "sample_episodes",
    "sample_pairs",
]


def measure_cross_entropy(
    language_model: LanguageModel, reviews: int, rng: np.random.Generator
) -> dict[str, float]:
    """Cross-entropy of a model on fresh reviews, against the exact entropy of the grammar.

    The mean of −log p_model + log p_grammar, plus the entropy, estimates the same as the mean of
    −log p_model, with much less noise: the variation between reviews cancels.
    """
    texts = [sample_review(rng) for _ in range(reviews)]
    eos = language_model.eos_token_ids[0]
    sequences = [np.array([*language_model.encode(text), eos]) for text in texts]
    model_log_probs = text_log_probs(language_model.model, sequences)
    excess = np.array([review_log_prob(text) for text in texts]) - model_log_probs
    tokens = float(np.mean([len(sequence) - 1 for sequence in sequences]))
    cross_entropy = review_entropy() + float(excess.mean())
    return {
        "cross_entropy_per_review": cross_entropy,
        "cross_entropy_standard_error": float(excess.std() / math.sqrt(reviews)),
        "cross_entropy_plain_mean": float(-model_log_probs.mean()),
        "cross_entropy_plain_standard_error": float(model_log_probs.std() / math.sqrt(reviews)),
        "grammar_entropy_per_review": review_entropy(),
        "cross_entropy_over_entropy": cross_entropy / review_entropy(),
        "tokens_per_review": tokens,
        "grammar_entropy_per_token": review_entropy() / tokens,
    }


def load_scorer(folder: Path) -> EpisodeScorer:
    """The scorer of the models in `folder`, with the gold reward."""
    reference = load_frozen(str(folder / "reference"))
    reward_model = load_reward_model(str(folder / "reward_model"))
    return EpisodeScorer(
        Reference(reference), LearnedReward(reward_model, reference), gold_reward=TASK.gold_reward
    )


def sample_pairs(
    folder: Path, split: str, count: int, sharpness: float, seed: int
) -> LabelledPairs:
    """Two samples of the reference in `folder` for each prompt, labelled by their gold rewards."""
    reference = load_frozen(str(folder / "reference"))
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.choice(reviews_prompts(split), size=count)]
    prompts = [reference.encode(name) for name in names]
    first, second = (_sample(reference, prompts, int(rng.integers(2**31))) for _ in range(2))
    gold = (_gold(reference, names, first), _gold(reference, names, second))
    tokens = [[response.tokens for response in side] for side in (first, second)]
    return annotate(prompts, names, tokens[0], tokens[1], gold, sharpness, rng)


def sample_episodes(folder: Path, split: str, count: int, seed: int) -> list[Episode]:
    """Samples of the reference in `folder`, each for a prompt drawn at random."""
    reference = load_frozen(str(folder / "reference"))
    rng = np.random.default_rng(seed)
    prompts = [reference.encode(str(name)) for name in rng.choice(reviews_prompts(split), count)]
    sampled = _sample(reference, prompts, int(rng.integers(2**31)))
    return [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]


def _sample(
    reference: LanguageModel, prompts: list[np.ndarray], seed: int
) -> list[SampledResponse]:
    return sample_responses(
        reference.model, reference.eos_token_ids, prompts, TASK.max_new_tokens, seed=seed
    )


def _gold(
    reference: LanguageModel, names: list[str], responses: list[SampledResponse]
) -> np.ndarray:
    texts = [
        name + reference.decode(response.tokens)
        for name, response in zip(names, responses, strict=True)
    ]
    return np.array([gold_reward(text) for text in texts])


def measure_optimum(
    results: Sequence[tuple[MixtureSamples, Comparison]], kl_coef: float
) -> dict[str, Any]:
    """The bound on J* from several proposals, each alone and all together."""
    # Each mixture is a proposal by itself, so the mean of all their weights estimates the same
    # quantity as each, with less noise: one log-mean-exp over all samples.
    log_weights = np.concatenate([samples.log_weights(kl_coef) for samples, _ in results], axis=1)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    gold = np.concatenate(
        [kind for samples, _ in results for kind in np.asarray(samples.gold_rewards)], axis=1
    )
    comparisons = [comparison for _, comparison in results]
    return {
        "bounds_by_seed": [c.optimum_lower_bound for c in comparisons],
        "optimum_lower_bound": float(kl_coef * log_mean_exp(log_weights).mean()),
        "optimum_gold": float(((weights * gold).sum(1) / weights.sum(1)).mean()),
        "objective_reference": float(np.mean([c.objective_reference for c in comparisons])),
        "reference_gold": float(np.mean([c.gold_reward_reference for c in comparisons])),
        "proposal_objectives": [c.objective for c in comparisons],
        "proposal_gold": [c.gold_reward for c in comparisons],
        "effective_sample_size": [c.effective_sample_size for c in comparisons],
    }
