"""`tokenrlhf reward-model`: a reward model from a file of preference pairs."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.config import RewardModelConfig
from agents.console import literal
from agents.files import write_json
from agents.progress import progress_bar
from tokenenv.language_model import resolve_device
from tokenenv.preferences import (
    PreferencePair,
    RewardTrainingSettings,
    read_pairs,
    train_reward_model,
)
from tokenenv.reward_model import RewardModel, new_reward_model
from tokenenv.tasks import model_source

__all__ = ["train_from_file"]


def train_from_file(config: RewardModelConfig, console: Console) -> dict[str, Any]:
    """Train on `config.pairs` and write the reward model and `report.json` to `config.out`.

    Returns:
        The report on the held-out pairs.

    Raises:
        ValueError: the pairs, the base or the folder can't be used.
    """
    _check_folder(config)
    settings = RewardTrainingSettings(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        centering_coef=config.centering_coef,
        eval_fraction=config.eval_fraction,
        seed=config.seed,
    )
    pairs = read_pairs(config.pairs)
    device = resolve_device(config.device)
    reward_model = new_reward_model(model_source(config.base, "reference"), device, config.seed)
    kept = _short_enough(pairs, reward_model, config.max_tokens)
    _print_notes(console, pairs, kept)
    config.out.mkdir(parents=True, exist_ok=True)  # fails before the training, not after it
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=None, note="")
        report = train_reward_model(
            kept,
            reward_model,
            settings,
            lambda step, steps, loss: bar.update(
                task, completed=step, total=steps, note=f"loss {loss:.3f}"
            ),
        )
    reward_model.save_pretrained(config.out)
    found = {**report.as_dict(), "training_settings": dataclasses.asdict(settings)}
    write_json(config.out / "report.json", found)
    table = Table(title="held-out pairs", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in report.as_dict().items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console.print(table)
    use = f"; use it with: tokenrlhf train --reward-model {shlex.quote(str(config.out))}"
    console.print(literal(f"reward model in {config.out}{use}"))
    return found


def _check_folder(config: RewardModelConfig) -> None:
    """Raise ValueError where writing to `config.out` would replace something unasked."""
    if config.out.exists() and (config.out.is_file() or any(config.out.iterdir())):
        if config.out.is_file() or not config.overwrite:
            raise ValueError(
                f"out={str(config.out)!r} exists already: choose another folder, or pass "
                "--overwrite."
            )


def _print_notes(console: Console, pairs: list[PreferencePair], kept: list[PreferencePair]) -> None:
    if len(kept) < len(pairs):
        console.print(
            f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are too long and were left out."
        )
    same = sum(pair.chosen == pair.rejected for pair in kept)
    if same:
        console.print(
            f"note: {same:,} of {len(kept):,} pairs have the same text twice and teach nothing."
        )


def _short_enough(
    pairs: list[PreferencePair], reward_model: RewardModel, max_tokens: int | None
) -> list[PreferencePair]:
    """The pairs whose two sides the model can read.

    Raises:
        ValueError: none can be read.
    """
    limit = max_tokens
    if limit is None:
        limit = getattr(reward_model.model.config, "max_position_embeddings", None)
    if limit is None:
        return pairs
    kept = [
        pair
        for pair in pairs
        if max(len(reward_model.encode(pair.prompt, side)) for side in (pair.chosen, pair.rejected))
        <= limit
    ]
    if not kept:
        raise ValueError(
            f"all {len(pairs)} pairs are longer than {limit} tokens: shorten them, raise "
            "--max-tokens, or take a base that reads more."
        )
    return kept
