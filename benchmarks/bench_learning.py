"""How fast settings learn: response tokens and seconds of training to a given J, on several tasks.

    python benchmarks/bench_learning.py RESULTS.jsonl --tasks exact reviews TASK --seeds 0 1 2 \
        --settings settings.yaml --tokens 204800
    python benchmarks/bench_learning.py RESULTS.jsonl --tasks TASK --peer .venv-trl/bin/python
    python benchmarks/bench_learning.py RESULTS.jsonl --table --goal trl

A task is a bundled one, or a folder of a real one: `python examples/21_real_model.py --task-only`
makes it. Settings are a YAML or JSON file, name → fields of TrainConfig (and `minibatches`,
`adam_epsilon`, arguments of TokenPPO, `policy_kwargs.NAME`), or one by `--set`, called
`--name`. J is measured every so many tokens on the same held-out prompts, with the same seed and at
temperature 1, for a peer's policies too, on the raw scale of a real task's reward model; its time
is not counted, neither is the making of the agent.

Every point is appended to RESULTS as it comes, and runs that are complete there are not made
again: start it again after an interruption, and several processes on different seeds at once. One
process computes with one thread. `--table` prints interquartile means over seeds. A peer's tokens
are those that it generates, what it discards after EOS included.

`--search N` tries N settings with Optuna, by the worst of the tasks. Report results on other seeds
than those that chose the settings.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from learning_peer import check_peer, train_peer
from learning_runs import Run, evaluator, read, record, train
from learning_search import search
from learning_table import goals, level, rows
from reporting import report

PEER = "trl"
QUICK = {"n_envs": 8, "n_steps": 8, "batch_size": 64, "n_epochs": 1}


def settings_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name → settings.

    Raises:
        SystemExit: the file holds something else.
    """
    fixed = dict(_pair(text) for text in arguments.set)
    if arguments.settings is None:
        return {arguments.name: fixed}
    try:
        content = yaml.safe_load(arguments.settings.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"--settings {arguments.settings}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise SystemExit(f"--settings {arguments.settings}: it must map names to settings.")
    return {str(name): {**_numbers(values), **fixed} for name, values in content.items()}


def _pair(text: str) -> tuple[str, Any]:
    name, is_pair, value = text.partition("=")
    if not is_pair:
        raise SystemExit(f"--set {text}: give NAME=VALUE.")
    return name, _number(yaml.safe_load(value))


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def runs_of(
    arguments: argparse.Namespace, task: str, name: str, settings: Mapping[str, Any]
) -> list[Run]:
    """A run for each seed."""
    return [
        Run(
            task,
            name,
            seed,
            settings,
            arguments.tokens,
            arguments.points,
            arguments.responses,
            arguments.prompts,
        )
        for seed in arguments.seeds
    ]


def measure(arguments: argparse.Namespace) -> None:
    """Make the runs that are not there yet."""
    peer, results = arguments.peer, arguments.results
    for task in arguments.tasks:
        if peer is not None:
            if not Path(task).is_dir():
                raise SystemExit(f"--peer: {task!r} is no folder of a task that TRL can read.")
            runs = runs_of(arguments, task, PEER, dict(_pair(text) for text in arguments.set))
        else:
            named = settings_of(arguments).items()
            runs = [run for name, s in named for run in runs_of(arguments, task, name, s)]
        for run in runs:
            made = record(run, train if peer is None else partial(train_peer, peer), results)
            last = made[-1]
            print(  # noqa: T201
                f"{run.label}, {run.name}, seed {run.seed}: J {made[0]['objective']:.3f} → "
                f"{level(made):.3f} after {last['tokens']:,} tokens, {last['cpu_seconds']:.0f} s "
                f"{last.get('failed', '')}"
            )


def find(arguments: argparse.Namespace) -> None:
    """Search for settings."""
    wanted = wanted_goals(arguments)
    goal = {task: _worth_1(arguments, task, wanted) for task in arguments.tasks}

    def trained(task: str, name: str, settings: Mapping[str, Any]) -> list[Any]:
        runs = runs_of(arguments, task, name, settings)
        return [record(run, train, arguments.results) for run in runs]

    fixed = dict(_pair(text) for text in arguments.set)
    search(arguments.search, arguments.results.with_suffix(".study"), fixed, goal, trained)


def _worth_1(arguments: argparse.Namespace, task: str, wanted: Mapping[str, str]) -> float:
    """J that is worth 1 in a search: the goal, else the known optimum."""
    label = Path(task).name if Path(task).is_dir() else task
    if label in wanted:
        return float(wanted[label])
    held_out = evaluator(task, arguments.prompts, arguments.responses).held_out
    if held_out.solution is not None:
        return float(held_out.solution.optimum)
    if held_out.known_optimum is None:
        raise SystemExit(f"--search: no optimum of {label} is known; give --goal {label}=J.")
    return held_out.known_optimum


def wanted_goals(arguments: argparse.Namespace) -> dict[str, str]:
    """Task → goal as it was given; "" → that of all tasks."""
    parts = [text.rpartition("=") for text in arguments.goal]
    return {task: value for task, _, value in parts}


def main(arguments: argparse.Namespace) -> None:
    """Measure or search, or print the table."""
    torch.set_num_threads(1)
    if arguments.peer is not None:
        check_peer(arguments.peer)
    if arguments.table:
        runs = read(arguments.results)
        if not runs:
            raise SystemExit(f"{arguments.results}: there is no finished run in it.")
        try:
            goal = goals(runs, wanted_goals(arguments))
        except ValueError as error:
            raise SystemExit(str(error)) from error
        report(rows(runs, goal), {"results": arguments.results.name}, arguments.json)
        return
    try:
        find(arguments) if arguments.search else measure(arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON Lines that runs are appended to")
    parser.add_argument("--tasks", nargs="+", default=["reviews"], help="names, or folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", type=Path, help="YAML or JSON: name → settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="for all")
    parser.add_argument("--name", default="defaults", help="of the settings that --set gives")
    parser.add_argument("--tokens", type=int, default=65_536, help="response tokens of a run")
    parser.add_argument("--points", type=int, default=10, help="measurements of J in a run")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts")
    parser.add_argument("--responses", type=int, default=4, help="to each of them")
    parser.add_argument("--peer", type=Path, help="run TRL, with the Python of its environment")
    parser.add_argument("--search", type=int, default=0, metavar="N", help="try N settings")
    parser.add_argument("--table", action="store_true", help="print what RESULTS holds")
    parser.add_argument(
        "--goal", nargs="+", default=[], metavar="[TASK=]J", help="J, or the name of settings"
    )
    parser.add_argument("--json", type=Path, help="write the rows of the table here too")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.tokens, arguments.points = arguments.seeds[:1], 256, 2
        arguments.prompts, arguments.responses = 8, 1
        if arguments.peer is None:
            small = [f"{name}={value}" for name, value in QUICK.items()]
            arguments.set = [*small, *arguments.set]
    return arguments


if __name__ == "__main__":
    main(_arguments())
