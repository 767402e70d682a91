"""Learning a reward model from pairwise preferences (Bradley–Terry).

The loss is in `preference_loss`, the training in `pair_training`, the report in
`preference_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenenv.models import OneProcess
from tokenenv.rewards.pair_split import PairSplit, check_readable, split_pairs, units_of
from tokenenv.rewards.pair_training import OnEvaluation, OnStep, PairTrainer, TrainingRecord
from tokenenv.rewards.pairs import PreferencePair, TokenPair, as_token_pair
from tokenenv.rewards.preference_loss import preference_loss
from tokenenv.rewards.preference_report import (
    HeldOutReport,
    PairLengths,
    evaluate_preferences,
    pair_details,
    score_distributions,
)
from tokenenv.rewards.reward_model import RewardModel
from tokenenv.rewards.training_settings import RewardTrainingSettings

__all__ = [
    "RewardTrainingError",
    "RewardTrainingSettings",
    "evaluate_preferences",
    "fit_reward_model",
    "judge_rewards",
    "preference_loss",
    "train_reward_model",
]

MOST_NORMALISED = 10_000
"""Pairs that the normalisation is measured on at most: mean and deviation of 20,000 rewards are
known to 1 % of the deviation."""


class RewardTrainingError(ValueError):
    """A training that ended badly; the reward model has the last good weights.

    Attributes:
        report: on them, as far as there is one.
    """

    def __init__(self, said: str, report: HeldOutReport) -> None:
        super().__init__(said)
        self.report = report


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Pairs with what a reward model says of them.

    Attributes:
        pairs: B of them.
        chosen: (B,) raw rewards.
        rejected: (B,) raw rewards.
    """

    pairs: list[TokenPair]
    chosen: np.ndarray
    rejected: np.ndarray


def train_reward_model(
    pairs: Sequence[PreferencePair | TokenPair],
    reward_model: RewardModel,
    settings: RewardTrainingSettings | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    order_seed: int | None = None,
    together: OneProcess | None = None,
) -> HeldOutReport:
    """Train `reward_model` in place on preference pairs, and keep its best held-out weights.

    All weights are trained, or, where `tokenenv.models.add_lora` has put adapters into
    `reward_model.model`, these and the head. A signal that waits for the end of a
    `tokenenv.stop_signals.hold_signals` block ends the training after its present step. The rewards
    are then normalised to mean 0 and standard deviation 1 on the responses of the pairs, of
    `MOST_NORMALISED` of them at most (`RewardModel.measure_normalization` does it again on other
    samples).

    Args:
        pairs: two or more, as text or as tokens. Held out are those of some of the prompts, or,
            where all have one prompt or none, some of the pairs.
        reward_model: from `new_reward_model`; a shared one of `load_reward_model` is refused.
        settings: how; the defaults otherwise.
        on_step: called after every step with (step, all steps, training loss).
        on_evaluation: called after every look at the pairs that choose the weights.
        order_seed: of the order alone, for members of an ensemble, which have their split in
            common; None: `settings.seed` is of both.
        together: how several processes share the work
            (`agents.scaling.data_parallel.data_parallel`); each calls this with the same arguments.

    Returns:
        The report, on pairs of prompts that neither trained nor chose the weights
        (`RewardTrainingSettings.report_fraction`).

    Raises:
        RewardTrainingError: the loss of a step or its gradient is not finite, and training ended
            with the last good weights; or the rewards do not vary. It is a ValueError.
        ValueError: there are too few pairs to hold one out, a pair is longer than the model reads
            or has a preference that is no probability.
    """
    settings = settings or RewardTrainingSettings()
    _check_trainable(reward_model)
    tokens = [as_token_pair(pair, reward_model) for pair in pairs]
    rng = np.random.default_rng(settings.seed)
    split = split_pairs(tokens, settings, rng)
    check_readable(tokens, reward_model)
    if order_seed is not None:
        rng = np.random.default_rng((settings.seed, order_seed))
    trainer = PairTrainer(reward_model, split.training, split.selection, settings, rng, together)
    record = trainer.run(on_step, on_evaluation)
    spread = _normalise(reward_model, tokens, settings.seed)
    report = judge_rewards(judged_pairs(reward_model, split.judged), split, reward_model, record)
    if record.is_diverged:
        raise RewardTrainingError(record.reason, report)
    if spread:
        raise RewardTrainingError(spread, report)
    return report


