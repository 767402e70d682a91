"""The command line: `tokenrlhf COMMAND`.

The commands are train, evaluate, sample, explain, report, play, sft, sample-pairs, reward-model,
labels, audit, best-of-n, serve-reward, data, verify, compare, zoo and plan.
`tokenrlhf COMMAND --help` explains every setting with its default; `tokenrlhf --version` says which
version is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console
from rich.text import Text

from agents.command_line.option_hints import refuse_other_names
from agents.compare.config import CompareConfig
from agents.config import TrainConfig
from agents.console import literal, new_console
from agents.inspection.config import DataConfig
from agents.labelling.config import LabelsAskConfig, SamplePairsConfig
from agents.plan.config import PlanConfig
from agents.play.config import PlayConfig
from agents.report.config import ReportConfig
from agents.reward_quality.audit.config import AuditConfig
from agents.reward_quality.best_of_n.config import BestOfNConfig
from agents.reward_quality.labels.config import LabelsCurveConfig, LabelsSelectConfig
from agents.runs.config import (
    EvaluateConfig,
    ExplainConfig,
    RewardModelConfig,
    SampleConfig,
)
from agents.runs.resumed_settings import settings_of_run
from agents.runs.tables import (
    print_before_and_after,
    print_end,
    print_places,
    print_summary,
)
from agents.scaling import (
    ALONE,
    AgreedError,
    RankLost,
    Ranks,
    is_launched,
    rank_of_environment,
    ranks_of_command,
)
from agents.serving.config import ServeRewardConfig
from agents.sft.config import SFTConfig
from agents.verification.config import VerifyConfig
from agents.zoo import require_task, settings_at
from agents.zoo.config import ZooConfig
from tokenenv.memory import is_out_of_memory
from tokenenv.printable import printable
from tokenenv.stop_signals import StopSignal, stop_signals

__all__ = ["main"]

Labels = (
    Annotated[LabelsCurveConfig, tyro.conf.subcommand("curve")]
    | Annotated[LabelsSelectConfig, tyro.conf.subcommand("select")]
    | Annotated[LabelsAskConfig, tyro.conf.subcommand("ask")]
)
LABELS = tyro.conf.subcommand("labels", description="What labels cost, and which to buy next.")

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[SampleConfig, tyro.conf.subcommand("sample")]
    | Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
    | Annotated[PlayConfig, tyro.conf.subcommand("play")]
    | Annotated[SFTConfig, tyro.conf.subcommand("sft")]
    | Annotated[SamplePairsConfig, tyro.conf.subcommand("sample-pairs")]
    | Annotated[RewardModelConfig, tyro.conf.subcommand("reward-model")]
    | Annotated[Labels, LABELS]
    | Annotated[AuditConfig, tyro.conf.subcommand("audit")]
    | Annotated[DataConfig, tyro.conf.subcommand("data")]
    | Annotated[BestOfNConfig, tyro.conf.subcommand("best-of-n")]
    | Annotated[ServeRewardConfig, tyro.conf.subcommand("serve-reward")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[ZooConfig, tyro.conf.subcommand("zoo")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
)


def _configs(commands: Any, before: str = "") -> dict[str, Any]:
    """Command, of one word or of two → the dataclass of its options."""
    configs: dict[str, Any] = {}
    for config, subcommand in map(get_args, get_args(commands)):
        name = f"{before}{subcommand.name}"
        configs |= _configs(config, f"{name} ") if get_args(config) else {name: config}
    return configs


_CONFIGS = _configs(Command)
"""Command → the dataclass of its options."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0; 1 where `verify` found a failure, or `plan` that it does not fit; 2 for a mistake in the
    input; for signals what a shell expects: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    console = new_console()
    _import_from_working_directory()
    arguments = sys.argv[1:] if arguments is None else arguments
    with stop_signals():
        return _run(arguments, console)


def _run(arguments: list[str], console: Console) -> int:
    try:
        _refuse_empty(arguments)
        _refuse_no_text(arguments)
        if arguments == ["--version"]:
            console.print(_version(), highlight=False)
            return 0
        command = _parse(arguments)
        if isinstance(command, TrainConfig):
            require_task(command)
        _runner(command)(command, console)
    except KeyboardInterrupt as stop:
        if not _rank():
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print("stopped.")
        return stop.exit_status if isinstance(stop, StopSignal) else 130
    except (OSError, ValueError, RankLost) as error:
        said = _file_error(error) if isinstance(error, OSError) else str(error)
        if not isinstance(error, AgreedError) or _rank() == 0:  # every rank has it
            _print_error(said)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _print_error(
            f"there is not enough memory ({reason}). Take smaller numbers (--n-envs, --batch-size, "
            "--max-tokens), a smaller model, or another --device."
        )
        return 2
    return 0


