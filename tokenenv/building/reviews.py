"""Build the models that ship with `reviews`: `python -m tokenenv.tasks.reviews.build`.

Tokenizer and reference from the grammar, preference pairs from the reference, the reward model from
the pairs, a bound on the optimum from three fitted proposals, and a card with what was measured.
All of it is seeded; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from tokenenv.building.parts import (
    LabelledPairs,
    ProposalSettings,
    fit_proposal,
    join_pairs,
    train_language_model,
    train_tokenizer,
)
from tokenenv.building.reviews_card import render_card
from tokenenv.building.reviews_measuring import (
    load_scorer,
    measure_cross_entropy,
    measure_optimum,
    measure_reward_model,
    sample_episodes,
    sample_pairs,
)
from tokenenv.language_model import build_language_model, load_frozen, quiet_loading
from tokenenv.optimum import Comparison, MixtureSamples, compare, sample_mixture
from tokenenv.preferences import RewardTrainingSettings, train_reward_model
from tokenenv.reward_model import load_reward_model, new_reward_model
from tokenenv.tasks.reviews import FOLDER, TASK
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
    """Sizes of the build; the defaults make what ships.

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


class _Builder:
    """The steps of one build, in order; each leaves its measurements in `card`."""

    def __init__(
        self,
        folder: Path,
        settings: BuildSettings,
        console: Console,
        pool: ProcessPoolExecutor | None,
    ) -> None:
        self.folder, self.settings, self.console, self.pool = folder, settings, console, pool
        self.rng = np.random.default_rng(settings.seed)
        self.card: dict[str, Any] = {"task": "reviews", "seed": settings.seed}
        self.start = time.perf_counter()
        torch.manual_seed(settings.seed)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.perf_counter() - self.start:6.1f} s[/dim]  {text}")

    def seed(self) -> int:
        return int(self.rng.integers(2**31))

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
        with quiet_loading():
            model.to(torch.float16).save_pretrained(self.folder / "reference")
            tokenizer.save_pretrained(self.folder / "reference")
        reference = load_frozen(str(self.folder / "reference"))
        found = measure_cross_entropy(reference, settings.held_out_reviews, self.rng)
        self.card["reference"] = {
            "parameters": model.num_parameters(),
            "vocabulary_size": len(tokenizer),
            **found,
            "distinct_reviews": float(count_reviews()),
        }
        self.say(
            f"cross-entropy {found['cross_entropy_per_review']:.3f} nats per review, "
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
        self.say(f"training the reward model on {settings.pairs} pairs")
        trained = new_reward_model(str(self.folder / "reference"), seed=settings.seed)
        train_reward_model(
            pairs.pairs,
            trained,
            RewardTrainingSettings(
                epochs=settings.reward_epochs,
                batch_size=settings.reward_batch,
                learning_rate=settings.reward_learning_rate,
                weight_decay=0.0,
                eval_fraction=0.03,
                evaluations_per_epoch=1,
                seed=settings.seed,
            ),
        )
        trained.model.to(torch.float16).float()  # normalised as it ships, rounded
        normal = sample_episodes(self.folder, "train", settings.held_out_pairs, self.seed())
        trained.measure_normalization(
            trained.raw_rewards([np.concatenate([e.prompt, e.response]) for e in normal])
        )
        trained.save_pretrained(self.folder / "reward_model", torch.float16)

    def measure_reward_model(self) -> None:
        settings = self.settings
        pairs = self.sample_pairs("eval", settings.held_out_pairs)
        episodes = sample_episodes(self.folder, "eval", settings.held_out_pairs, self.seed())
        found = measure_reward_model(load_scorer(self.folder), pairs, episodes)
        self.card["reward_model"] = {
            "training_pairs": settings.pairs,
            "annotator_sharpness": settings.sharpness,
            **found,
        }
        self.say(
            f"held-out accuracy {found['accuracy']:.3f}, Bayes {found['bayes_accuracy']:.3f}, "
            f"ratio {found['accuracy_over_bayes']:.3f}"
        )

    def bound_optimum(self) -> None:
        settings = self.settings
        self.say(f"fitting {settings.proposals} proposals")
        seeds = [settings.seed + 1 + index for index in range(settings.proposals)]
        found = self.run_all(_bound, [(self.folder, settings, seed) for seed in seeds])
        self.card["optimum"] = {
            "kl_coef": TASK.kl_coef,
            "prompts": settings.optimum_prompts,
            "responses_per_prompt": settings.optimum_responses,
            **measure_optimum(found, TASK.kl_coef),
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
    folder.mkdir(parents=True, exist_ok=True)
    load_frozen.cache_clear()  # an earlier build into the same folder may be in there
    load_reward_model.cache_clear()
    pool = None
    if settings.workers > 1:
        pool = ProcessPoolExecutor(
            settings.workers,
            multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
    try:
        builder = _Builder(folder, settings, console or Console(quiet=True), pool)
        builder.build_reference()
        builder.build_reward_model()
        builder.measure_reward_model()
        builder.bound_optimum()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    card = builder.card
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_card(card), encoding="utf-8")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves them readable to their owner only
    builder.say(f"done: {folder}")
    return card


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to (default: the package)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small to gain from more
    build(arguments.out, BuildSettings(seed=arguments.seed), Console())


if __name__ == "__main__":
    main()
