"""Build the models that ship with `reviews`: `python -m tokenenv.tasks.reviews.build`.

Tokenizer and reference from the grammar, preference pairs from the reference, the reward model from
the pairs, a bound on the optimum from three fitted proposals, and a card with what was measured. All of
it is seeded; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tokenenv.language_model import (
    LanguageModel,
    build_language_model,
    load_frozen,
    quiet_loading,
)
from tokenenv.optimum import MixtureSamples, compare, log_mean_exp, sample_mixture
from tokenenv.preferences import (
    RewardTrainingSettings,
    evaluate_preferences,
    train_reward_model,
)
from tokenenv.reference import Reference
from tokenenv.reward_model import load_reward_model, new_reward_model
from tokenenv.rewards import Episode, LearnedReward
from tokenenv.sampling import sample_responses
from tokenenv.scoring import EpisodeScorer
from tokenenv.tasks.building import (
    LabelledPairs,
    ProposalSettings,
    annotate,
    cross_entropy_per_text,
    fit_proposal,
    train_language_model,
    train_tokenizer,
)
from tokenenv.tasks.reviews import FOLDER, TASK
from tokenenv.tasks.reviews.card import render_card
from tokenenv.tasks.reviews.grammar import count_reviews, review_entropy, sample_review
from tokenenv.tasks.reviews.prompts import reviews_prompts

__all__ = ["BuildSettings", "build"]

VOCABULARY_SIZE = 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Sizes of the build; the defaults make what ships.

    Args:
        seed: of everything.
        tokenizer_texts: reviews that the tokenizer is trained on.
        lm_steps: optimiser steps of the reference.
        lm_batch: reviews per step.
        pairs: preference pairs to train on.
        held_out: preference pairs, on held-out prompts, and reviews, to measure on.
        sharpness: of the annotator, P(a ≻ b) = σ(sharpness·Δgold).
        optimum_prompts: held-out prompts of the bound.
        optimum_responses: responses for each of them and each proposal.
        proposals: independently seeded proposals.
    """

    seed: int = 0
    tokenizer_texts: int = 20_000
    lm_steps: int = 800
    lm_batch: int = 128
    pairs: int = 12_000
    held_out: int = 2_000
    sharpness: float = 12.0
    optimum_prompts: int = 64
    optimum_responses: int = 256
    proposals: int = 3


