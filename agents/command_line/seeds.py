"""`tokenrlhf train --seeds N --sweep …`: several runs, and interquartile means over their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.atomic_files import write_json
from agents.command_line.launchers import LAUNCHERS
from agents.command_line.variants import Variant, variants
from agents.compare.statistics import bootstrap_interval, interquartile_mean
from agents.config import TrainConfig
from agents.console import literal
from agents.runs.folder import new_folder

__all__ = ["aggregate", "launch", "train_seeds"]

SUMMARY = "seeds.json"

_NUMBERS = (
    *("objective", "objective_fraction", "score", "gold_reward", "kl"),
    *("response_length", "eos_rate", "tokens_per_second"),
)


def train_seeds(
    config: TrainConfig, console: Console, train: Callable[[TrainConfig], dict[str, Any]]
) -> list[Path]:
    """Train once with each of `config.seeds` seeds from `config.seed` on, one after the other.

    Args:
        config: the settings; the runs lie in its folder as `seed-N`.
        console: where the means are printed.
        train: trains one run and returns its summary.

    Returns:
        The runs' folders; `seeds.json` beside them holds the means over those that are finished.

    Raises:
        ValueError: the folder holds something already and `overwrite` is off, or a run can't be
            made.
    """
    assert config.seeds is not None
    root = config.out if config.out is not None else new_folder(config)
    if config.out is not None and root.exists():
        if not root.is_dir() or (any(root.iterdir()) and not config.overwrite):
            raise ValueError(
                f"out={str(root)!r} exists already: choose another folder, or pass --overwrite to "
                "replace the runs in it."
            )
        if (root / "config.json").exists():
            raise ValueError(
                f"out={str(root)!r} holds a run itself, and --seeds puts its runs into folders "
                "within it: choose another folder."
            )
    summaries: dict[int, dict[str, Any]] = {}
    folders: list[Path] = []
    for number, seed in enumerate(range(config.seed, config.seed + config.seeds), 1):
        console.print(Text(f"seed {seed} ({number} of {config.seeds})", "bold"))
        one = dataclasses.replace(config, seed=seed, seeds=None, out=root / f"seed-{seed}")
        summaries[seed] = train(one)
        folders.append(root / f"seed-{seed}")
        content = {"name": config.name, "seeds": list(summaries), **aggregate(summaries.values())}
        write_json(root / SUMMARY, content)
    _print(console, content)
    return folders


def launch(config: TrainConfig, console: Console) -> list[Path]:
    """Train every seed and every point of the sweep by `config.launcher`, but what is finished.

    Args:
        config: the settings; the runs lie in its folder as `seed-N`, with a sweep below a folder
            for each point.
        console: where the means are printed.

    Returns:
        The folders of the finished runs; `seeds.json` beside them holds the means.

    Raises:
        ValueError: a value of the sweep is not for its setting, the folder holds something else,
            the launcher is not installed, or runs have failed; the others are finished then.
    """
    root = config.out if config.out is not None else new_folder(config)
    if root.exists() and (not root.is_dir() or (root / "config.json").exists()):
        raise ValueError(
            f"out={str(root)!r} is a file or holds a run itself, and --launcher puts its runs into "
            "folders within it: choose another folder."
        )
    runs = variants(config, root)
    missing = [one for one in runs if config.overwrite or one.summary() is None]
    if count := len(runs) - len(missing):
        console.print(f"{count:,} of {len(runs):,} runs are finished already.")
    root.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, (index, status) in enumerate(_launched(config, missing), 1):
        done = missing[index]
        said = "finished" if status == 0 else f"failed ({status}), see {_log(done)}"
        name = done.folder.relative_to(root)
        console.print(literal(f"{name} {said} ({number} of {len(missing)})"))
        failed += [str(_log(done))] * (status != 0)
        _merge(config, root, runs)
    content = _merge(config, root, runs)
    for point in content["points"]:
        _print(console, {"name": content["name"], **point})
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)} say why. The same "
            "command goes on with them; the others are finished."
        )
    return [one.folder for one in runs]


def _launched(config: TrainConfig, runs: Sequence[Variant]) -> Any:
    """Index and exit status of each run, as they end."""
    jobs = []
    for one in runs:
        one.folder.parent.mkdir(parents=True, exist_ok=True)
        settings = one.folder.parent / f"{one.folder.name}-settings.json"
        jobs.append((one.arguments(settings), _log(one)))
    return LAUNCHERS[config.launcher or "local"](jobs, config.workers)


def _log(one: Variant) -> Path:
    return one.folder.parent / f"{one.folder.name}.log"


def _merge(config: TrainConfig, root: Path, runs: Sequence[Variant]) -> dict[str, Any]:
    """Write `seeds.json`: the numbers of every point, over the seeds that are finished."""
    points: dict[str, dict[str, Any]] = {}
    for one in runs:
        start = {"label": one.label, "settings": one.point, "seeds": [], "summaries": []}
        point = points.setdefault(one.label, start)
        if (summary := one.summary()) is not None:
            point["seeds"].append(one.config.seed)
            point["summaries"].append(summary)
    merged = []
    for point in points.values():
        summaries = point.pop("summaries")
        if summaries:
            merged.append({**point, **aggregate(summaries)})
    content = {"name": config.name, "points": merged}
    if len(points) == 1 and merged:  # as without a launcher
        content = {**content, **merged[0]}
    write_json(root / SUMMARY, content)
    return content


def aggregate(summaries: Any) -> dict[str, Any]:
    """Interquartile means with 95 % bootstrap intervals, and the value of each run.

    Args:
        summaries: those of the runs.
    """
    rows: Sequence[dict[str, Any]] = list(summaries)
    numbers = {}
    for name in _NUMBERS:
        values = [row[name] for row in rows if row.get(name) is not None]
        if len(values) < len(rows):
            continue
        array = np.array(values, dtype=float)
        low, high = bootstrap_interval([array])
        numbers[name] = {
            "mean": float(array.mean()),
            "interquartile_mean": float(interquartile_mean(array)),
            **{"low": float(low), "high": float(high)},
            "values": values,
        }
    below = [row["seed"] for row in rows if row.get("below_untrained")]
    return {"numbers": numbers, "below_untrained": below}


def _print(console: Console, content: dict[str, Any]) -> None:
    count = len(content["seeds"])
    named = f"{content['name']}, {content['label']}" if content.get("label") else content["name"]
    table = Table(title=literal(f"{named}: {count} seeds"), title_justify="left")
    table.add_column("")
    for header in ("mean", "interquartile mean", "95 % interval", "least", "greatest"):
        table.add_column(header, justify="right")
    for name, number in content["numbers"].items():
        table.add_row(
            literal(name),
            f"{number['mean']:,.3f}",
            f"{number['interquartile_mean']:,.3f}",
            f"{number['low']:,.3f} … {number['high']:,.3f}",
            f"{min(number['values']):,.3f}",
            f"{max(number['values']):,.3f}",
        )
    if content["numbers"]:
        console.print(table)
    if below := content["below_untrained"]:
        told = f"{len(below)} of {count} ended below the untrained model: seed {_list(below)}"
        console.print(Text.assemble(("warning: ", "bold yellow"), literal(told)))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
