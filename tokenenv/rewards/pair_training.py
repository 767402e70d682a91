"""One training on preference pairs: batches, schedule, evaluations, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tokenenv.models import OneProcess, is_adapter_weight, seconds_by_precision
from tokenenv.rewards.pair_forward import (
    can_share_prompts,
    length_batches,
    micro_batches,
    pair_rewards,
    rewards_of_pairs,
)
from tokenenv.rewards.pairs import TokenPair
from tokenenv.rewards.preference_loss import preference_loss
from tokenenv.rewards.preference_report import evaluate_preferences
from tokenenv.rewards.reward_model import RewardModel
from tokenenv.rewards.training_settings import RewardTrainingSettings
from tokenenv.stop_signals import signal_is_pending

__all__ = ["OnEvaluation", "OnStep", "PairEvaluation", "PairTrainer", "TrainingRecord"]


@dataclass(frozen=True, slots=True)
class PairEvaluation:
    """A look at the training.

    Attributes:
        step: steps taken so far.
        train_loss: mean loss of the steps since the last look.
        loss: of the held-out pairs that choose the weights; NaN where there are none.
        accuracy: of the same pairs.
        is_best: whether this loss is the lowest so far.
    """

    step: int
    train_loss: float
    loss: float
    accuracy: float
    is_best: bool


OnStep = Callable[[int, int, float], None]
OnEvaluation = Callable[[PairEvaluation], None]


@dataclass(slots=True)
class TrainingRecord:
    """What came of a training.

    Attributes:
        steps: steps taken.
        all_steps: steps that there would have been.
        tokens: of the pairs that were trained on, both sides, repetitions counted.
        train_loss: mean loss over the last tenth of the steps taken; NaN without any.
        selection_loss: loss of the pairs of the selection with the weights that were kept; NaN
            where there are none, or where they were never looked at.
        kept_step: the step whose weights were kept.
        stopped: why training ended before its last step: "", "early", "signal" or "not finite".
        reason: the same as a sentence.
        precision: that the passes computed in.
        shares_prompts: whether the model takes a pair as one row.
        history: the evaluations.
        seconds: of the training, evaluations included.
    """

    steps: int = 0
    all_steps: int = 0
    tokens: int = 0
    train_loss: float = math.nan
    selection_loss: float = math.nan
    kept_step: int = 0
    stopped: str = ""
    reason: str = ""
    precision: str = "float32"
    shares_prompts: bool = False
    history: list[PairEvaluation] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)

    @property
    def is_diverged(self) -> bool:
        """Whether a number that is not finite ended the training."""
        return self.stopped == "not finite"


class PairTrainer:
    """One training run; `run` trains the model in place.

    All weights are trained, or, where `tokenenv.models.add_lora` has put adapters in, these and the
    head.

    Args:
        reward_model: a trainable one.
        training: pairs to train on.
        selection: pairs whose loss stops the training and chooses the weights; may be empty where
            `settings.early_stopping` is off.
        settings: how.
        rng: of the order.
        together: how several processes share the work; each has the same arguments.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        training: list[TokenPair],
        selection: list[TokenPair],
        settings: RewardTrainingSettings,
        rng: np.random.Generator,
        together: OneProcess | None = None,
    ) -> None:
        self.settings, self.together = settings, together or OneProcess()
        self.training, self.selection = training, selection
        self.model: Any = reward_model.model
        self.weights = _weights_to_train(self.model)
        self.batches = [b for _ in range(settings.epochs) for b in self._batches(rng)]
        self.record = TrainingRecord(all_steps=len(self.batches))
        self.record.shares_prompts = can_share_prompts(self.model, [*training, *selection])
        self.record.precision = self.together.decide(self._precision)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.together.prepare(self.model, self.optimizer)
        looks = settings.epochs * settings.evaluations_per_epoch
        self.evaluate_every = max(1, len(self.batches) // looks)
        self.losses: list[float] = []
        self.best_loss, self.without_gain = math.inf, 0
        self._keep()

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Those of one epoch."""
        settings = self.settings
        if settings.batch_tokens is not None:
            return length_batches(self.training, settings.batch_size, settings.batch_tokens, rng)
        order = rng.permutation(len(self.training))
        starts = range(0, len(order), settings.batch_size)
        return [order[start : start + settings.batch_size] for start in starts]

    def _precision(self) -> str:
        """The precision to compute in; `"auto"` is measured on the first batch."""
        if self.settings.precision != "auto":
            return self.settings.precision
        first = np.asarray(self.batches[0])
        part = next(micro_batches(self.training, first, self.settings.micro_batch_tokens))
        pairs = [self.training[i] for i in part]

        def step() -> torch.Tensor:
            sides = pair_rewards(self.model, pairs, self.record.shares_prompts)
            return torch.stack(sides).sum()

        seconds = seconds_by_precision(step, self.weights)
        return min(seconds, key=lambda precision: seconds[precision])

    def _rate(self, step: int) -> float:
        return learning_rate_factor(step, len(self.batches), self.settings)

    def run(
        self, on_step: OnStep | None = None, on_evaluation: OnEvaluation | None = None
    ) -> TrainingRecord:
        """Train until the steps are done, or something ends it, and bring the best weights back."""
        start, record = time.perf_counter(), self.record
        looked_at = 0
        for batch in self.batches:
            loss = self._step(batch)
            if record.stopped:
                break
            record.steps += 1
            if on_step is not None:
                on_step(record.steps, record.all_steps, loss)
            is_asked = self.together.any(signal_is_pending())
            is_last = record.steps == record.all_steps or is_asked
            if is_last or record.steps % self.evaluate_every == 0:
                self._look(float(np.mean(self.losses[looked_at:])), on_evaluation)
                looked_at = len(self.losses)
            if not record.stopped and (is_asked or self.together.any(signal_is_pending())):
                record.stopped, record.reason = "signal", f"a signal came in step {record.steps}."
            if record.stopped:
                break
        self._finish()
        record.seconds = time.perf_counter() - start
        return record

    def _step(self, batch: np.ndarray) -> float:
        """Take one step, in forwards over pairs of like length; returns the loss before it."""
        settings, total = self.settings, torch.zeros((), device=self.model.device)
        self.optimizer.zero_grad()
        sizes = [len(self.training[i].chosen) + len(self.training[i].rejected) for i in batch]
        own, weight = self.together.share(batch, np.array(sizes))
        parts = list(micro_batches(self.training, own, settings.micro_batch_tokens))
        for number, part in enumerate(parts, start=1):
            with self.together.one_pass(is_last=number == len(parts)):
                pairs = [self.training[i] for i in part]
                chosen, rejected = self.together.call(
                    pair_rewards, pairs, self.record.shares_prompts, self.record.precision
                )
                margins = torch.tensor([p.margin for p in pairs], device=chosen.device)
                preferences = torch.tensor([p.preference for p in pairs], device=chosen.device)
                loss = preference_loss(
                    chosen, rejected, margins, settings.centering_coef, preferences
                ) * (weight * len(part) / len(batch))
                (self.together.factor * loss).backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, settings.max_grad_norm)
        loss_value, norm_value = torch.stack([total, norm.to(total.dtype)]).tolist()
        loss_value = self.together.sum(loss_value)
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self._diverge(
                f"the loss of step {self.record.steps + 1} is {loss_value:g} and the norm of its "
                f"gradient {norm_value:g}: the step was not taken"
            )
            return loss_value
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss_value)
        self.record.tokens += sum(sizes)
        return loss_value

    def _look(self, train_loss: float, on_evaluation: OnEvaluation | None) -> None:
        """Evaluate, keep the weights if they are good, stop if they stay bad."""
        record, settings = self.record, self.settings
        loss, accuracy = self.together.decide(self._evaluate)
        if (self.selection and not math.isfinite(loss)) or not self._is_finite():
            self._diverge(f"after step {record.steps} a weight or the held-out loss is not finite")
            return
        is_best = loss < self.best_loss
        self.best_loss = min(self.best_loss, loss) if self.selection else math.inf
        record.history.append(PairEvaluation(record.steps, train_loss, loss, accuracy, is_best))
        if is_best or not settings.early_stopping:
            self._keep()
            record.selection_loss, self.without_gain = loss, 0
        else:
            self.without_gain += 1
        if on_evaluation is not None:
            on_evaluation(record.history[-1])
        is_last = record.steps == record.all_steps
        if settings.early_stopping and self.without_gain >= settings.patience and not is_last:
            record.stopped = "early"
            record.reason = (
                f"stopped early after step {record.steps:,} of {record.all_steps:,}: the held-out "
                f"loss has not fallen for {settings.patience} evaluations (--no-early-stopping "
                "turns this off)."
            )

    def _evaluate(self) -> tuple[float, float]:
        """Loss and accuracy of the selection."""
        if not self.selection:
            return math.nan, math.nan
        tokens = self.settings.micro_batch_tokens
        chosen, rejected = rewards_of_pairs(
            self.model, self.selection, self.record.shares_prompts, tokens
        )
        report = evaluate_preferences(
            chosen,
            rejected,
            np.array([pair.margin for pair in self.selection]),
            np.array([pair.preference for pair in self.selection]),
        )
        return report.loss, report.accuracy

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.weights)

    def _diverge(self, what: str) -> None:
        self.record.stopped = "not finite"
        self.record.reason = (
            f"{what}. Training ended, and the weights of step {self.record.kept_step} are kept. "
            "Lower learning_rate, or look for pairs with a margin that is beyond all others."
        )

    def _keep(self) -> None:
        self.kept = [weight.detach().clone() for weight in self.weights]
        self.record.kept_step = self.record.steps

    @torch.no_grad()
    def _finish(self) -> None:
        """Bring the weights back that were kept, and free the gradients."""
        if self.record.kept_step != self.record.steps or self.record.is_diverged:
            for weight, kept in zip(self.weights, self.kept, strict=True):
                weight.copy_(kept)
        self.optimizer.zero_grad()
        self.model.requires_grad_(False)
        if self.losses:
            last = self.losses[-max(1, len(self.losses) // 10) :]
            self.record.train_loss = float(np.mean(last))


def learning_rate_factor(step: int, steps: int, settings: RewardTrainingSettings) -> float:
    """The factor of the learning rate at a step, from 0.

    It rises in the warm-up. Linearly it falls over all steps, along half a cosine from the end of
    the warm-up on.
    """
    warm_up = max(1, int(settings.warmup_fraction * steps + 1e-9))
    rise = min(1.0, (step + 1) / warm_up)
    if settings.schedule == "constant":
        return rise
    if settings.schedule == "linear":
        return min(rise, max(0.0, (steps - step) / steps))
    progress = max(0.0, (step - warm_up) / max(1, steps - warm_up))
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _weights_to_train(model: Any) -> list[torch.nn.Parameter]:
    """All weights, or adapters and the head; they alone require gradients then."""
    is_adapted = any(is_adapter_weight(name) for name, _ in model.named_parameters())
    for name, weight in model.named_parameters():
        is_head = name.startswith(("score.", "classifier."))
        weight.requires_grad_(not is_adapted or is_head or is_adapter_weight(name))
    return [weight for weight in model.parameters() if weight.requires_grad]
