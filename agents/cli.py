"""The command line: `tokenrlhf train | evaluate | sample | reward-model | verify | compare`.

`tokenrlhf COMMAND --help` explains every setting with its default; `tokenrlhf --version` says which
version is installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.compare.config import CompareConfig
from agents.config import EvaluateConfig, RewardModelConfig, SampleConfig, TrainConfig, VerifyConfig
from agents.console import literal, new_console
from tokenenv.memory import is_out_of_memory
from tokenenv.printable import printable
from tokenenv.stop_signals import StopSignal, stop_signals

if TYPE_CHECKING:
    from agents.evaluation import ResponseReport

__all__ = ["main"]

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[SampleConfig, tyro.conf.subcommand("sample")]
    | Annotated[RewardModelConfig, tyro.conf.subcommand("reward-model")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0; 1 where `verify` found a failure; 2 for a mistake in the input; for signals what a shell
    expects: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
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
        _RUNNERS[type(command)](command, console)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            console.print("stopped.")
        return stop.exit_status if isinstance(stop, StopSignal) else 130
    except (OSError, ValueError) as error:
        said = _file_error(error) if isinstance(error, OSError) else str(error)
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


def _print_error(said: str) -> None:
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
    parse = partial(tyro.cli, Command, prog="tokenrlhf", description=__doc__)
    if shown == arguments:
        return parse(args=arguments)
    try:
        return parse(args=arguments, console_outputs=False)
    except SystemExit as stopped:
        parse(args=shown)
        raise stopped from None


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
    from agents.runs.training import Interrupted, TrainingRun

    run = TrainingRun(config, console)
    try:
        summary = run.train()
    except Interrupted as stopped:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            console.print(literal(stopped))
        raise SystemExit(stopped.exit_status) from None
    _print_before_and_after(console, run.before, run.after)
    _print_summary(console, summary)
    _print_places(console, run.run.root, run.after[0].prompt, bool(config.names_of_code()))


def _evaluate(config: EvaluateConfig, console: Console) -> None:
    import dataclasses

    from agents.evaluation import HeldOut, evaluate
    from agents.policy import LMActorCriticPolicy
    from agents.runs.folder import RunFolder
    from agents.runs.progress import evaluation_progress
    from agents.runs.training import summarize
    from tokenenv.models import load_trainable

    run = RunFolder.open(config.run)
    trained = run.read_config(config.trust_code)
    # None, and nothing else, stands for the run's own.
    prompts, responses = config.eval_prompts, config.eval_responses
    prompts = trained.eval_prompts if prompts is None else prompts
    responses = trained.eval_responses if responses is None else responses
    held_out = HeldOut.from_env_kwargs(trained.environment(), prompts)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, held_out.settings.device)
    with evaluation_progress(console, held_out) as on_progress:
        comparison = evaluate(
            policy.actor,
            held_out,
            responses,
            config.seed,
            on_progress,
            None if trained.actor is None else load_trainable(trained.actor).model,
        )
    seeded = dataclasses.replace(trained, seed=config.seed)
    _print_summary(console, summarize(seeded, held_out, comparison))


def _sample(config: SampleConfig, console: Console) -> None:
    from agents.evaluation import respond
    from agents.policy import LMActorCriticPolicy
    from agents.runs.folder import RunFolder
    from tokenenv.mdp import TokenMDP
    from tokenenv.settings import EnvSettings

    run = RunFolder.open(config.run)
    trained = run.read_config(config.trust_code)
    mdp = TokenMDP(EnvSettings(**trained.environment("eval")), num_envs=1)
    prompt = mdp.encode_prompt(config.prompt)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, mdp.settings.device)
    reference = mdp.language_model.model
    for title, actor in (("policy", policy.actor), ("reference", reference)):
        count = 1 if config.greedy else config.n
        reports = respond(
            actor,
            mdp.scorer,
            [config.prompt] * count,
            [prompt] * count,
            mdp.max_new_tokens,
            config.seed,
            config.greedy,
        )
        _print_responses(console, title, reports)


def _reward_model(config: RewardModelConfig, console: Console) -> None:
    from agents.runs.reward_model import train_from_file

    train_from_file(config, console)


def _verify(config: VerifyConfig, console: Console) -> None:
    from agents.verification.command import verify

    if not verify(config, console):
        raise SystemExit(1)


def _compare(config: CompareConfig, console: Console) -> None:
    from agents.compare.command import compare

    compare(config, console)


_RUNNERS: dict[type, Any] = {
    TrainConfig: _train,
    EvaluateConfig: _evaluate,
    SampleConfig: _sample,
    RewardModelConfig: _reward_model,
    VerifyConfig: _verify,
    CompareConfig: _compare,
}


# What is printed ---------------------------------------------------------------------------------


def _gold(report: ResponseReport) -> str:
    return "" if report.gold_reward is None else f"{report.gold_reward:+.2f}"


def _print_before_and_after(
    console: Console, before: list[ResponseReport], after: list[ResponseReport]
) -> None:
    table = Table(title="held-out prompts, before and after", title_justify="left")
    for header in ("prompt", "", "response"):
        table.add_column(header)
    table.add_column("score", justify="right")
    table.add_column("gold", justify="right")
    for old, new in zip(before, after, strict=True):
        for when, report in (("before", old), ("after", new)):
            table.add_row(
                literal(report.prompt) if when == "before" else "",
                when,
                literal(report.response.strip()),
                f"{report.score:+.2f}",
                _gold(report),
                end_section=when == "after",
            )
    console.print(table)


def _print_responses(console: Console, title: str, reports: list[ResponseReport]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("response")
    for header in ("score", "gold", "KL"):
        table.add_column(header, justify="right")
    for report in reports:
        table.add_row(
            literal(report.response.strip()),
            f"{report.score:+.2f}",
            _gold(report),
            f"{round(report.kl, 2) + 0.0:.2f}",  # no -0.00
        )
    console.print(table)


_MEANING = {
    "objective": "J = E[R] − β·KL, held-out prompts",
    "objective_reference": "J of the untrained actor",
    "optimum": "J*, exact: all responses enumerated",
    "optimum_lower_bound": "J* is at least this",
    "optimum_interval": "95 % interval of that bound",
    "objective_fraction": "(J − J_ref)/(J* − J_ref)",
    "fraction_interval": "95 % interval",
    "effective_sample_size": "share of the samples that carry the bound, median prompt",
    "least_effective_sample_size": "the same, of the prompt where it is least",
    "kl": "KL(π ‖ π_ref) per response, nats",
    "kl_to_optimum": "KL(π ‖ π*) per response, nats",
    "kl_coef": "β that J is measured at",
    "kl_coef_final": "β where the controller left it",
    "score": "E[R]",
    "score_reference": "E[R] of the reference",
    "gold_reward": "true reward, never seen in training",
    "gold_reward_reference": "true reward of the reference",
    "response_length": "tokens",
    "eos_rate": "share of responses that end by themselves",
    "tokens": "response tokens trained on",
    "tokens_per_second": "of the training, everything included",
    "wall_seconds": "of the training",
    "precision": "in which updates were computed",
    "seed": "",
}


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    table = Table(title="summary", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    is_exact = summary.get("optimum") is not None
    for name, meaning in _MEANING.items():
        if summary.get(name) is not None:
            at_most = ", at most" if name == "objective_fraction" and not is_exact else ""
            table.add_row(name, literal(_shown(summary[name])), meaning + at_most)
    console.print(table)
    if not is_exact:
        _warn_of_the_estimate(console, summary)


def _warn_of_the_estimate(console: Console, summary: dict[str, Any]) -> None:
    share = summary.get("least_effective_sample_size")
    if share is not None and not summary["is_reliable"]:
        console.print(
            "[yellow]warning:[/yellow] take the bound on J* and the fraction as rough ones: "
            f"{summary['prompts'] * summary['responses_per_prompt'] // 2:,} samples of the "
            f"reference (4,096 or more show rare responses), of which {share:.1%} carry the bound "
            "at some prompt (under 5 %, the policy lacks responses that the optimum has). "
            "--eval-responses raises the first."
        )
    if summary["prompts"] < min(64, summary["prompts_asked_for"]):
        return  # there are no more
    if summary["prompts"] < 64:
        console.print(
            f"[yellow]note:[/yellow] measured on {summary['prompts']} held-out prompts; 64 or more "
            "give a steadier number."
        )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " … ".join(_shown(v) for v in value)
    if isinstance(value, str):
        return value
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def _print_places(console: Console, root: Path, prompt: str, needs_trust: bool) -> None:
    places = {
        "summary.json": "the numbers above",
        "curves.png": "score, gold reward, KL and objective over the run",
        "policy/": "the trained model, for transformers; no code in it: the form to pass on",
        "metrics.jsonl": "every update",
        "samples.jsonl": "responses as they changed",
        "checkpoints/": "TokenPPO.load reads them; it unpickles: only from those you trust",
    }
    console.print(Text.assemble("in ", literal(root, "bold"), ":"))
    for name, meaning in places.items():
        console.print(f"  {name:<15} {meaning}")
    # As it was called: `make demo` calls it out of a virtual environment that is not activated.
    called = Path(sys.argv[0])
    command = str(called) if called.name == "tokenrlhf" and called.is_file() else "tokenrlhf"
    call = ["sample", str(root), "--prompt", prompt]
    if needs_trust:
        call.append("--trust-code")
    console.print(literal(f"next: {command} {shlex.join(call)}"))


if __name__ == "__main__":
    sys.exit(main())
