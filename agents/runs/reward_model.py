"""`tokenrlhf reward-model`: a reward model from a file of preference pairs, or an ensemble."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from agents.console import literal, progress_bar
from agents.runs.output_folder import OutputFolder
from agents.runs.reward_model_config import RewardModelConfig, RewardTrainingOptions
from agents.runs.reward_model_files import STAGE, write_reward_models
from agents.runs.reward_model_tables import evaluation_line, print_report, print_training
from agents.scaling import AgreedError, Ranks, ranks_of_command, refuse_different_models
from agents.scaling.data_parallel import data_parallel
from tokenenv.data import ReadReport, parse_columns, read_pairs
from tokenenv.models import (
    LanguageModel,
    LoraSettings,
    OneProcess,
    add_lora,
    load_frozen,
    resolve_device,
)
from tokenenv.rewards import (
    HeldOutReport,
    PairEvaluation,
    PairSplit,
    RewardModel,
    RewardTrainingError,
    RewardTrainingSettings,
    TokenPair,
    TruncationReport,
    check_shared_tokenizer,
    distribution,
    ensemble_report,
    held_out_scores,
    new_reward_model,
    reference_rewards,
    seam_differences_of,
    split_pairs,
    train_reward_model,
    truncated_pairs,
)
from tokenenv.stop_signals import hold_signals, signal_is_pending, stop_signals
from tokenenv.tasks import is_bundled, model_source

__all__ = ["new_member", "read_token_pairs", "train_from_file"]


def train_from_file(config: RewardModelConfig, console: Console) -> dict[str, Any]:
    """Train on `config.pairs` and write the reward model and `report.json` to `config.out`.

    Returns:
        The report on the held-out pairs.

    Raises:
        ValueError: the pairs, the base or the folder can't be used; or a number of the training was
            not finite, or the rewards do not vary: what was learned has been written then.
    """
    with ranks_of_command(config.device) as ranks, stop_signals(), contextlib.ExitStack() as stack:
        if not ranks.is_first:
            console = Console(quiet=True)
        output = ranks.agree(lambda: _output(config, ranks, stack))
        return _train(config, output, console, ranks)


def _output(
    config: RewardModelConfig, ranks: Ranks, stack: contextlib.ExitStack
) -> OutputFolder | None:
    """The folder, on the rank that writes it."""
    if not ranks.is_first:
        return None
    output = OutputFolder.new(config.out, [STAGE], config.overwrite)
    return stack.enter_context(contextlib.closing(output))


def _train(
    config: RewardModelConfig, output: OutputFolder | None, console: Console, ranks: Ranks
) -> dict[str, Any]:
    settings = RewardTrainingSettings(**config.training())
    own = dataclasses.replace(config, device=ranks.device or config.device)

    def load() -> tuple[RewardModel, list[TokenPair], dict[str, Any]]:
        first = new_member(own, config.base, config.out, 0)
        return first, *read_token_pairs(config.pairs, config, first, console)

    first, pairs, data = ranks.agree(load)
    refuse_different_models(ranks, _as_json(config), _contents(pairs), first.model)
    split = split_pairs(pairs, settings, np.random.default_rng(settings.seed))
    reference = _reference(own, first)
    sizes = f"{len(split.training):,} train, {len(split.selection):,} choose the weights"
    console.print(
        literal(f"by {split.held_out_by}: {sizes}, {len(split.reported):,} are reported on")
    )
    trained, together, is_stopped = _Trained([], []), data_parallel(ranks), False
    # A signal ends the training, not the writing of what it has learned.
    with hold_signals():
        for number in range(config.members):
            member = first
            if number:
                member = new_member(own, config.base, config.out, number)
            if config.members > 1:
                console.print(literal(f"member {number + 1} of {config.members}"))
            trained.members.append(member)
            with ranks.talking():
                error = _train_member(trained, pairs, settings, number, console, together)
                is_stopped = together.any(signal_is_pending())
                if error or is_stopped:
                    break
        report = trained.reports[0]
        if len(trained.members) > 1:
            report = ensemble_report(pairs, trained.members, trained.reports, settings)
        scores = _add_reference(config, report, trained, split, reference)
        content = {
            **report.as_dict(),
            "data": data,
            "settings": _as_json(config),
            "training_settings": dataclasses.asdict(settings),
            "finished": not (is_stopped or signal_is_pending()) and error is None,
            "ended_by": None if error is None else str(error),
        }
        if output is not None:
            write_reward_models(
                output, trained.members, model_source(config.base, "reference"), content, scores
            )
        if signal_is_pending():
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print(literal(f"stopped: what was learned so far is in {config.out}"))
    print_report(report, console)
    if error is not None:
        raise AgreedError(f"{error} What there is of the reward model is in {config.out}.")
    console.print(literal(_use(config, len(trained.members))))
    return content


@dataclasses.dataclass
class _Trained:
    """Reward models and their reports."""

    members: list[RewardModel]
    reports: list[HeldOutReport]


def new_member(
    config: RewardTrainingOptions, base: str, out: Path | None, number: int
) -> RewardModel:
    """A model to train, with adapters where they are asked for.

    Args:
        config: the settings.
        base: task name, folder or hub id of the model to start from.
        out: folder that it will be written to, if it will.
        number: added to the seed.

    Raises:
        ValueError: the base can't be used, or would be replaced by what is trained.
    """
    name, seed = model_source(base, "reference"), config.seed + number
    is_base = out is not None and os.path.realpath(name) == os.path.realpath(out)
    if config.lora_rank is not None and is_base:
        raise ValueError(
            f"out={str(out)!r} is the base itself: an adapter belongs to the model as it "
            "is, which would be replaced. Choose another folder."
        )
    reward_model = new_reward_model(name, resolve_device(config.device), seed % 2**32)
    if config.lora_rank is not None:
        modules = config.lora_target_modules
        lora = LoraSettings(config.lora_rank, config.lora_alpha, modules)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the adapters' first factors
            add_lora(reward_model.model, lora, f"base={base!r}")
    return reward_model


def read_token_pairs(
    path: str | Path, config: RewardTrainingOptions, reward_model: RewardModel, console: Console
) -> tuple[list[TokenPair], dict[str, Any]]:
    """The pairs of a file as token ids, and what was read and cut, for JSON; it is printed.

    Raises:
        ValueError: the file or a pair in it can't be used.
    """
    read = ReadReport()
    columns = parse_columns(config.columns)
    pairs = read_pairs(path, columns, config.skip_bad, config.ratings, read)
    limit = reward_model.max_tokens if config.max_tokens is None else config.max_tokens
    readable_pairs, cut = truncated_pairs(pairs, reward_model, limit, config.truncation)
    same = sum(pair.chosen == pair.rejected for pair in pairs)
    seams = seam_differences_of(pairs, reward_model)
    data = _data_report(read, cut, len(pairs), same, seams)
    console.print(literal(f"{len(pairs):,} pairs of {path}: {read.format}, {read.layout}"))
    for note in data["notes"]:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))
    return readable_pairs, data


def _reference(config: RewardModelConfig, reward_model: RewardModel) -> LanguageModel | None:
    """The model whose samples are scored: the one that is named, else that of a task."""
    name = config.reference
    if not config.reference_samples:
        return None
    if name is None and is_bundled(config.base):
        name = config.base
    if name is None:
        return None
    reference = load_frozen(model_source(name, "reference"), resolve_device(config.device))
    check_shared_tokenizer(reward_model, reference)
    return reference


def _train_member(
    trained: _Trained,
    pairs: list[TokenPair],
    settings: RewardTrainingSettings,
    number: int,
    console: Console,
    together: OneProcess,
) -> RewardTrainingError | None:
    """Train the last member and append its report; returns what went wrong."""
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=None, note="")

        def on_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, note=f"loss {loss:.3f}")

        def on_evaluation(evaluation: PairEvaluation) -> None:
            if not math.isnan(evaluation.loss):
                bar.console.print(evaluation_line(evaluation), highlight=False)

        try:
            report = train_reward_model(
                *(pairs, trained.members[-1], settings, on_step, on_evaluation, number or None),
                together,
            )
            error = None
        except RewardTrainingError as failure:
            report, error = failure.report, failure
    trained.reports.append(report)
    with contextlib.suppress(OSError):  # of a terminal that is gone
        print_training(report.training, settings, console)
    return error


def _add_reference(
    config: RewardModelConfig,
    report: HeldOutReport,
    trained: _Trained,
    split: PairSplit,
    reference: LanguageModel | None,
) -> dict[str, Any]:
    """Score samples of the reference, add their distribution to the report; gives all scores."""
    scores = held_out_scores(trained.members, split)
    if reference is not None and not signal_is_pending():
        samples = reference_rewards(
            trained.members, reference, split.judged, config.reference_samples, config.seed
        )
        if len(samples):
            scores["reference"] = samples
            report.details["scores"]["reference"] = distribution(samples)
    return scores


def _contents(pairs: list[TokenPair]) -> Iterator[Any]:
    for pair in pairs:
        yield list(map(int, pair.chosen)), list(map(int, pair.rejected)), pair.preference


def _use(config: RewardModelConfig, members: int) -> str:
    """How to use what was trained."""
    if members == 1:
        name = shlex.quote(str(config.out))
        return f"reward model in {config.out}; use it with: tokenrlhf train --reward-model {name}"
    return (
        f"{members} reward models in {config.out}; use their mean with: tokenrlhf train "
        f"--reward-model {shlex.quote(str(config.out))} (or, with --combine min or --combine "
        "uncertainty, what the worst of them says, or their mean less their disagreement)"
    )


def _as_json(config: RewardModelConfig) -> dict[str, Any]:
    content = dataclasses.asdict(config)
    return {**content, "pairs": str(config.pairs), "out": str(config.out)}


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
