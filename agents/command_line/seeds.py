"""`tokenrlhf train --seeds N`: one run with several seeds, and interquartile means over them."""

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
from agents.compare.statistics import bootstrap_interval, interquartile_mean
from agents.config import TrainConfig
from agents.console import literal
from agents.runs.folder import new_folder

__all__ = ["aggregate", "train_seeds"]

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


def aggregate(summaries: Any) -> dict[str, Any]:
    """Interquartile means with 95 % bootstrap intervals, and the value of each run.

    Args:
        summaries: those of the runs.
    """
    rows: Sequence[dict[str, Any]] = list(summaries)
    numbers = {}
    for name in _NUMBERS:
        values = [row.get(name) for row in rows]
        if any(value is None for value in values):
            continue
        low, high = bootstrap_interval([np.array(values, dtype=float)])
        mean = float(interquartile_mean(np.array(values, dtype=float)))
        numbers[name] = {
            **{"interquartile_mean": mean, "low": float(low), "high": float(high)},
            "values": values,
        }
    below = [row["seed"] for row in rows if row.get("below_untrained")]
    return {"numbers": numbers, "below_untrained": below}


def _print(console: Console, content: dict[str, Any]) -> None:
    count = len(content["seeds"])
    table = Table(title=f"{content['name']}: {count} seeds", title_justify="left")
    table.add_column("")
    for header in ("interquartile mean", "95 % interval", "least", "greatest"):
        table.add_column(header, justify="right")
    for name, number in content["numbers"].items():
        table.add_row(
            literal(name),
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
