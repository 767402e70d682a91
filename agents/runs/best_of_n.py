"""`tokenrlhf best-of-n`: the baseline that trains nothing, and where a run stands beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from agents.atomic_files import write_json
from agents.console import literal, progress_bar
from agents.evaluation import HeldOut
from agents.policy import LMActorCriticPolicy
from agents.reward_quality.best_of_n.config import (
    DEFAULT_PROMPTS,
    DEFAULT_SAMPLES,
    BestOfNConfig,
)
from agents.reward_quality.best_of_n.measuring import BestOfNReport, in_closed_form, sampled
from agents.reward_quality.best_of_n.view import print_report
from agents.runs.folder import RunFolder
from tokenenv.mdp import TokenMDP
from tokenenv.optimum import PrefixTree, enumerate_mdp
from tokenenv.settings import EnvSettings, ResolvedSettings

__all__ = ["best_of_n_into_files"]


def best_of_n_into_files(config: BestOfNConfig, console: Console) -> BestOfNReport:
    """Measure best-of-n and print it, with the files that are asked for.

    Raises:
        ValueError: the settings, the run or the task can't be used.
    """
    _check_json(config)
    run = None if config.run is None else RunFolder.open(config.run)
    held_out = _held_out(config, run)
    policy = None
    if run is not None:
        device = held_out.settings.device
        policy = LMActorCriticPolicy.from_pretrained(run.policy, device).actor
    report = _measure(config, held_out, policy, console)
    name = None if config.run is None else str(config.run)
    print_report(console, report, name)
    if config.json is not None:
        write_json(config.json, _content(config, held_out.settings, report))
        console.print(Text.assemble("wrote ", literal(config.json, "bold")))
    if config.figure is not None:
        from agents.reward_quality.best_of_n.figure import draw_report  # matplotlib: a second

        draw_report(report, config.figure, name)
        console.print(Text.assemble("drew ", literal(config.figure, "bold")))
    return report


def _check_json(config: BestOfNConfig) -> None:
    """Raise ValueError where the file can't be written, before the work."""
    path = config.json
    if path is None:
        return
    is_no_path = "\0" in str(path) or not path.name
    if is_no_path or path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"json={str(path)!r} is no place for a file: give a file's path in a folder that is "
            "there."
        )


def _held_out(config: BestOfNConfig, run: RunFolder | None) -> HeldOut:
    """The prompts, of the run's environment or of that of the options."""
    if run is None:
        return HeldOut.from_env_kwargs(config.environment(), config.eval_prompts or DEFAULT_PROMPTS)
    trained = run.read_config(config.trust_code)
    environment = {**run.environment(trained, "eval"), "scoring": "deferred"}
    if config.device is not None:
        environment["device"] = config.device
    return HeldOut.from_env_kwargs(environment, config.eval_prompts or trained.eval_prompts)


def _measure(
    config: BestOfNConfig, held_out: HeldOut, policy: Any, console: Console
) -> BestOfNReport:
    kl_coef = held_out.settings.kl_coef
    tree = _tree(config, held_out)
    if tree is not None:
        with console.status("best-of-n in closed form"):
            return in_closed_form(tree, config.sizes(None), kl_coef, policy)
    samples = config.samples or DEFAULT_SAMPLES
    sizes = config.sizes(samples)
    with _progress(console) as on_progress:
        return sampled(held_out, sizes, samples, kl_coef, config.seed, policy, on_progress)


def _tree(config: BestOfNConfig, held_out: HeldOut) -> PrefixTree | None:
    """All responses, where they are to be enumerated; None where best-of-n is sampled.

    Raises:
        ValueError: there are too many, and they were asked for.
    """
    if config.samples is not None:
        return None
    if held_out.solution is not None:
        return held_out.solution.tree
    if not config.closed_form:
        return None
    mdp = TokenMDP(EnvSettings(**asdict(held_out.settings)), num_envs=1)
    return enumerate_mdp(mdp, held_out.origins)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    with progress_bar(console) as bar:
        task = bar.add_task("sampling", total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _content(
    config: BestOfNConfig, settings: ResolvedSettings, report: BestOfNReport
) -> dict[str, Any]:
    """What is written as JSON: of what, how, and the numbers; infinities are null."""
    names = ("task", "reference", "reward_model", "reward_weights", "prompts", "split")
    return {
        "schema": 1,
        "run": None if config.run is None else str(config.run),
        "settings": {
            name: getattr(settings, name) for name in (*names, "max_new_tokens", "temperature")
        },
        "seed": None if report.is_exact else config.seed,
        **asdict(report),
    }
