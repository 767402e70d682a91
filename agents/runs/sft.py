"""`tokenrlhf sft`: supervised fine-tuning from a file of texts or of prompts with a response."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.atomic_files import discard, write_json, writing
from agents.console import literal, progress_bar
from agents.runs.output_folder import OutputFolder
from agents.scaling import AgreedError, Ranks, ranks_of_command, refuse_different_models
from agents.scaling.data_parallel import data_parallel
from agents.sft.config import SFTConfig
from agents.sft.encoding import EncodedExamples, encode_examples
from agents.sft.files import ADAPTER_FOLDER, save_sft
from agents.sft.report import Evaluation, SFTReport, perplexity
from agents.sft.training import train_sft
from tokenenv.data import ReadReport, parse_columns, read_examples
from tokenenv.models import LanguageModel, LoraSettings, add_lora, load_trainable, resolve_device
from tokenenv.stop_signals import hold_signals, signal_is_pending, stop_signals
from tokenenv.tasks import model_source

__all__ = ["fine_tune_from_file"]

_STAGE = "model"
"""Folder that a model is written to before it is moved to its place."""

_OF_A_MODEL = ("model*.safetensors", "pytorch_model*.bin", "*.index.json", "adapter_*")
"""Files that would be taken for a part of the new model if they stayed from an old one."""


def fine_tune_from_file(config: SFTConfig, console: Console) -> dict[str, Any]:
    """Fine-tune on `config.data` and write the model and `report.json` to `config.out`.

    Returns:
        The content of `report.json`.

    Raises:
        ValueError: the data, the model or the folder can't be used; or a number of the training was
            not finite: what was learned before it has been written then.
    """
    with ranks_of_command(config.device) as ranks, stop_signals(), contextlib.ExitStack() as stack:
        if not ranks.is_first:
            console = Console(quiet=True)
        output = ranks.agree(lambda: _output(config, ranks, stack))
        return _train(config, output, console, ranks)


def _output(config: SFTConfig, ranks: Ranks, stack: contextlib.ExitStack) -> OutputFolder | None:
    """The folder, on the rank that writes it."""
    if not ranks.is_first:
        return None
    output = OutputFolder.new(config.out, [_STAGE], config.overwrite)
    return stack.enter_context(contextlib.closing(output))


def _train(
    config: SFTConfig, output: OutputFolder | None, console: Console, ranks: Ranks
) -> dict[str, Any]:
    read = ReadReport()

    def load() -> tuple[LanguageModel, EncodedExamples]:
        language_model = _load(config)
        encoded = encode_examples(
            read_examples(
                config.data, parse_columns(config.columns), config.skip_bad, config.documents, read
            ),
            language_model,
            config.max_tokens,
            config.truncation,
        )
        return language_model, encoded

    language_model, encoded = ranks.agree(load)
    data = _data_report(read, encoded)
    _print_data(config, data, encoded, console)
    refuse_different_models(ranks, config.as_json(), _contents(encoded), language_model.model)
    language_model.model.to(resolve_device(ranks.device or config.device))
    # A signal ends the training, not the writing of what it has learned.
    with hold_signals():
        report = _train_with_progress(config, encoded, language_model, console, ranks)
        content = {
            **report.as_dict(),
            "finished": report.stopped in ("", "early"),
            "data": data,
            "settings": config.as_json(),
        }
        if output is not None:
            _write(output, language_model, content)
        if signal_is_pending():
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print(literal(f"stopped: what was learned so far is in {config.out}"))
    _print_report(report, console)
    if report.is_diverged:
        raise AgreedError(
            f"{report.reason} What was learned until step {report.kept_step} is in {config.out}."
        )
    use = f"; use it with: tokenrlhf train --reference {shlex.quote(str(config.out))}"
    console.print(literal(f"model in {config.out}{use}"))
    return content


def _load(config: SFTConfig) -> LanguageModel:
    """The model, with adapters where they are asked for; on the CPU."""
    name = model_source(config.model, "reference")
    if config.lora_rank is None:
        return load_trainable(name)
    if os.path.realpath(name) == os.path.realpath(config.out):
        raise ValueError(
            f"out={str(config.out)!r} is the model itself: an adapter belongs to the model as it "
            "is, which would be replaced. Choose another folder."
        )
    modules = config.lora_target_modules
    settings = LoraSettings(config.lora_rank, config.lora_alpha, modules)
    language_model = load_trainable(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the adapters' first factors
        add_lora(language_model.model, settings, f"model={config.model!r}")
    return language_model


def _contents(encoded: EncodedExamples) -> Iterator[Any]:
    for example in encoded.examples:
        yield example.prefix.tolist(), example.targets.tolist()


def _train_with_progress(
    config: SFTConfig,
    encoded: EncodedExamples,
    language_model: LanguageModel,
    console: Console,
    ranks: Ranks,
) -> SFTReport:
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=None, note="")

        def on_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, note=f"loss {loss:.3f}")

        def on_evaluation(evaluation: Evaluation) -> None:
            if not math.isnan(evaluation.eval_loss):
                bar.console.print(_evaluation_line(evaluation), highlight=False)

        with ranks.talking():
            return train_sft(
                encoded,
                language_model,
                config.settings(),
                on_step,
                on_evaluation,
                data_parallel(ranks),
            )


def _evaluation_line(evaluation: Evaluation) -> str:
    loss, train_loss = evaluation.eval_loss, evaluation.train_loss
    line = (
        f"step {evaluation.step:>6,}  held-out loss {loss:.4f}  perplexity {perplexity(loss):.4g}"
    )
    return line if math.isnan(train_loss) else f"{line}  training loss {train_loss:.4f}"


def _data_report(read: ReadReport, encoded: EncodedExamples) -> dict[str, Any]:
    """What was read and what became of it, for `report.json`."""
    return {
        **{"format": read.format, "layout": read.layout, "rows": read.bad.rows},
        **{"bad_rows": read.bad.count, "encoding": encoded.report.as_dict()},
        "notes": [*read.notes, *encoded.report.notes],
    }


def _print_data(
    config: SFTConfig, data: dict[str, Any], encoded: EncodedExamples, console: Console
) -> None:
    tokens = sum(map(len, encoded.examples))
    learned = sum(len(example.targets) for example in encoded.examples)
    how = data["layout"]
    if not how.startswith(data["format"]):  # as that of plain text does
        how = f"{data['format']}, {how}"
    many = f"{len(encoded.examples):,} examples of {config.data}: {how}"
    console.print(literal(f"{many}; {tokens:,} tokens, of which {learned:,} are learned"))
    for note in data["notes"]:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))


def _print_report(report: SFTReport, console: Console) -> None:
    if report.stopped == "early":
        console.print(literal(report.reason))
    if report.kept_step != report.steps:
        console.print(
            f"the weights of step {report.kept_step:,} are kept, which have the lowest held-out "
            "loss."
        )
    table = Table(title="supervised fine-tuning", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in report.as_dict().items():
        if isinstance(value, int) and not isinstance(value, bool):
            table.add_row(name, f"{value:,}")
        elif isinstance(value, float) and math.isfinite(value):
            table.add_row(name, f"{value:,.4f}" if value < 1000 else f"{value:,.0f}")
    console.print(table)
    for note in report.notes:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))


def _write(output: OutputFolder, language_model: LanguageModel, report: dict[str, Any]) -> None:
    """Put a whole model in the place of an old one, and touch no other file."""
    stage = output.root / f".{_STAGE}.tmp"
    try:
        with writing(output.root):
            stage.mkdir()
            save_sft(language_model, stage)
        write_json(stage / "report.json", report)
        leftovers = {path.name for pattern in _OF_A_MODEL for path in output.root.glob(pattern)}
        output.take_in(stage, {ADAPTER_FOLDER, *leftovers})
    finally:
        discard(stage)
