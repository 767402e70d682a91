"""Does selection help? It is tried on a pool whose labels are known, against random choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agents.atomic_files import write_json
from agents.console import literal, progress_bar
from agents.reward_quality.labels.config import DRAWN, LabelsSelectConfig
from agents.reward_quality.labels.disagreement import DISAGREEMENTS, member_probabilities
from agents.reward_quality.labels.diversity import choose
from agents.reward_quality.labels.pair_sources import PairSource, pair_source
from agents.reward_quality.labels.points import changed_settings
from agents.reward_quality.labels.reward_models import accuracy_on, settings_of, train_on
from agents.reward_quality.labels.statistics import mean_interval
from agents.runs.reward_model import new_member
from tokenenv.json_files import read_json_object
from tokenenv.rewards import TokenPair
from tokenenv.stop_signals import check_signals

__all__ = ["ARMS", "simulate_selection", "summary_of"]

ARMS = {
    "start": "the start alone",
    "random": "+ K random",
    "selected": "+ K selected",
    "random_twice": "+ 2·K random",
}
"""What is trained on → in words."""

POOL_FACTOR = 10
"""Times K pairs to choose from where pairs are drawn."""

_NO_PART = {
    *("out", "overwrite", "seeds", "seed", "device", "reward_models", "exclude", "ask", "labels"),
    "simulate",
}


def simulate_selection(config: LabelsSelectConfig, console: Console) -> dict[str, Any]:
    """Hide the labels of a pool, select, train, and compare; every seed is kept in `config.out`.

    Returns:
        The content of the file.

    Raises:
        ValueError: pool, base, settings or file can't be used, or a training failed.
    """
    settings_of(config, config.seed)
    assert config.base is not None
    if config.out.is_dir():
        raise ValueError(f"out={str(config.out)!r} is a folder: give the name of a file.")
    first = new_member(config, config.base, None, 0)
    source = pair_source(config.pool, config, config.held_out_pairs, first, console)
    content = _opened(config, source)
    seeds = range(config.seed, config.seed + config.seeds)
    _check_size(config, source, seeds)
    with progress_bar(console) as bar:
        done = sum(str(seed) in content["seeds"] for seed in seeds)
        task = bar.add_task("trying", total=len(seeds), completed=done, note="")
        for seed in seeds:
            check_signals()
            if str(seed) not in content["seeds"]:
                bar.update(task, note=f"seed {seed}")
                content["seeds"][str(seed)] = _try(config, source, seed)
                write_json(config.out, content)
                bar.update(task, advance=1)
    content["summary"] = summary_of([content["seeds"][str(seed)] for seed in seeds])
    write_json(config.out, content)
    _print_summary(config, content["summary"], console)
    return content


def _opened(config: LabelsSelectConfig, source: PairSource) -> dict[str, Any]:
    """The results that are there; ValueError where they are of other settings."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NO_PART}
    if config.pool != DRAWN:
        del settings["held_out_pairs"]
    settings |= source.facts()
    if not config.out.exists() or config.overwrite:
        return {"settings": settings, "seeds": {}, "summary": None}
    content = read_json_object(config.out, "the results of a simulated selection")
    before, seeds = content.get("settings"), content.get("seeds")
    if not (isinstance(before, dict) and isinstance(seeds, dict)):
        raise ValueError(
            f"out={str(config.out)!r} holds no results of a simulated selection: choose another "
            "file, or pass --overwrite."
        )
    changed = changed_settings(before, settings)
    if changed:
        raise ValueError(
            f"out={str(config.out)!r} holds results with other settings ({'; '.join(changed)}): "
            "give the same, choose another file, or pass --overwrite."
        )
    return {"settings": settings, "seeds": seeds, "summary": None}


def _check_size(config: LabelsSelectConfig, source: PairSource, seeds: range) -> None:
    most = source.most(seeds)
    if config.pool_pairs is not None and config.pool_pairs < config.k:
        raise ValueError(
            f"k={config.k} is more than pool_pairs={config.pool_pairs}: give a smaller k, or a "
            "larger pool."
        )
    if most is not None and most < config.start + (config.pool_pairs or config.k):
        raise ValueError(
            f"pool={config.pool!r} has {most:,} pairs that are not held out, fewer than "
            f"start={config.start} and {'pool_pairs' if config.pool_pairs else 'k'}="
            f"{config.pool_pairs or config.k} together: give smaller numbers, or more pairs."
        )


