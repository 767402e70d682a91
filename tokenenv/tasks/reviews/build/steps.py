"""Build the models that ship with `reviews`: `python -m tokenenv.tasks.reviews.build`.

Tokenizer and reference from the grammar, preference pairs from the reference, the reward model from
the pairs, a bound on the optimum from three fitted proposals, and a card with measured figures.
All of it is seeded; a few minutes on two cores.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from tokenenv.building.builder import Builder, run_command
from tokenenv.building.parts import (
    LabelledPairs,
    ProposalSettings,
    fit_proposal,
    join_pairs,
    train_language_model,
    train_tokenizer,
)
from tokenenv.models import build_language_model
from tokenenv.optimum import Comparison, MixtureSamples, compare, sample_mixture
from tokenenv.tasks.reviews import FOLDER, TASK
from tokenenv.tasks.reviews.build.card import render_card
from tokenenv.tasks.reviews.build.measuring import (
    load_scorer,
    measure_cross_entropy,
    measure_optimum,
    measure_reward_model,
    sample_episodes,
    sample_pairs,
)
from tokenenv.tasks.reviews.grammar import count_reviews, review_entropy, sample_review
from tokenenv.tasks.reviews.prompts import reviews_prompts

__all__ = ["BuildSettings", "build"]

VOCABULARY_SIZE = 512
MAX_POSITIONS = 64
INITIAL_DEVIATION = (
    0.1  # transformers' 0.02 is meant for wide models: here attention would lie idle
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Sizes of the build; the defaults give the bundled models.

    Args:
        seed: of everything.
        hidden_size: width of both models.
        layers: their depth.
        tokenizer_texts: reviews that the tokenizer is trained on.
        lm_steps: optimiser steps of the reference.
        lm_batch: reviews per step.
        lm_learning_rate: its peak.
        held_out_reviews: fresh reviews to measure the reference on.
        pairs: preference pairs to train on.
        held_out_pairs: preference pairs on held-out prompts, and reference samples, to measure on.
        sharpness: of the annotator, P(a ≻ b) = σ(sharpness·Δgold).
        reward_epochs: passes over the pairs.
        reward_batch: pairs per step.
        reward_learning_rate: its peak.
        optimum_prompts: held-out prompts of the bound.
        optimum_responses: responses for each of them and each proposal.
        proposals: independently seeded proposals.
        proposal_rounds: of fitting each.
        proposal_prompts: prompts of each round.
        workers: processes; the outcome does not depend on it.
    """

    seed: int = 0
    hidden_size: int = 64
    layers: int = 3
    tokenizer_texts: int = 20_000
    lm_steps: int = 3_000
    lm_batch: int = 32
    lm_learning_rate: float = 3e-3
    held_out_reviews: int = 4_000
    pairs: int = 20_000
    held_out_pairs: int = 5_000
    sharpness: float = 12.0
    reward_epochs: int = 2
    reward_batch: int = 32
    reward_learning_rate: float = 1.5e-3
    optimum_prompts: int = 64
    optimum_responses: int = 256
    proposals: int = 3
    proposal_rounds: int = 8
    proposal_prompts: int = 64
    workers: int = 2