def _version() -> str:
    try:
        return f"tokenrlhf {importlib.metadata.version('tokenrlhf')}"
    except importlib.metadata.PackageNotFoundError:  # called out of a folder of its files
        return "tokenrlhf, not installed"


def _rank() -> int:
    """This process's number among those that were launched with it."""
    try:
        return rank_of_environment()[0]
    except ValueError:
        return 0


def _print_error(said: str) -> None:
    if _rank():
        said = f"rank {_rank()}: {said}"
    new_console(stderr=True).print(Text.assemble(("error: ", "bold red"), literal(said)))


def _import_from_working_directory() -> None:
    """Let 'module:attribute' name a module of the folder that the command is called in.

    It comes last: a `torch.py` in it is not torch. A console script does not see the folder at all;
    `python -m` puts it first, and what was imported until here may be the folder's.
    """
    folder = os.getcwd()
    if sys.path[0] in ("", folder):
        del sys.path[0]
    if folder not in sys.path:
        sys.path.append(folder)


def _parse(arguments: list[str]) -> Any:
    """The command that is asked for; SystemExit where the arguments are wrong, with help for them.

    tyro shows a wrong argument as it came, so that one with controls in it is parsed once more in
    a form that can be shown.
    """
    shown = [printable(argument) for argument in arguments]
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if len(arguments) >= words and name in _CONFIGS:
            refuse_other_names(name, _CONFIGS[name], arguments[words:])
    commands = _with_settings(arguments)
    parse = functools.partial(tyro.cli, commands, prog="tokenrlhf", description=__doc__)
    if shown == arguments:
        return parse(args=arguments)
    try:
        return parse(args=arguments, console_outputs=False)
    except SystemExit as stopped:
        parse(args=shown)
        raise stopped from None


def _with_settings(arguments: list[str]) -> Any:
    """`Command`; the defaults of `train` are those of a `--config` file, or of a run to resume."""
    path, run = _value_of("--config", arguments), _value_of("--resume", arguments)
    if not arguments or arguments[0] != "train" or (path is None and run is None):
        return Command
    if path is not None and run is not None:
        raise ValueError(
            f"--config {path} and --resume {run} both bring settings: a run goes on with its own."
        )
    settings = settings_at(path) if run is None else settings_of_run(Path(run))  # type: ignore[arg-type]
    train: Any = Annotated[TrainConfig, tyro.conf.subcommand("train", default=settings)]
    others = [c for c in get_args(Command) if get_args(c)[0] is not TrainConfig]
    return functools.reduce(operator.or_, others, train)


def _value_of(name: str, arguments: list[str]) -> str | None:
    """What an option was given, the last time; None where it was not."""
    value = None
    for option, argument in zip(["", *arguments], [*arguments, ""], strict=True):
        if option == name:
            value = argument
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value


def _refuse_empty(arguments: list[str]) -> None:
    """Raise ValueError for an empty path or name, as an unset variable of a shell gives it.

    An empty path is the working directory to Python, and an empty name nothing: neither is meant.
    """
    for option, argument in zip(["", *arguments], arguments, strict=False):
        name, is_assigned, value = argument.partition("=")
        if is_assigned and name.startswith("--"):
            option, argument = name, value
        if not argument.strip() and option != "--prompt":
            raise ValueError(
                f"{option or 'the command'} got {argument!r}: give a value, or leave the option "
                "out."
            )


def _refuse_no_text(arguments: list[str]) -> None:
    """Raise ValueError for bytes that are no text: what is written down of them can't be read back.

    Python hands on bytes that are no UTF-8 as lone surrogates, which no JSON file may hold.
    """
    for argument in arguments:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in argument):
            raise ValueError(
                f"the argument {argument!r} holds a NUL, or bytes that are no UTF-8: give it as "
                "text, and run the command again."
            )


def _file_error(error: OSError) -> str:
    if error.filename is None:
        return str(error)
    return (
        f"{str(error.filename)!r} can't be read or written ({error.strerror}): give another path, "
        "or make this one accessible."
    )


