"""One reward model from some pairs, as `tokenrlhf reward-model` trains it, and its accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.runs.reward_model import new_member
from agents.runs.reward_model_config import RewardTrainingOptions
from tokenenv.rewards import (
    RewardModel,
    RewardTrainingError,
    RewardTrainingSettings,
    TokenPair,
    evaluate_preferences,
    fit_reward_model,
    train_reward_model,
)

__all__ = ["accuracy_on", "settings_of", "train_on"]

MOST_NORMALISED = 10_000
"""Pairs that a normalisation is measured on at most, as `train_reward_model` has it."""


def settings_of(config: RewardTrainingOptions, seed: int) -> RewardTrainingSettings:
    """The settings of a training on pairs of which none is to be held out for a report.

    Raises:
        ValueError: a setting is out of its range.
    """
    settings = RewardTrainingSettings(**config.training())
    if settings.eval_fraction:
        settings = dataclasses.replace(settings, report_fraction=0.0)
    return dataclasses.replace(settings, seed=seed % 2**32)


def train_on(
    pairs: Sequence[TokenPair],
    config: RewardTrainingOptions,
    base: str,
    seed: int,
    order_seed: int | None = None,
) -> tuple[RewardModel, dict[str, Any]]:
    """A reward model of these pairs; `eval_fraction` of their prompts choose the weights.

    Args:
        pairs: all the labels there are.
        config: how it is trained.
        base: task name, folder or hub id of the model to start from.
        seed: of head, split and order.
        order_seed: of head and order, for members of an ensemble with one split; None: as `seed`.

    Returns:
        The model, normalised on the pairs, and for JSON how many pairs trained it and chose its
        weights, and which step's weights these are.

    Raises:
        ValueError: the training diverged or learned nothing; or there are too few pairs.
    """
    settings = settings_of(config, seed)
    number = (seed - config.seed) + 1000 * (order_seed or 0)
    reward_model = new_member(config, base, None, number)
    if settings.eval_fraction:
        try:
            report = train_reward_model(pairs, reward_model, settings, order_seed=order_seed)
        except RewardTrainingError as error:
            raise ValueError(f"{len(pairs):,} pairs, seed {seed}: {error}") from error
        record, selection = report.training, report.selection_pairs
    else:  # without early stopping all pairs train
        if order_seed is not None:
            settings = dataclasses.replace(settings, seed=(seed + 1000 * order_seed) % 2**32)
        record, selection = fit_reward_model(pairs, reward_model, settings), 0
        if record.is_diverged:
            raise ValueError(f"{len(pairs):,} pairs, seed {seed}: {record.reason}")
        sides = [s for pair in pairs[:MOST_NORMALISED] for s in (pair.chosen, pair.rejected)]
        reward_model.measure_normalization(reward_model.raw_rewards(sides))
    return reward_model, {
        "training_pairs": len(pairs) - selection,
        "selection_pairs": selection,
        "kept_step": record.kept_step,
        "steps": record.steps,
    }


def accuracy_on(pairs: Sequence[TokenPair], reward_model: RewardModel) -> dict[str, Any]:
    """`accuracy`, `loss` and `calibration_error` on pairs that are held out."""
    chosen = reward_model.raw_rewards([pair.chosen for pair in pairs])
    rejected = reward_model.raw_rewards([pair.rejected for pair in pairs])
    margins = np.array([pair.margin for pair in pairs])
    preferences = np.array([pair.preference for pair in pairs])
    report = evaluate_preferences(chosen, rejected, margins, preferences)
    names = ("accuracy", "loss", "calibration_error")
    return {**{name: getattr(report, name) for name in names}, "held_out_pairs": report.pairs}
