"""`tokenrlhf labels select`: which pairs to label next, in a file that people fill in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from agents.console import literal, typed_lines
from agents.labelling.by_file import label_by_file
from agents.labelling.by_person import ask_for_labels
from agents.labelling.pair_file import PairFile, PairRow
from agents.reward_quality.labels.config import LabelsSelectConfig
from agents.reward_quality.labels.disagreement import (
    DISAGREEMENTS,
    bald,
    member_probabilities,
    probability_variance,
)
from agents.reward_quality.labels.diversity import choose, most_disputed
from agents.reward_quality.labels.points import changed_settings
from agents.reward_quality.labels.pool import Pool, member_names, read_pool, tokens_of
from agents.reward_quality.labels.reward_models import settings_of
from agents.reward_quality.labels.simulation import simulate_selection
from tokenenv.data import parse_columns
from tokenenv.models import resolve_device
from tokenenv.rewards import load_reward_model
from tokenenv.stop_signals import stop_signals

__all__ = ["select_pairs"]


def select_pairs(config: LabelsSelectConfig, console: Console) -> Any:
    """Write the pairs to label next to `config.out`, or go on with the file that is there.

    Returns:
        The file; the results with `config.simulate`.

    Raises:
        ValueError: the pool, a reward model, the file or a label can't be used.
    """
    settings_of(config, config.seed)  # those of a training are checked, too
    device = resolve_device(config.device)
    names = member_names(config.reward_models) if _needs_members(config) else []
    if not config.out.parent.is_dir():
        raise ValueError(
            f"out={str(config.out)!r}: there is no folder {str(config.out.parent)!r}; make it, or "
            "give another place."
        )
    if config.simulate:
        with stop_signals():
            return simulate_selection(config, console)
    if config.labels is not None and not os.path.exists(config.labels):
        raise ValueError(f"labels={str(config.labels)!r} does not exist: give a file.")
    with PairFile.locked(config.out, config.overwrite) as file:
        if file.rows:
            _check_selection(config, file.rows)
            console.print(
                literal(f"{len(file.rows):,} pairs were selected before: going on with them.")
            )
        else:
            file.append(_select(config, names, device, console))
        try:
            _label(config, file, console)
        finally:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                _say_what_there_is(config, file, console)
    return file


def _settings(config: LabelsSelectConfig) -> dict[str, Any]:
    """What the selection depends on."""
    settings = {
        "pool": config.pool,
        "k": config.k,
        "by": config.by,
        "reward_models": list(config.reward_models),
        "diverse": config.diverse,
        "max_per_prompt": config.max_per_prompt,
        "exclude": [str(path) for path in config.exclude],
        "max_tokens": config.max_tokens,
    }
    if config.by == "random":
        settings["seed"] = config.seed
    return settings


def _check_selection(config: LabelsSelectConfig, rows: Sequence[PairRow]) -> None:
    """Refuse to go on with pairs that were selected otherwise, or not at all."""
    for row in rows:
        if row.selected is None:
            raise ValueError(
                f"out={str(config.out)!r} holds pairs that were not selected: choose another file, "
                "or pass --overwrite."
            )
        before = {name: value for name, value in row.selected.items() if name not in _OF_A_PAIR}
        changed = changed_settings(before, _settings(config))
        if changed:
            raise ValueError(
                f"out={str(config.out)!r} holds pairs that were selected with other settings "
                f"({'; '.join(changed)}): give the same, choose another file, or pass --overwrite."
            )


_OF_A_PAIR = {"rank", "bald", "variance", "probability"}


def _needs_members(config: LabelsSelectConfig) -> bool:
    """Whether reward models choose, or were given for nothing."""
    return bool(config.reward_models) or not (config.simulate or config.by == "random")


def _select(
    config: LabelsSelectConfig, names: Sequence[str], device: str, console: Console
) -> list[PairRow]:
    """The rows of the selected pairs, in the order of selection."""
    pool = read_pool(config.pool, parse_columns(config.columns), config.exclude, config.skip_bad)
    _say_pool(config, pool, console)
    if config.k > len(pool.rows):
        raise ValueError(
            f"k={config.k} is more than the {len(pool.rows):,} pairs of the pool that can be "
            "chosen: give a smaller k, or more pairs."
        )
    settings = _settings(config)
    if config.by == "random":
        order = np.random.default_rng(config.seed).permutation(len(pool.rows))
        ranking = np.empty(len(order))
        ranking[order] = np.arange(len(order), 0, -1)
        indices = most_disputed(ranking, config.k, _prompts(pool.rows), config.max_per_prompt)
        facts: list[dict[str, Any]] = [{} for _ in pool.rows]
    else:
        members = [load_reward_model(name, device) for name in names]
        tokens = [
            tokens_of(pool.rows, member, config.max_tokens, config.truncation) for member in members
        ]
        probabilities = member_probabilities(members, tokens)
        disagreement = DISAGREEMENTS[config.by](probabilities)
        indices = choose(
            disagreement,
            members[0],
            tokens[0],
            config.k,
            config.diverse,
            _prompts(pool.rows),
            config.max_per_prompt,
        )
        facts = _facts(probabilities)
        said = (
            f"disagreement ({config.by}): mean {disagreement.mean():.4f} of the pool, "
            f"{disagreement[indices].mean():.4f} of what is selected"
        )
        console.print(literal(said))
    if len(indices) < config.k:
        raise ValueError(
            f"max_per_prompt={config.max_per_prompt} leaves {len(indices):,} of the "
            f"{len(pool.rows):,} pairs, fewer than k={config.k}: raise it, or give a smaller k."
        )
    return [
        dataclasses.replace(pool.rows[index], selected={"rank": rank, **facts[index], **settings})
        for rank, index in enumerate(indices, 1)
    ]


def _facts(probabilities: np.ndarray) -> list[dict[str, Any]]:
    """For each pair what the (M, B) probabilities say."""
    columns = {
        "bald": bald(probabilities),
        "variance": probability_variance(probabilities),
        "probability": probabilities.mean(axis=0),
    }
    return [
        {name: float(values[i]) for name, values in columns.items()}
        for i in range(probabilities.shape[1])
    ]


def _prompts(rows: Sequence[PairRow]) -> list[str]:
    return [str(row.prompt) for row in rows]


def _label(config: LabelsSelectConfig, file: PairFile, console: Console) -> None:
    """Take labels from where they are asked for."""
    if config.labels is not None:
        labels = label_by_file(file.rows, config.labels)
        for index, row in labels.labelled.items():
            file.rows[index] = row
        file.save()
        console.print(literal(f"{len(labels.labelled):,} pairs have a label from {config.labels}."))
        for number, what in (
            (labels.without_label, "have no label yet"),
            (labels.unknown, "are about pairs that were not selected"),
        ):
            if number:
                console.print(f"note: {number:,} rows of it {what}.")
    elif config.ask:
        ask_for_labels(file, typed_lines(), console, config.seed)


def _say_pool(config: LabelsSelectConfig, pool: Pool, console: Console) -> None:
    console.print(literal(f"{len(pool.rows):,} pairs of {config.pool} can be chosen"))
    for why, count in pool.left_out.items():
        console.print(literal(f"note: {count:,} rows {why}, and are left out."))


def _say_what_there_is(config: LabelsSelectConfig, file: PairFile, console: Console) -> None:
    """The labels so far, and what to do next."""
    counts = file.counts()
    labels = ", ".join(f"{number:,} {label}" for label, number in counts.items() if number)
    console.print(literal(f"{len(file.rows):,} pairs in {config.out}: {labels}"))
    if counts["open"]:
        console.print(
            "open pairs: fill in 'label' with a, b or tie, in any editor; or let the same command "
            "ask (--ask), or read a file in which people have filled it in (--labels)."
        )
    else:
        out = shlex.quote(str(config.out))
        skip = " --skip-bad" if counts["skipped"] else ""
        console.print(
            literal(
                "all have been answered: put them below the pairs that you have, and train with "
                f"all: tokenrlhf reward-model --pairs {out} --base MODEL --out DIR{skip}"
            )
        )
