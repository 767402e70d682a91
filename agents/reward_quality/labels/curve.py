"""`tokenrlhf labels curve`: accuracy, and gold reward after PPO, by the number of pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from agents.atomic_files import write_json
from agents.console import literal, progress_bar
from agents.reward_quality.labels.config import DRAWN, LabelsCurveConfig
from agents.reward_quality.labels.curve_figure import draw_curve
from agents.reward_quality.labels.curve_report import curve_report, print_curve
from agents.reward_quality.labels.pair_sources import PairSource, SeedPairs, pair_source
from agents.reward_quality.labels.points import RESULTS, STAGE, KeptPoints
from agents.reward_quality.labels.policies import policy_settings, train_policy
from agents.reward_quality.labels.reward_models import accuracy_on, settings_of, train_on
from agents.runs.reward_model import new_member
from tokenenv.models import resolve_device
from tokenenv.rewards import RewardModel
from tokenenv.stop_signals import check_signals, stop_signals

__all__ = ["default_sizes", "learning_curve"]

SIZES = (100, 200, 400, 800, 1600, 3200)
"""Sizes where pairs are drawn."""

_NO_PART = {"out", "overwrite", "sizes", "seeds", "seed", "device", "ppo_prompts"}
"""Settings that a single point does not depend on, or that its file's name says."""


def learning_curve(config: LabelsCurveConfig, console: Console) -> dict[str, Any]:
    """Measure the points that are missing in `config.out`, and write `curve.json` and `curve.png`.

    Returns:
        The content of `curve.json`.

    Raises:
        ValueError: pairs, base, settings or folder can't be used, or a training failed; the points
            that were measured by then are kept.
    """
    settings_of(config, config.seed)
    policies = None
    if config.ppo_tokens:
        device = str(resolve_device(config.device))
        policies = policy_settings(config.ppo_config, config.ppo_tokens, device)
    with stop_signals(), KeptPoints.opened(config.out, config.overwrite) as kept:
        first = new_member(config, config.base, config.out, 0)
        source = pair_source(config.pairs, config, config.held_out_pairs, first, console)
        seeds = range(config.seed, config.seed + config.seeds)
        sizes = _sizes(config, source.most(seeds))
        kept.begin(_identity(config, source, policies))
        try:
            points = _measure(config, kept, source, sizes, seeds, policies, console)
        except BaseException:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print(
                    literal(f"what was measured is kept in {config.out}: the same command goes on.")
                )
            raise
        report = curve_report(points, sizes, config.seed)
        report["settings"] = _as_json(config)
        write_json(config.out / RESULTS[0], report)
        draw_curve(report, config.out / RESULTS[1])
    print_curve(report, console)
    console.print(literal(f"in {config.out}: {', '.join(RESULTS)}, and a file for every point"))
    return report


def default_sizes(most: int, count: int = 6) -> list[int]:
    """Sizes up to `most`, each about twice the one before; none below 8 pairs but `most` itself."""
    sizes = [round(most / 2**halvings) for halvings in range(count)]
    return sorted({size for size in sizes if size >= min(8, most)})


def _sizes(config: LabelsCurveConfig, most: int | None) -> list[int]:
    sizes = sorted(config.sizes)
    if most is None:
        return sizes or list(SIZES)
    if not sizes:
        if most < 2:
            raise ValueError(
                f"pairs={config.pairs!r}: {most} pair is left when the held-out ones are gone, and "
                "a reward model is trained on 2 or more: give more pairs."
            )
        return default_sizes(most)
    if sizes[-1] > most:
        raise ValueError(
            f"sizes={list(config.sizes)}: there are {most:,} pairs that are not held out (with the "
            f"seed that holds out most), fewer than {sizes[-1]:,}: give smaller sizes, more pairs, "
            "or a smaller --report-fraction."
        )
    return sizes


def _measure(
    config: LabelsCurveConfig,
    kept: KeptPoints,
    source: PairSource,
    sizes: Sequence[int],
    seeds: range,
    policies: Any,
    console: Console,
) -> list[dict[str, Any]]:
    """All points; those that are not there yet are measured, seed by seed."""
    points = {(size, seed): kept.read(size, seed) for seed in seeds for size in sizes}
    there = sum(point is not None for point in points.values())
    console.print(
        Text.assemble(
            f"{len(points)} points, {len(sizes)} sizes of {len(seeds)} seeds, in ",
            literal(config.out, "bold"),
            f": {there} of them are there already",
        )
    )
    with progress_bar(console) as bar:
        task = bar.add_task("measuring", total=len(points), completed=there, note="")
        for seed in seeds:
            missing = [size for size in sizes if points[size, seed] is None]
            pairs = source.draw(seed, max(sizes)) if missing else None
            for size in missing:
                check_signals()
                assert pairs is not None
                bar.update(task, note=f"{size:,} pairs, seed {seed}")
                point = _point(config, kept, pairs, size, seed, policies)
                kept.write(point)
                points[size, seed] = point
                bar.update(task, advance=1, note=f"accuracy {point['accuracy']:.3f}")
    return [point for point in points.values() if point is not None]


def _point(
    config: LabelsCurveConfig,
    kept: KeptPoints,
    pairs: SeedPairs,
    size: int,
    seed: int,
    policies: Any,
) -> dict[str, Any]:
    """Train on the first pairs of a seed, and measure."""
    reward_model, facts = train_on(pairs.pool[:size], config, config.base, seed)
    point = {"size": size, "seed": seed, **facts, **accuracy_on(pairs.held_out, reward_model)}
    if pairs.best_accuracy is not None:
        point["best_accuracy"] = pairs.best_accuracy
    if policies is not None:
        point["policy"] = _policy(config, kept, reward_model, seed, policies)
    return point


def _policy(
    config: LabelsCurveConfig, kept: KeptPoints, reward_model: RewardModel, seed: int, policies: Any
) -> dict[str, Any]:
    folder = kept.root / STAGE
    try:
        reward_model.save_pretrained(folder)
        return train_policy(folder, policies, config.ppo_prompts, config.ppo_responses, seed)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def _identity(config: LabelsCurveConfig, source: PairSource, policies: Any) -> dict[str, Any]:
    """What every point depends on, name by name."""
    content = {name: v for name, v in _as_json(config).items() if name not in _NO_PART}
    if config.pairs != DRAWN:
        del content["held_out_pairs"]
    content |= source.facts()
    if policies is None:
        return content
    content["ppo_prompts"] = config.ppo_prompts
    ppo = {name: value for name, value in policies.as_json().items() if name not in _NO_PART}
    return {**content, **{f"ppo's {name}": value for name, value in ppo.items()}}


def _as_json(config: LabelsCurveConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "out": str(config.out), "sizes": list(config.sizes)}