class _Builder:
    """The steps of one build, in order; each leaves its measurements in `card`."""

    def __init__(self, folder: Path, settings: BuildSettings, console: Console) -> None:
        self.folder, self.settings, self.console = folder, settings, console
        self.rng = np.random.default_rng(settings.seed)
        self.card: dict[str, Any] = {"task": "reviews", "seed": settings.seed}
        self.start = time.perf_counter()
        torch.manual_seed(settings.seed)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.perf_counter() - self.start:6.1f} s[/dim]  {text}")

    # The reference -------------------------------------------------------------------------------

    def build_reference(self) -> LanguageModel:
        settings = self.settings
        texts = (sample_review(self.rng) for _ in range(settings.tokenizer_texts))
        tokenizer = train_tokenizer(texts, VOCABULARY_SIZE)
        eos = tokenizer.eos_token_id

        def encoded(count: int) -> list[np.ndarray]:
            texts = [sample_review(self.rng) for _ in range(count)]
            return [np.array([*ids, eos]) for ids in tokenizer(texts)["input_ids"]]

        model = build_language_model(
            {
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": eos,
                "pad_token_id": tokenizer.pad_token_id,
                **SHAPE,
            }
        )
        self.say(f"training the reference, {model.num_parameters() / 1e6:.2f} M parameters")
        train_language_model(
            model, lambda: encoded(settings.lm_batch), settings.lm_steps, learning_rate=4e-3
        )
        _save(model, tokenizer, self.folder / "reference")
        language_model = load_frozen(str(self.folder / "reference"))
        held_out = encoded(settings.held_out)
        mean, error = cross_entropy_per_text(language_model.model, held_out)
        tokens = float(np.mean([len(ids) - 1 for ids in held_out]))
        self.card["reference"] = {
            "parameters": model.num_parameters(),
            "vocabulary_size": len(tokenizer),
            "cross_entropy_per_review": mean,
            "cross_entropy_standard_error": error,
            "grammar_entropy_per_review": review_entropy(),
            "cross_entropy_over_entropy": mean / review_entropy(),
            "tokens_per_review": tokens,
            "grammar_entropy_per_token": review_entropy() / tokens,
            "distinct_reviews": float(count_reviews()),
        }
        self.say(
            f"cross-entropy {mean:.3f} nats per review, the grammar's entropy is {review_entropy():.3f}"
        )
        return language_model

    # Preferences and the reward model ------------------------------------------------------------

    def sample_pairs(self, reference: LanguageModel, split: str, count: int) -> LabelledPairs:
        """Two samples of the reference for one prompt, labelled from their gold rewards."""
        names = [str(name) for name in self.rng.choice(reviews_prompts(split), size=count)]
        prompts = [reference.encode(name) for name in names]
        two = [
            sample_responses(
                reference.model,
                reference.eos_token_ids,
                prompts,
                TASK.max_new_tokens,
                seed=int(self.rng.integers(2**31)),
            )
            for _ in range(2)
        ]
        assert TASK.gold_reward is not None
        gold = [
            np.array(
                [
                    TASK.gold_reward(n, reference.decode(r.tokens))
                    for n, r in zip(names, each, strict=True)
                ]
            )
            for each in two
        ]
        return annotate(
            prompts, names, two[0], two[1], (gold[0], gold[1]), self.settings.sharpness, self.rng
        )

    def build_reward_model(self, reference: LanguageModel) -> EpisodeScorer:
        settings = self.settings
        pairs = self.sample_pairs(reference, "train", settings.pairs)
        self.say(f"training the reward model on {settings.pairs} pairs")
        trained = new_reward_model(str(self.folder / "reference"), seed=settings.seed)
        train_reward_model(
            pairs.pairs,
            trained,
            RewardTrainingSettings(
                epochs=4, batch_size=128, learning_rate=1e-3, seed=settings.seed
            ),
        )
        normal = self.sample_episodes(reference, "train", settings.held_out)
        trained.measure_normalization(
            trained.raw_rewards([np.concatenate([e.prompt, e.response]) for e in normal])
        )
        trained.save_pretrained(self.folder / "reward_model", torch.float16)
        reward_model = load_reward_model(str(self.folder / "reward_model"))

        held_out = self.sample_pairs(reference, "eval", settings.held_out)
        raw = [
            reward_model.raw_rewards([getattr(pair, side) for pair in held_out.pairs])
            for side in ("chosen", "rejected")
        ]
        report = evaluate_preferences(*raw)
        bayes = held_out.bayes_accuracy
        agreement = np.where(raw[0] > raw[1], held_out.probabilities, 1 - held_out.probabilities)
        scorer = EpisodeScorer(
            Reference(reference),
            LearnedReward(reward_model, reference),
            gold_reward=TASK.gold_reward,
        )
        scores = scorer.score(self.sample_episodes(reference, "eval", settings.held_out))
        assert scores.gold_reward is not None
        self.card["reward_model"] = {
            "training_pairs": settings.pairs,
            "held_out_pairs": settings.held_out,
            "annotator_sharpness": settings.sharpness,
            "accuracy": report.accuracy,
            "expected_accuracy": float(agreement.mean()),
            "bayes_accuracy": bayes,
            "accuracy_over_bayes": (report.accuracy - 0.5) / (bayes - 0.5),
            "loss": report.loss,
            "calibration_error": report.calibration_error,
            "reward_mean": reward_model.mean,
            "reward_std": reward_model.std,
            "correlation_with_gold": float(np.corrcoef(scores.score, scores.gold_reward)[0, 1]),
            "reference_gold_mean": float(scores.gold_reward.mean()),
            "reference_gold_std": float(scores.gold_reward.std()),
            "reference_score_std": float(scores.score.std()),
        }
        self.say(f"held-out accuracy {report.accuracy:.3f}, Bayes accuracy {bayes:.3f}")
        return scorer

    def sample_episodes(self, reference: LanguageModel, split: str, count: int) -> list[Episode]:
        names = self.rng.choice(reviews_prompts(split), size=count)
        prompts = [reference.encode(str(name)) for name in names]
        sampled = sample_responses(
            reference.model,
            reference.eos_token_ids,
            prompts,
            TASK.max_new_tokens,
            seed=int(self.rng.integers(2**31)),
        )
        return [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]

    # The bound on the optimum --------------------------------------------------------------------

    def bound_optimum(self, reference: LanguageModel, scorer: EpisodeScorer) -> None:
        settings, kl_coef = self.settings, TASK.kl_coef
        training = [reference.encode(prompt) for prompt in reviews_prompts("train")]
        fixed = [reference.encode(p) for p in reviews_prompts("eval")[: settings.optimum_prompts]]
        found = []
        for index in range(settings.proposals):
            seed = settings.seed + 1 + index
            proposal = copy.deepcopy(reference.model).requires_grad_(True)
            fit_proposal(
                proposal, scorer, training, TASK.max_new_tokens, ProposalSettings(kl_coef), seed
            )
            samples = sample_mixture(
                proposal, scorer, fixed, TASK.max_new_tokens, settings.optimum_responses, seed
            )
            comparison = compare(samples, kl_coef)
            found.append((samples, comparison))
            self.say(
                f"proposal {seed}: J* ≥ {comparison.optimum_lower_bound:.3f}, "
                f"its own J {comparison.objective:.3f}, J_ref {comparison.objective_reference:.3f}"
            )
        self.card["optimum"] = self._optimum_card(found, kl_coef)

    def _optimum_card(
        self, found: list[tuple[MixtureSamples, Any]], kl_coef: float
    ) -> dict[str, Any]:
        bounds = [comparison.optimum_lower_bound for _, comparison in found]
        # Each mixture is a proposal of its own, so the mean of all their weights estimates the same
        # quantity as each, with less noise: one log-mean-exp over all samples.
        log_weights = np.concatenate([samples.log_weights(kl_coef) for samples, _ in found], axis=1)
        return {
            "kl_coef": kl_coef,
            "prompts": self.settings.optimum_prompts,
            "responses_per_prompt": self.settings.optimum_responses,
            "bounds_by_seed": bounds,
            "optimum_lower_bound": float(kl_coef * log_mean_exp(log_weights).mean()),
            "objective_reference": float(np.mean([c.objective_reference for _, c in found])),
            "proposal_objectives": [comparison.objective for _, comparison in found],
            "proposal_gold": [comparison.gold_reward for _, comparison in found],
            "effective_sample_size": [c.effective_sample_size for _, c in found],
        }


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    twin = copy.deepcopy(model).to(torch.float16)
    with quiet_loading():
        twin.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def build(folder: Path, settings: BuildSettings, console: Console) -> dict[str, Any]:
    """Build everything into `folder` and return the card."""
    folder.mkdir(parents=True, exist_ok=True)
    builder = _Builder(folder, settings, console)
    reference = builder.build_reference()
    scorer = builder.build_reward_model(reference)
    builder.bound_optimum(reference, scorer)
    (folder / "card.json").write_text(json.dumps(builder.card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_card(builder.card), encoding="utf-8")
    builder.say(f"done: {folder}")
    return builder.card


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to (default: the package)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.out, BuildSettings(seed=arguments.seed), Console())


if __name__ == "__main__":
    main()