def _train(config: TrainConfig, console: Console) -> None:
    if is_launched():
        _train_among_ranks(config, console)
        return
    is_one = config.seeds is None and not config.sweep
    if is_one or config.resume is not None:
        _train_once(config, console)
        return
    from agents.command_line.seeds import launch, train_seeds
    from agents.report.page import NAME, write_page
    from agents.report.run_files import read_run

    if config.launcher is not None or config.sweep:
        folders = launch(config, console)
        place = folders[0].parents[1] if config.sweep else folders[0].parent
    else:
        folders = train_seeds(config, console, lambda one: _train_once(one, console))
        place = folders[0].parent
    page = write_page([read_run(path, 1e6) for path in folders], place / NAME)
    console.print(Text.assemble("all seeds on one page: ", literal(page, "bold")))


def _train_among_ranks(config: TrainConfig, console: Console) -> None:
    """Train as one of several processes: the first makes the run, the others train with it."""
    if config.seeds is not None and config.resume is None:
        raise ValueError(
            f"seeds={config.seeds} trains several runs, and several processes train one: start "
            "each seed by itself, or one process."
        )
    if config.sweep or config.launcher is not None:
        given = "sweep" if config.sweep else "launcher"
        raise ValueError(
            f"{given}={getattr(config, given)!r} starts several runs, and several processes train "
            "one: leave it out, or start one process."
        )
    from agents.runs.ranks import FollowingRun

    with ranks_of_command(config.device) as ranks:
        if ranks.is_first:
            _train_once(config, console, ranks)
        else:
            logging.getLogger("agents").setLevel(logging.ERROR)  # the first rank warns
            FollowingRun(config, ranks).train()


def _train_once(config: TrainConfig, console: Console, ranks: Ranks = ALONE) -> dict[str, Any]:
    from agents.runs.curves import read_metrics
    from agents.runs.training import Interrupted, TrainingRun

    run = TrainingRun(config, console, ranks)
    try:
        summary = run.train()
    except Interrupted as stopped:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            console.print(literal(stopped))
        raise SystemExit(stopped.exit_status) from None
    print_before_and_after(console, run.before, run.after)
    print_summary(console, summary)
    _write_report(run.run.root, console)
    print_places(console, run.run.root, run.after[0].prompt, bool(config.names_of_code()))
    print_end(console, run.run.root, config, summary, read_metrics(run.run.metrics))
    return summary


def _write_report(root: Path, console: Console) -> None:
    """Make the page of a finished run; what the run has saved does not depend on it."""
    try:
        from agents.report.page import write_report

        write_report(root)
    except Exception as error:  # whatever it is, the training is done
        reason = _file_error(error) if isinstance(error, OSError) else str(error)
        console.print(Text.assemble(("note: ", "yellow"), literal(f"no report.html: {reason}")))


def _verify(config: VerifyConfig, console: Console) -> None:
    from agents.verification.command import verify

    if not verify(config, console):
        raise SystemExit(1)


_RUNNERS: dict[type, Any] = {
    TrainConfig: _train,
    EvaluateConfig: "agents.runs.evaluate:evaluate_run",
    SampleConfig: "agents.runs.sample:sample_from_run",
    ExplainConfig: "agents.runs.explain:explain",
    PlayConfig: "agents.play.command:play",
    SFTConfig: "agents.runs.sft:fine_tune_from_file",
    SamplePairsConfig: "agents.labelling.command:sample_pairs_into_file",
    RewardModelConfig: "agents.runs.reward_model:train_from_file",
    LabelsCurveConfig: "agents.reward_quality.labels.curve:learning_curve",
    LabelsSelectConfig: "agents.reward_quality.labels.select:select_pairs",
    LabelsAskConfig: "agents.labelling.command:ask_about_file",
    AuditConfig: "agents.reward_quality.audit.command:audit_reward",
    DataConfig: "agents.inspection.command:run",
    BestOfNConfig: "agents.runs.best_of_n:best_of_n_into_files",
    ServeRewardConfig: "agents.serving.command:serve_reward",
    VerifyConfig: _verify,
    CompareConfig: "agents.compare.command:compare",
    ReportConfig: "agents.report.command:report",
    ZooConfig: "agents.zoo.command:show",
    PlanConfig: "agents.plan.command:plan",
}
"""Command → its function of (config, console), or where that is, so that only one command's modules
are loaded."""


def _runner(config: Any) -> Callable[[Any, Console], Any]:
    runner = _RUNNERS[type(config)]
    if not isinstance(runner, str):
        return runner
    module, _, name = runner.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