def _shape(tokenizer: Any, settings: BuildSettings) -> dict[str, Any]:
    """The reference's transformers config."""
    return {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": 2 * settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "initializer_range": INITIAL_DEVIATION,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _bound(folder: Path, settings: BuildSettings, seed: int) -> tuple[MixtureSamples, Comparison]:
    """Fit one proposal and compare it with the reference."""
    scorer = load_scorer(folder)
    reference = scorer.reference.language_model
    training = [reference.encode(prompt) for prompt in reviews_prompts("train")]
    fixed = [reference.encode(p) for p in reviews_prompts("eval")[: settings.optimum_prompts]]
    proposal = copy.deepcopy(reference.model).requires_grad_(True)
    fit_proposal(
        proposal,
        scorer,
        training,
        TASK.max_new_tokens,
        ProposalSettings(
            TASK.kl_coef,
            rounds=settings.proposal_rounds,
            prompts_per_round=settings.proposal_prompts,
        ),
        seed,
    )
    samples = sample_mixture(
        proposal, scorer, fixed, TASK.max_new_tokens, settings.optimum_responses, seed
    )
    return samples, compare(samples, TASK.kl_coef)


class _Builder(Builder):
    """The steps of one build, in order."""

    def __init__(
        self,
        folder: Path,
        settings: BuildSettings,
        console: Console | None,
        pool: ProcessPoolExecutor | None,
    ) -> None:
        super().__init__(TASK.name, folder, settings.seed, console)
        self.settings, self.pool = settings, pool

    def steps(self) -> list[Callable[[], None]]:
        return [
            self.build_reference,
            self.build_reward_model,
            self.measure_reward_model,
            self.bound_optimum,
        ]

    def render_card(self, card: dict[str, Any]) -> str:
        return render_card(card)

    def run_all(
        self, function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]]
    ) -> list[Result]:
        """The results of all jobs, in their order; side by side where there is a pool."""
        if self.pool is None:
            return [function(*job) for job in jobs]
        return [future.result() for future in [self.pool.submit(function, *job) for job in jobs]]

    def build_reference(self) -> None:
        settings = self.settings
        texts = (sample_review(self.rng) for _ in range(settings.tokenizer_texts))
        tokenizer = train_tokenizer(texts, VOCABULARY_SIZE)
        eos = tokenizer.eos_token_id

        def next_batch() -> list[np.ndarray]:
            texts = [sample_review(self.rng) for _ in range(settings.lm_batch)]
            return [np.array([*ids, eos]) for ids in tokenizer(texts)["input_ids"]]

        model = build_language_model(_shape(tokenizer, settings))
        self.say(f"training the reference, {model.num_parameters() / 1e6:.2f} M parameters")
        train_language_model(model, next_batch, settings.lm_steps, settings.lm_learning_rate)
        reference = self.save_reference(model, tokenizer)
        cross_entropy = measure_cross_entropy(reference, settings.held_out_reviews, self.rng)
        self.card["reference"] = {
            "parameters": model.num_parameters(),
            "vocabulary_size": len(tokenizer),
            **cross_entropy,
            "distinct_reviews": float(count_reviews()),
        }
        self.say(
            f"cross-entropy {cross_entropy['cross_entropy_per_review']:.3f} nats per review, "
            f"the grammar's entropy is {review_entropy():.3f}"
        )

    def sample_pairs(self, split: str, count: int) -> LabelledPairs:
        """In two halves."""
        sharpness = self.settings.sharpness
        jobs = [
            (self.folder, split, half, sharpness, self.seed())
            for half in (count - count // 2, count // 2)
        ]
        return join_pairs(self.run_all(sample_pairs, jobs))

    def build_reward_model(self) -> None:
        settings = self.settings
        pairs = self.sample_pairs("train", settings.pairs)
        trained = self.train_rewards(
            pairs.pairs,
            settings.reward_epochs,
            settings.reward_batch,
            settings.reward_learning_rate,
        )
        normal = sample_episodes(self.folder, "train", settings.held_out_pairs, self.seed())
        trained.measure_normalization(
            trained.raw_rewards([np.concatenate([e.prompt, e.response]) for e in normal])
        )
        trained.save_pretrained(self.folder / "reward_model", torch.float16)

    def measure_reward_model(self) -> None:
        settings = self.settings
        pairs = self.sample_pairs("eval", settings.held_out_pairs)
        episodes = sample_episodes(self.folder, "eval", settings.held_out_pairs, self.seed())
        measurements = measure_reward_model(load_scorer(self.folder), pairs, episodes)
        self.card["reward_model"] = {
            "training_pairs": settings.pairs,
            "annotator_sharpness": settings.sharpness,
            **measurements,
        }
        self.say(
            f"held-out accuracy {measurements['accuracy']:.3f}, "
            f"Bayes {measurements['bayes_accuracy']:.3f}, "
            f"ratio {measurements['accuracy_over_bayes']:.3f}"
        )

    def bound_optimum(self) -> None:
        settings = self.settings
        self.say(f"fitting {settings.proposals} proposals")
        seeds = [settings.seed + 1 + index for index in range(settings.proposals)]
        results = self.run_all(_bound, [(self.folder, settings, seed) for seed in seeds])
        self.card["optimum"] = {
            "kl_coef": TASK.kl_coef,
            "prompts": settings.optimum_prompts,
            "responses_per_prompt": settings.optimum_responses,
            **measure_optimum(results, TASK.kl_coef),
        }


def build(
    folder: Path, settings: BuildSettings | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Build everything into `folder`.

    Args:
        folder: where to; it is made where it is missing.
        settings: sizes; those of the shipped models otherwise.
        console: for the progress; quiet otherwise.

    Returns:
        The card.
    """
    settings = settings or BuildSettings()
    pool = None
    if settings.workers > 1:
        pool = ProcessPoolExecutor(
            settings.workers,
            multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
    try:
        return _Builder(folder, settings, console, pool).run()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """The command."""
    run_command(
        lambda folder, seed, console: build(folder, BuildSettings(seed=seed), console),
        __doc__,
        FOLDER,
        BuildSettings().seed,
    )
