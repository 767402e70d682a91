"""`tokenrlhf reward-model`: a reward model from a file of preference pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.atomic_files import discard, write_json, writing
from agents.console import literal
from agents.runs.config import RewardModelConfig
from agents.runs.output_folder import OutputFolder
from agents.runs.progress import progress_bar
from tokenenv.data import ReadReport, parse_columns, read_pairs
from tokenenv.models import resolve_device
from tokenenv.rewards import (
    RewardModel,
    RewardTrainingSettings,
    TruncationReport,
    new_reward_model,
    seam_differences_of,
    train_reward_model,
    truncated_pairs,
)
from tokenenv.stop_signals import hold_signals, signal_is_pending, stop_signals
from tokenenv.tasks import model_source

__all__ = ["train_from_file"]

_STAGE = "model"
"""Folder that a reward model is written to before it is moved to its place."""


def train_from_file(config: RewardModelConfig, console: Console) -> dict[str, Any]:
    """Train on `config.pairs` and write the reward model and `report.json` to `config.out`.

    Returns:
        The report on the held-out pairs.

    Raises:
        ValueError: the pairs, the base or the folder can't be used.
    """
    with (
        stop_signals(),
        contextlib.closing(OutputFolder.new(config.out, [_STAGE], config.overwrite)) as output,
    ):
        return _train(config, output, console)


def _train(config: RewardModelConfig, output: OutputFolder, console: Console) -> dict[str, Any]:
    settings = RewardTrainingSettings(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        centering_coef=config.centering_coef,
        eval_fraction=config.eval_fraction,
        report_fraction=config.report_fraction,
        seed=config.seed,
    )
    read = ReadReport()
    columns = parse_columns(config.columns)
    pairs = read_pairs(config.pairs, columns, config.skip_bad, config.ratings, read)
    device = resolve_device(config.device)
    reward_model = new_reward_model(model_source(config.base, "reference"), device, config.seed)
    limit = reward_model.max_tokens if config.max_tokens is None else config.max_tokens
    readable_pairs, cut = truncated_pairs(pairs, reward_model, limit, config.truncation)
    same = sum(pair.chosen == pair.rejected for pair in pairs)
    seams = seam_differences_of(pairs, reward_model)
    data = _data_report(read, cut, len(pairs), same, seams)
    console.print(literal(f"{len(pairs):,} pairs of {config.pairs}: {read.format}, {read.layout}"))
    for note in data["notes"]:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))
    # A signal ends the training, not the writing of what it has learned.
    with hold_signals():
        with progress_bar(console) as bar:
            task = bar.add_task("training", total=None, note="")
            report = train_reward_model(
                readable_pairs,
                reward_model,
                settings,
                lambda step, steps, loss: bar.update(
                    task, completed=step, total=steps, note=f"loss {loss:.3f}"
                ),
            )
        content = {
            **report.as_dict(),
            "data": data,
            "training_settings": dataclasses.asdict(settings),
            "finished": not signal_is_pending(),
        }
        _write(output, reward_model, content)
        if signal_is_pending():
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print(literal(f"stopped: what was learned so far is in {config.out}"))
    table = Table(title="held-out pairs", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in dataclasses.asdict(report).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console.print(table)
    for note in report.notes:
        console.print(f"[yellow]note:[/yellow] {note}")
    use = f"; use it with: tokenrlhf train --reward-model {shlex.quote(str(config.out))}"
    console.print(literal(f"reward model in {config.out}{use}"))
    return content


def _write(output: OutputFolder, reward_model: RewardModel, report: dict[str, Any]) -> None:
    """Put a whole reward model in the place of an old one, and touch no other file."""
    stage = output.root / f".{_STAGE}.tmp"
    try:
        with writing(output.root):
            stage.mkdir()
            reward_model.save_pretrained(stage)
        write_json(stage / "report.json", report)
        output.take_in(stage)
    finally:
        discard(stage)


def _data_report(
    read: ReadReport, cut: TruncationReport, pairs: int, same: int, seams: tuple[int, int]
) -> dict[str, Any]:
    """What was read and what was cut, for `report.json`; its notes for the terminal too."""
    notes = [*read.notes, *cut.notes]
    if same:
        notes.append(f"{same:,} of {pairs:,} pairs have the same text twice and teach nothing.")
    if seams[0]:
        notes.append(
            f"{seams[0]:,} of {seams[1]:,} responses have other tokens when they are tokenised "
            "together with their prompt; both are tokenised apart here, as in episodes. Where "
            "prompts end with a space, let the responses begin with it instead."
        )
    return {
        **{"format": read.format, "layout": read.layout, "rows": read.bad.rows},
        **{"bad_rows": read.bad.count, "truncation": cut.as_dict(), "notes": notes},
        **{"seam_differences": seams[0], "seams": seams[1]},
    }
