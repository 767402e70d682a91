"""The common part of the builds of all bundled tasks: folder, seed, progress, models and card."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tokenenv.models import LanguageModel, load_frozen, quiet_loading
from tokenenv.rewards import (
    RewardModel,
    RewardTrainingSettings,
    TokenPair,
    load_reward_model,
    new_reward_model,
    train_reward_model,
)

__all__ = ["Builder", "run_command"]


class Builder:
    """One build; its steps leave their measurements in `card`.

    Args:
        task: the task's name.
        folder: where to; it is made where it is missing.
        seed: of everything.
        console: for the progress; None is quiet.
    """

    def __init__(self, task: str, folder: Path, seed: int, console: Console | None) -> None:
        self.folder, self.console = folder, console or Console(quiet=True)
        self.first_seed = seed
        self.rng = np.random.default_rng(seed)
        self.card: dict[str, Any] = {"task": task, "seed": seed}
        self.start = time.perf_counter()
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)
        load_frozen.cache_clear()  # an earlier build into the same folder may be in there
        load_reward_model.cache_clear()

    def run(self) -> dict[str, Any]:
        """All steps of the build, in order; returns the card."""
        for step in self.steps():
            step()
        return self.finish(self.render_card(self.card))

    def steps(self) -> list[Callable[[], None]]:
        """The steps of this task's build."""
        raise NotImplementedError

    def render_card(self, card: dict[str, Any]) -> str:
        """The card as a page, in Markdown."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Show progress."""
        self.console.print(f"[dim]{time.perf_counter() - self.start:6.1f} s[/dim]  {text}")

    def seed(self) -> int:
        """A fresh seed."""
        return int(self.rng.integers(2**31))

    def save_reference(self, model: Any, tokenizer: Any) -> LanguageModel:
        """Write the reference as it ships, in float16, and give it as it is loaded."""
        with quiet_loading():
            model.to(torch.float16).save_pretrained(self.folder / "reference")
            tokenizer.save_pretrained(self.folder / "reference")
        return load_frozen(str(self.folder / "reference"))

    def train_rewards(
        self, pairs: list[TokenPair], epochs: int, batch_size: int, learning_rate: float
    ) -> RewardModel:
        """A reward model on the reference's trunk, rounded as it ships, not normalised yet."""
        self.say(f"training the reward model on {len(pairs):,} pairs")
        trained = new_reward_model(str(self.folder / "reference"), seed=self.first_seed)
        train_reward_model(
            pairs,
            trained,
            RewardTrainingSettings(
                epochs=epochs,
                batch_size=batch_size,
                batch_tokens=None,
                learning_rate=learning_rate,
                schedule="linear",
                weight_decay=0.0,
                eval_fraction=0.03,
                report_fraction=0.0,  # the figures of the card come from fresh pairs
                evaluations_per_epoch=1,
                seed=self.first_seed,
            ),
        )
        trained.model.to(torch.float16).float()
        return trained

    def finish(self, text: str) -> dict[str, Any]:
        """Write the card, as JSON and as `text`; returns it."""
        card = json.dumps(self.card, indent=2) + "\n"
        (self.folder / "card.json").write_text(card, encoding="utf-8")
        (self.folder / "README.md").write_text(text, encoding="utf-8")
        for file in self.folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors leaves them readable to their owner only
        self.say(f"done: {self.folder}")
        return self.card


def run_command(
    build: Callable[[Path, int, Console], object], about: str | None, folder: Path, seed: int
) -> None:
    """The command that builds a task's models.

    Args:
        build: (folder, seed, console) → anything.
        about: for `--help`.
        folder: default of `--out`.
        seed: default of `--seed`.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=folder, help="where to (default: the package)")
    parser.add_argument("--seed", type=int, default=seed)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small to gain from more
    build(arguments.out, arguments.seed, Console())
