"""Learning a reward model from pairwise preferences (Bradley–Terry).

P(chosen ≻ rejected) = σ(r_w − r_l − margin); the loss is −log of it (Bradley & Terry 1952; Ouyang
et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1). Where a label is a probability p, ½ of a tie,
it is the cross-entropy, −p·log σ(d) − (1 − p)·log σ(−d).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from tokenenv.ranges import COUNT, FRACTION, POSITIVE, SEED, WEIGHT, check_ranges
from tokenenv.rewards.pairs import PreferencePair, TokenPair, as_token_pair
from tokenenv.rewards.preference_report import (
    HeldOutReport,
    PreferenceReport,
    evaluate_preferences,
)
from tokenenv.rewards.reward_model import RewardModel, sequence_rewards
from tokenenv.stop_signals import signal_is_pending

__all__ = [
    "RewardTrainingSettings",
    "preference_loss",
    "train_reward_model",
]


FORWARD_SIZE = 32
"""Sequences that one training forward takes at most."""


@dataclass(frozen=True, slots=True)
class RewardTrainingSettings:
    """How a reward model is trained.

    Args:
        epochs: passes over the training pairs.
        batch_size: pairs per step.
        learning_rate: peak of a linear warm-up (10 %) and decay.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        centering_coef: weight of mean((r_w + r_l)²), which holds the rewards near 0.
        eval_fraction: share of the prompts held out for the loss that stops training early and
            chooses the weights.
        report_fraction: share of the prompts held out for the report alone. At 0, and where there
            are fewer than three prompts, the report is on the pairs that chose the weights, and
            says so.
        evaluations_per_epoch: how often the held-out loss is looked at.
        patience: evaluations without a better held-out loss after which training stops.
        seed: of the split and the order.
    """

    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    centering_coef: float = 0.0
    eval_fraction: float = 0.1
    report_fraction: float = 0.1
    evaluations_per_epoch: int = 4
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the settings."""
        counts = ("epochs", "batch_size", "evaluations_per_epoch", "patience")
        weights = ("learning_rate", "weight_decay", "centering_coef")
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        shares = dict.fromkeys(("eval_fraction", "report_fraction"), FRACTION)
        ranges = {**dict.fromkeys(counts, COUNT), **dict.fromkeys(weights, WEIGHT), **shares}
        check_ranges(settings, {**ranges, "max_grad_norm": POSITIVE, "seed": SEED})
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction={self.eval_fraction} must lie between 0 and 1.")
        if not 0 <= self.report_fraction < 1 - self.eval_fraction:
            raise ValueError(
                f"report_fraction={self.report_fraction} must be 0 or more, and less than 1 "
                f"together with eval_fraction={self.eval_fraction}: something must be left to "
                "train on."
            )


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margins: torch.Tensor | float = 0.0,
    centering_coef: float = 0.0,
    preferences: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Mean −p·log σ(d) − (1 − p)·log σ(−d) + c·mean((r_w + r_l)²), d = r_w − r_l − margin.

    Equal rewards without margin give ln 2. The centring term is that of Eisenstein et al. 2023,
    https://arxiv.org/abs/2312.09244, section 2.

    Args:
        chosen: (B,) rewards r_w.
        rejected: (B,) rewards r_l.
        margins: how much better the chosen ones are at least.
        centering_coef: c.
        preferences: p, the probabilities that the chosen ones are better.
    """
    logits = chosen - rejected - margins
    # log σ(−d) = log σ(d) − d
    loss = (-logsigmoid(logits) + (1.0 - preferences) * logits).mean()
    if centering_coef:
        loss = loss + centering_coef * (chosen + rejected).square().mean()
    return loss


def train_reward_model(
    pairs: Sequence[PreferencePair | TokenPair],
    reward_model: RewardModel,
    settings: RewardTrainingSettings | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> HeldOutReport:
    """Train `reward_model` in place on preference pairs, and keep its best held-out weights.

    A signal that waits for the end of a `tokenenv.stop_signals.hold_signals` block ends the
    training after its present step. The rewards are then normalised to mean 0 and standard
    deviation 1 on the responses of the pairs (`RewardModel.measure_normalization` does it again on
    other samples).

    Args:
        pairs: two or more, as text or as tokens. Held out are those of some of the prompts, or,
            where all have one prompt or none, some of the pairs.
        reward_model: from `new_reward_model`; a shared one of `load_reward_model` is refused.
        settings: how; the defaults otherwise.
        on_step: called after every step with (step, all steps, training loss).

    Returns:
        The report, on pairs of prompts that neither trained nor chose the weights
        (`RewardTrainingSettings.report_fraction`).

    Raises:
        ValueError: there are too few pairs to hold one out, a pair is longer than the model reads
            or has a preference that is no probability, or the loss of a step or its gradient is not
            finite.
    """
    settings = settings or RewardTrainingSettings()
    if reward_model.is_shared:
        raise ValueError(
            "this reward model is shared by every environment that uses it and must not change: "
            "train one from new_reward_model(folder), which starts from the same trunk."
        )
    tokens = [as_token_pair(pair, reward_model) for pair in pairs]
    rng = np.random.default_rng(settings.seed)
    training, selection, reported = _split(tokens, settings, rng)
    _check_readable(tokens, reward_model)
    trainer = _Trainer(reward_model, training, selection, settings, rng)
    trainer.run(on_step)
    sequences = [sequence for pair in tokens for sequence in (pair.chosen, pair.rejected)]
    reward_model.measure_normalization(reward_model.raw_rewards(sequences))
    return HeldOutReport(
        **asdict(_evaluate(reward_model, reported or selection)),
        training_pairs=len(training),
        selection_pairs=len(selection),
        chose_the_weights=not reported,
        held_out_by="prompt" if _has_prompts(tokens) else "pair",
    )


def _check_readable(tokens: list[TokenPair], reward_model: RewardModel) -> None:
    """Raise ValueError for a pair that is too long, has no token, or whose label is none."""
    for pair in tokens:
        longest = max(len(pair.chosen), len(pair.rejected))
        if not min(len(pair.chosen), len(pair.rejected)):
            raise ValueError(
                "a pair has an empty prompt and an empty response, and the tokenizer has neither "
                "BOS nor EOS: there is no token to read a reward at. Leave such pairs out."
            )
        if longest > reward_model.max_tokens:
            raise ValueError(
                f"a pair of the prompt {pair.prompt[:60]!r} has {longest} tokens, more than the "
                f"{reward_model.max_tokens} positions of the reward model: shorten or drop it."
            )
        if not 0 <= pair.preference <= 1:
            raise ValueError(
                f"a pair of the prompt {pair.prompt[:60]!r} has preference={pair.preference!r}: it "
                "must be a probability, from 0 to 1."
            )


def _has_prompts(pairs: list[TokenPair]) -> bool:
    """Whether there are two different prompts, so that whole prompts can be held out."""
    return len({pair.prompt for pair in pairs}) > 1


def _units(pairs: list[TokenPair]) -> list[str]:
    """What is held out as one, for each pair: its prompt; without one, the pair and its equals."""
    has_prompts = _has_prompts(pairs)
    return [
        pair.prompt
        if has_prompts and pair.prompt
        else f"{pair.chosen.tolist()} {pair.rejected.tolist()}"
        for pair in pairs
    ]


def _split(
    pairs: list[TokenPair], settings: RewardTrainingSettings, rng: np.random.Generator
) -> tuple[list[TokenPair], list[TokenPair], list[TokenPair]]:
    """Pairs to train on, to choose the weights by and to report on, without a common prompt."""
    of_pair = _units(pairs)
    units = sorted(set(of_pair))
    if len(units) < 2:
        prompts = len({pair.prompt for pair in pairs})
        raise ValueError(
            f"the {len(pairs)} pairs have {prompts} prompt(s), and {len(units)} of them differ: "
            "training needs at least two different ones, to hold one out."
        )
    left = len(units) - 1  # one is trained on at least
    num_selection = min(max(1, round(settings.eval_fraction * len(units))), left)
    num_reported = 0
    if settings.report_fraction and left >= 2:
        num_selection = min(num_selection, left - 1)
        num_reported = max(1, round(settings.report_fraction * len(units)))
        num_reported = min(num_reported, left - num_selection)
    order = [units[i] for i in rng.permutation(len(units))]
    selection = set(order[:num_selection])
    reported = set(order[num_selection : num_selection + num_reported])
    parts: tuple[list[TokenPair], ...] = ([], [], [])
    for pair, unit in zip(pairs, of_pair, strict=True):
        parts[1 if unit in selection else 2 if unit in reported else 0].append(pair)
    return parts[0], parts[1], parts[2]


def _evaluate(reward_model: RewardModel, pairs: list[TokenPair]) -> PreferenceReport:
    """The report on some pairs."""
    raw = reward_model.raw_rewards
    return evaluate_preferences(
        raw([p.chosen for p in pairs]),
        raw([p.rejected for p in pairs]),
        np.array([p.margin for p in pairs]),
        np.array([p.preference for p in pairs]),
    )


class _Trainer:
    """One training run: optimiser, schedule, early stopping."""

    def __init__(
        self,
        reward_model: RewardModel,
        training: list[TokenPair],
        selection: list[TokenPair],
        settings: RewardTrainingSettings,
        rng: np.random.Generator,
    ) -> None:
        self.reward_model, self.settings, self.rng = reward_model, settings, rng
        self.training, self.selection = training, selection
        self.model: Any = reward_model.model
        self.steps_per_epoch = math.ceil(len(training) / settings.batch_size)
        self.num_steps = settings.epochs * self.steps_per_epoch
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.best_loss, self.best_weights = math.inf, copy.deepcopy(self.model.state_dict())
        self.without_gain = 0

    def _rate(self, step: int) -> float:
        warm_up = max(1, self.num_steps // 10)
        return min((step + 1) / warm_up, max(0.0, (self.num_steps - step) / self.num_steps))

    def run(self, on_step: Callable[[int, int, float], None] | None) -> None:
        """Train until the steps are done or the loss on the selection has stopped falling."""
        every = max(1, self.steps_per_epoch // self.settings.evaluations_per_epoch)
        step = 0
        for _ in range(self.settings.epochs):
            order = self.rng.permutation(len(self.training))
            for start in range(0, len(order), self.settings.batch_size):
                loss = self._step(
                    [self.training[i] for i in order[start : start + self.settings.batch_size]]
                )
                step += 1
                if on_step is not None:
                    on_step(step, self.num_steps, loss)
                is_last = step == self.num_steps or signal_is_pending()
                if ((step % every == 0 or is_last) and self._should_stop()) or is_last:
                    break
            if self.without_gain >= self.settings.patience or is_last:
                break
        self.model.load_state_dict(self.best_weights)
        self.model.requires_grad_(False)

    def _step(self, batch: list[TokenPair]) -> float:
        rewards = self._rewards([p.chosen for p in batch] + [p.rejected for p in batch])
        margins = torch.tensor([p.margin for p in batch], device=rewards.device)
        preferences = torch.tensor([p.preference for p in batch], device=rewards.device)
        chosen, rejected = rewards.chunk(2)
        loss = preference_loss(chosen, rejected, margins, self.settings.centering_coef, preferences)
        self.optimizer.zero_grad()
        loss.backward()
        limit = self.settings.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not (math.isfinite(norm) and torch.isfinite(loss)):
            raise ValueError(
                f"a step's loss is {float(loss.detach()):g} and the norm of its gradient {norm:g}: "
                "the step was not taken, and the reward model keeps its weights from before it. "
                "Lower learning_rate, or look for pairs with a margin that is beyond all others."
            )
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _rewards(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """(B,) rewards, from forwards over sequences of like length: little is spent on padding."""
        order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
        parts = [
            sequence_rewards(self.model, [sequences[i] for i in part])
            for part in np.array_split(order, math.ceil(len(order) / FORWARD_SIZE))
        ]
        return torch.cat(parts)[torch.as_tensor(np.argsort(order))]

    def _should_stop(self) -> bool:
        loss = _evaluate(self.reward_model, self.selection).loss
        if loss < self.best_loss:
            self.best_loss, self.best_weights = loss, copy.deepcopy(self.model.state_dict())
            self.without_gain = 0
        else:
            self.without_gain += 1
        return self.without_gain >= self.settings.patience
