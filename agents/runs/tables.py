"""What a command prints at its end: responses, the summary, and where everything lies."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from agents.runs.outcome import lines_of_a_fall

if TYPE_CHECKING:
    from agents.config import TrainConfig
    from agents.evaluation import ResponseReport
    from tokenenv.settings import ResolvedSettings

__all__ = [
    "print_before_and_after",
    "print_end",
    "print_of_the_task",
    "print_places",
    "print_responses",
    "print_summary",
]


def print_of_the_task(console: Console, config: TrainConfig, settings: ResolvedSettings) -> None:
    """One line about the settings that were not given and are the task's."""
    models = [n for n in ("reference", "reward_model", "prompts") if getattr(config, n) is None]
    numbers = [
        f"{name} {getattr(settings, name):g}"
        for name in ("max_prompt_tokens", "max_new_tokens", "kl_coef")
        if getattr(config, name) is None
    ]
    if models or numbers:
        what = ", ".join([*models, *numbers])
        console.print(literal(f"from the task {config.task!r}: {what}"))


def _gold(report: ResponseReport) -> str:
    return "" if report.gold_reward is None else f"{report.gold_reward:+.2f}"


def print_before_and_after(
    console: Console, before: list[ResponseReport], after: list[ResponseReport]
) -> None:
    """Two responses to each prompt: of the untrained policy and of the trained one."""
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


def print_responses(console: Console, title: str, reports: list[ResponseReport]) -> None:
    """Responses with their score, gold reward and KL."""
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
    "gain_interval": "95 % interval of the difference of the two",
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


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The numbers of `summary.json` with their meaning, and what to think of an estimate."""
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
    reduced, prompts = summary.get("evaluation_reduced_from"), summary.get("prompts")
    if prompts is None or (reduced is None and prompts < min(64, summary["prompts_asked_for"])):
        return  # nothing was measured, or there are no more
    if prompts < 64:
        console.print(
            f"[yellow]note:[/yellow] measured on {prompts} held-out prompts; 64 or more "
            "give a steadier number."
        )


def print_end(
    console: Console, root: Path, config: TrainConfig, summary: dict[str, Any], rows: Any = ()
) -> None:
    """The last lines of a run that needs some: it fell below the untrained model, or nobody knows.

    Args:
        console: where to.
        root: folder of the run.
        config: of the run.
        summary: of the run.
        rows: of its metrics.
    """
    if summary.get("evaluated") is False:
        told = f"not evaluated (--eval-responses 0); to measure J: tokenrlhf evaluate {root}"
        console.print(Text.assemble(("note: ", "yellow"), literal(told)))
    if (best := summary.get("best_checkpoint")) is not None:
        told = (
            f"best evaluation on the way: {best['folder']}/, J about {best['objective']:.3g} after "
            f"{best['tokens']:,} tokens"
        )
        console.print(literal(told))
    if summary.get("ended_early") is not None:
        told = (
            f"stopped after {summary['tokens']:,} of {config.total_tokens:,} tokens, as asked for "
            f"by --on-hacking-alarm stop: {summary['ended_early']}"
        )
        console.print(Text.assemble(("note: ", "yellow"), literal(told)))
    first, *more = lines_of_a_fall(
        summary, config.learning_rate, rows, config.actor is not None
    ) or [""]
    if first:
        console.print(Text.assemble(("warning: ", "bold yellow"), literal(first)))
    for line in more:
        console.print(literal(line))


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " … ".join(_shown(v) for v in value)
    if isinstance(value, str):
        return value
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def print_places(console: Console, root: Path, prompt: str, needs_trust: bool) -> None:
    """What lies in a run's folder, and the command to try next."""
    places = {
        "report.html": "all of it as a page: open it in a browser",
        "summary.json": "the numbers above",
        "curves.png": "score, gold reward, KL and objective over the run",
        "policy/": "the trained model, for transformers; no code in it: the form to pass on",
        "metrics.jsonl": "every update",
        "samples.jsonl": "responses as they changed",
        "tokens/": "which token got which update: `tokenrlhf explain` shows one response",
        "checkpoints/": "`tokenrlhf train --resume` goes on from the newest; archives beside them "
        "(.zip) are for TokenPPO.load, which unpickles: only from those you trust",
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