def fit_reward_model(
    training: Sequence[TokenPair],
    reward_model: RewardModel,
    settings: RewardTrainingSettings,
    selection: Sequence[TokenPair] = (),
) -> TrainingRecord:
    """Train `reward_model` in place on these pairs, without a split, normalisation or report.

    Args:
        training: pairs to train on.
        reward_model: from `new_reward_model`.
        settings: how; its fractions are not looked at.
        selection: pairs that choose the weights; needed where `settings.early_stopping` is on.

    Raises:
        ValueError: there is nothing to train on or to stop early by.
    """
    _check_trainable(reward_model)
    if not training or (settings.early_stopping and not selection):
        raise ValueError(
            f"{len(training)} pairs to train on and {len(selection)} to stop early by: give both, "
            "or turn early stopping off (early_stopping=False)."
        )
    check_readable([*training, *selection], reward_model)
    rng = np.random.default_rng(settings.seed)
    return PairTrainer(reward_model, list(training), list(selection), settings, rng).run()


def _check_trainable(reward_model: RewardModel) -> None:
    if reward_model.is_shared:
        raise ValueError(
            "this reward model is shared by every environment that uses it and must not change: "
            "train one from new_reward_model(folder), which starts from the same trunk."
        )


def _normalise(reward_model: RewardModel, pairs: list[TokenPair], seed: int) -> str:
    """Measure mean and deviation on the responses of pairs; returns why that can't be done."""
    if len(pairs) > MOST_NORMALISED:
        order = np.random.default_rng(seed).permutation(len(pairs))[:MOST_NORMALISED]
        pairs = [pairs[i] for i in np.sort(order)]
    sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
    try:
        reward_model.measure_normalization(reward_model.raw_rewards(sequences))
    except ValueError as error:
        return str(error)
    return ""


def judged_pairs(reward_model: RewardModel, pairs: list[TokenPair]) -> JudgedPairs:
    """Pairs with their raw rewards."""
    raw = reward_model.raw_rewards
    return JudgedPairs(pairs, raw([p.chosen for p in pairs]), raw([p.rejected for p in pairs]))


def judge_rewards(
    judged: JudgedPairs, split: PairSplit, reward_model: RewardModel | None, training: Any
) -> HeldOutReport:
    """The report on held-out pairs.

    Args:
        judged: the pairs and their rewards.
        split: where they come from.
        reward_model: that normalises the rewards for their distributions; None: they are as they
            are.
        training: the `TrainingRecord`, or one for each member of an ensemble.
    """
    pairs = judged.pairs
    margins = np.array([pair.margin for pair in pairs])
    preferences = np.array([pair.preference for pair in pairs])
    lengths = PairLengths(
        np.array([len(pair.chosen) for pair in pairs]),
        np.array([len(pair.rejected) for pair in pairs]),
        units_of(pairs, by_prompt=split.held_out_by == "prompt"),
    )
    details = pair_details(judged.chosen, judged.rejected, lengths, margins, preferences)
    scores = [judged.chosen, judged.rejected]
    if reward_model is not None:
        scores = [reward_model.normalize(raw) for raw in scores]
    details["scores"] = score_distributions(*scores)
    return HeldOutReport(
        **asdict(evaluate_preferences(judged.chosen, judged.rejected, margins, preferences)),
        training_pairs=len(split.training),
        selection_pairs=len(split.selection),
        chose_the_weights=not split.reported,
        held_out_by=split.held_out_by,
        details=details,
        training=training,
    )
