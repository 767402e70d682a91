"""Build the models that ship with `exact`: `python -m tokenenv.tasks.exact.build`.

Tokenizer and reference from the grammar, preference pairs from reference and exploration, the
reward model from the pairs, the exact optimum, and a card with the measured figures. All of it is
seeded; a minute or two on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tokenenv.building.builder import Builder, run_command
from tokenenv.building.measuring import measure_reward_model
from tokenenv.building.parts import train_language_model, word_tokenizer
from tokenenv.mdp import TokenMDP
from tokenenv.models import build_language_model, sample_responses
from tokenenv.optimum import PrefixTree, enumerate_mdp
from tokenenv.rewards import Episode, build_scorer
from tokenenv.settings import EnvSettings
from tokenenv.tasks.exact import FOLDER, TASK
from tokenenv.tasks.exact.build.card import render_card
from tokenenv.tasks.exact.build.measuring import (
    measure_optimum,
    measure_reference,
    reference_moments,
)
from tokenenv.tasks.exact.build.melodies import grammar_sequence, sample_answer_pairs
from tokenenv.tasks.exact.grammar import NOTES

__all__ = ["BuildSettings", "build", "enumerate_folder"]

INITIAL_DEVIATION = 0.1  # as for `reviews`: transformers' 0.02 is meant for wide models
MAX_POSITIONS = TASK.max_prompt_tokens + TASK.max_new_tokens


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Sizes of the build; the defaults give the bundled models.

    Args:
        seed: of everything.
        hidden_size: width of both models.
        layers: their depth.
        lm_steps: optimiser steps of the reference.
        lm_batch: melodies per step.
        lm_learning_rate: its peak.
        pairs: preference pairs to train on.
        explored_share: share of their answers that are explored rather than the reference's.
        held_out_pairs: fresh pairs to measure on, as many of each kind.
        sharpness: of the annotator, P(a ≻ b) = σ(sharpness·Δgold).
        reward_epochs: passes over the pairs.
        reward_batch: pairs per step.
        reward_learning_rate: its peak.
    """

    seed: int = 1
    hidden_size: int = 32
    layers: int = 2
    lm_steps: int = 1_000
    lm_batch: int = 128
    lm_learning_rate: float = 1e-2
    pairs: int = 200_000
    explored_share: float = 0.7
    held_out_pairs: int = 5_000
    sharpness: float = 10.0
    reward_epochs: int = 1
    reward_batch: int = 128
    reward_learning_rate: float = 5e-3


def _shape(tokenizer: Any, settings: BuildSettings) -> dict[str, Any]:
    """The reference's transformers config.

    GPT-2 for its absolute positions: by relative ones alone, and without a BOS, no model could tell
    a call from an answer that begins on the same note.
    """
    return {
        "model_type": "gpt2",
        "vocab_size": len(tokenizer),
        "n_positions": MAX_POSITIONS,
        "n_embd": settings.hidden_size,
        "n_inner": 2 * settings.hidden_size,
        "n_layer": settings.layers,
        "n_head": 4,
        "initializer_range": INITIAL_DEVIATION,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def enumerate_folder(folder: Path) -> PrefixTree:
    """The tree of the task with the models in `folder`."""
    settings = EnvSettings(
        task=TASK.name,
        split="eval",
        reference=str(folder / "reference"),
        reward_model=str(folder / "reward_model"),
    )
    return enumerate_mdp(TokenMDP(settings, num_envs=1))


class _Builder(Builder):
    """The steps of one build, in order."""

    def __init__(self, folder: Path, settings: BuildSettings, console: Console | None) -> None:
        super().__init__(TASK.name, folder, settings.seed, console)
        self.settings = settings

    def steps(self) -> list[Callable[[], None]]:
        return [self.build_reference, self.build_reward_model, self.measure]

    def render_card(self, card: dict[str, Any]) -> str:
        return render_card(card)

    def build_reference(self) -> None:
        settings = self.settings
        tokenizer = word_tokenizer(NOTES)
        model = build_language_model(_shape(tokenizer, settings))
        self.say(f"training the reference, {model.num_parameters():,} parameters")
        train_language_model(
            model,
            lambda: [grammar_sequence(tokenizer, self.rng) for _ in range(settings.lm_batch)],
            settings.lm_steps,
            settings.lm_learning_rate,
        )
        self.reference = self.save_reference(model, tokenizer)

    def build_reward_model(self) -> None:
        settings = self.settings
        pairs = sample_answer_pairs(
            self.reference, settings.pairs, settings.explored_share, settings.sharpness, self.seed()
        )
        trained = self.train_rewards(
            pairs.pairs,
            settings.reward_epochs,
            settings.reward_batch,
            settings.reward_learning_rate,
        )
        self.say("enumerating all responses")
        trained.save_pretrained(self.folder / "reward_model", torch.float16)
        # Normalised by all responses of the reference, weighted with their probabilities.
        mean, std = reference_moments(enumerate_folder(self.folder))
        config = trained.model.config
        config.reward_mean, config.reward_std = trained.mean + trained.std * mean, trained.std * std
        trained.save_pretrained(self.folder / "reward_model", torch.float16)
        self.tree = enumerate_folder(self.folder)

    def measure(self) -> None:
        settings = self.settings
        self.card["reference"] = {
            "parameters": self.reference.model.num_parameters(),
            "vocabulary_size": self.reference.vocabulary_size,
            **measure_reference(self.tree),
        }
        scorer = build_scorer(self.tree.settings)
        calls = [self.reference.encode(str(c)) for c in self.rng.choice(NOTES, 5_000)]
        answers = sample_responses(
            self.reference.model,
            self.reference.eos_token_ids,
            calls,
            TASK.max_new_tokens,
            seed=self.seed(),
        )
        episodes = [Episode(c, a.tokens, a.stopped) for c, a in zip(calls, answers, strict=True)]
        measurements = {}
        for kind, share in (("pairs", settings.explored_share), ("reference_pairs", 0.0)):
            pairs = sample_answer_pairs(
                self.reference, settings.held_out_pairs, share, settings.sharpness, self.seed()
            )
            measurements[kind] = measure_reward_model(scorer, pairs, episodes)
        self.card["reward_model"] = {
            "training_pairs": settings.pairs,
            "explored_share": settings.explored_share,
            "annotator_sharpness": settings.sharpness,
            **measurements["pairs"],
            "on_reference_pairs": measurements["reference_pairs"],
        }
        self.card["optimum"] = measure_optimum(self.tree)
        self.say(
            f"held-out accuracy {measurements['pairs']['accuracy']:.3f}, "
            f"Bayes {measurements['pairs']['bayes_accuracy']:.3f}; "
            f"J* = {self.card['optimum']['optimum']:.3f}"
        )


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
    return _Builder(folder, settings or BuildSettings(), console).run()


def main() -> None:
    """The command."""
    run_command(
        lambda folder, seed, console: build(folder, BuildSettings(seed=seed), console),
        __doc__,
        FOLDER,
        BuildSettings().seed,
    )