def _try(config: LabelsSelectConfig, source: PairSource, seed: int) -> dict[str, Any]:
    """Accuracies of one seed, by what was trained on."""
    assert config.base is not None
    k = config.k
    size = config.pool_pairs
    if size is None and source.most(range(seed, seed + 1)) is None:
        size = POOL_FACTOR * k
    pairs = source.draw(seed, config.start + (size or 0))
    end = None if size is None else config.start + size
    start, pool = pairs.pool[: config.start], pairs.pool[config.start : end]
    members = [
        train_on(start, config, config.base, seed, number or None)[0]
        for number in range(config.members)
    ]
    probabilities = member_probabilities(members, [pool] * len(members))
    disagreement = DISAGREEMENTS[config.by](probabilities)
    prompts = [pair.prompt for pair in pool]
    selected = choose(
        disagreement, members[0], pool, k, config.diverse, prompts, config.max_per_prompt
    )
    if len(selected) < k:
        raise ValueError(
            f"max_per_prompt={config.max_per_prompt} leaves {len(selected):,} of the "
            f"{len(pool):,} pairs, fewer than k={k}: raise it, or give a smaller k."
        )
    order = np.random.default_rng((seed, 3)).permutation(len(pool)).tolist()
    arms: dict[str, list[int]] = {"random": order[:k], "selected": selected}
    if len(pool) >= 2 * k:
        arms["random_twice"] = order[: 2 * k]
    result: dict[str, Any] = {"start": accuracy_on(pairs.held_out, members[0])["accuracy"]}
    for name, indices in arms.items():
        added: list[TokenPair] = [pool[i] for i in indices]
        model, _ = train_on([*start, *added], config, config.base, seed)
        result[name] = accuracy_on(pairs.held_out, model)["accuracy"]
    return {
        **result,
        "pool_pairs": len(pool),
        "disagreement_of_the_pool": float(disagreement.mean()),
        "disagreement_of_the_selected": float(disagreement[selected].mean()),
    }


def summary_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and 95 % intervals over seeds of accuracies and of their differences, and a verdict.

    Args:
        results: accuracies of one seed each, by the names of `ARMS`.
    """
    summary: dict[str, Any] = {"seeds": len(results), "accuracy": {}, "selected_less": {}}
    for name in ARMS:
        values = [result[name] for result in results if name in result]
        if len(values) == len(results):
            mean, interval = mean_interval(values)
            summary["accuracy"][name] = {"mean": mean, "interval": interval}
    for name in ("random", "random_twice"):
        if name in summary["accuracy"]:
            # Of one seed, which has the held-out pairs in common.
            differences = [result["selected"] - result[name] for result in results]
            mean, interval = mean_interval(differences)
            summary["selected_less"][name] = {"mean": mean, "interval": interval}
    summary["verdict"] = _verdict(summary)
    return summary


def _verdict(summary: dict[str, Any]) -> str:
    less = summary["selected_less"]["random"]
    if less["interval"] is None:
        return "one seed shows no scatter: nothing can be said"
    low, high = less["interval"]
    if high < 0:
        return "selection does harm here: random labels give a better model"
    if low <= 0:
        return "selection is not shown to help here: the interval of the difference holds 0"
    twice = summary["selected_less"].get("random_twice")
    if twice is not None and twice["mean"] >= 0:
        return "selection helps: as good as twice as many random labels, or better"
    return "selection helps: a better model by as many labels"


def _print_summary(config: LabelsSelectConfig, summary: dict[str, Any], console: Console) -> None:
    title = (
        f"held-out accuracy, {summary['seeds']} seeds, {config.start:,} labels at the start, "
        f"K = {config.k:,}"
    )
    table = Table(title=title, title_justify="left")
    for header in (
        "trained on",
        "accuracy",
        "95 % interval",
        "selected − this",
        "95 % interval",
    ):
        table.add_column(header, justify="left" if header == "trained on" else "right")
    for name, words in ARMS.items():
        if name in summary["accuracy"]:
            value = summary["accuracy"][name]
            cells = [words, f"{value['mean']:.3f}", _interval(value["interval"], "")]
            less = summary["selected_less"].get(name)
            if less is not None:
                cells += [f"{less['mean']:+.3f}", _interval(less["interval"], "+")]
            table.add_row(*cells)
    console.print(table)
    console.print(literal(f"{summary['verdict']}."))


def _interval(interval: Sequence[float] | None, sign: str) -> str:
    return "" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"
