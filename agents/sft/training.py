"""Supervised fine-tuning: the mean −log π of what is to be written, token by token.

    L = −(1/n) Σ_t log π(a_t | s_t)      over the n learned tokens of a step's examples

Maximum likelihood on demonstrations, the first stage of RLHF (Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155, section 3.5). Every token that is learned has the same weight,
whatever the length of its example and however the step is cut into micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from agents.policy import OPTIMIZERS, fused_where_possible
from agents.ppo import computing_in
from agents.sft.config import SFTSettings
from agents.sft.encoding import EncodedExamples, TokenExample, encode_examples
from agents.sft.losses import FEW_TOKENS, held_out_loss, micro_batches, token_losses
from agents.sft.report import Evaluation, SFTReport
from tokenenv.data import Example
from tokenenv.models import (
    GPU_FACTOR,
    LanguageModel,
    OneProcess,
    enable_checkpointing,
    minibatch_indices,
)
from tokenenv.stop_signals import signal_is_pending

__all__ = ["train_sft"]

MOST_HELD_OUT = 1000
"""Groups of examples that are held out at most: their loss is measured several times an epoch."""

OnStep = Callable[[int, int, float], None]
OnEvaluation = Callable[[Evaluation], None]


def train_sft(
    examples: EncodedExamples | Iterable[Example],
    language_model: LanguageModel,
    settings: SFTSettings | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    together: OneProcess | None = None,
) -> SFTReport:
    """Fine-tune a language model in place.

    What requires a gradient is trained: all weights, or adapters where `tokenenv.models.add_lora`
    has put some in. A signal that waits for the end of a `tokenenv.stop_signals.hold_signals` block
    ends the training after its present step. A loss or a gradient that is not finite ends it, too,
    and the weights of the last evaluation are kept; `SFTReport.stopped` says so.

    Args:
        examples: texts, conversations, or what `encode_examples` made of them.
        language_model: from `tokenenv.models.load_trainable`.
        settings: how; the defaults otherwise.
        on_step: called after every step with (step, all steps, training loss).
        on_evaluation: called after every evaluation, the first of which is before the first step.
        together: how several processes share the work
            (`agents.scaling.data_parallel.data_parallel`); each calls this with the same arguments.

    Raises:
        ValueError: nothing of the model can be trained, an example can't be used, or there are too
            few to hold some out.
    """
    settings = SFTSettings() if settings is None else settings
    if not isinstance(settings, SFTSettings):
        raise ValueError(f"settings={settings!r:.60} must be SFTSettings.")
    if not any(weight.requires_grad for weight in language_model.model.parameters()):
        raise ValueError(
            f"no weight of {language_model.name!r} requires a gradient, so that nothing would be "
            "trained: load it with load_trainable, which gives a copy of its own."
        )
    if not isinstance(examples, EncodedExamples):
        examples = encode_examples(examples, language_model)
    rng = np.random.default_rng(settings.seed)
    training, held_out = _split(examples.examples, settings.eval_fraction, rng)
    if settings.gradient_checkpointing:
        enable_checkpointing(language_model.model)
        language_model.model.train()  # without dropout it only switches checkpointing on
    try:
        sharing = together or OneProcess()
        trainer = _Trainer(language_model.model, training, held_out, settings, rng, sharing)
        return trainer.run(on_step, on_evaluation)
    finally:
        language_model.model.eval()


def _split(
    examples: list[TokenExample], fraction: float, rng: np.random.Generator
) -> tuple[list[TokenExample], list[TokenExample]]:
    """Examples to train on and held-out ones, without a common prompt or document."""
    if not fraction:
        return examples, []
    groups = list(dict.fromkeys(example.group for example in examples))
    if len(groups) < 2:
        raise ValueError(
            f"the {len(examples)} examples have one prompt or document among them, so that none "
            "can be held out: give more, or hold none out (eval_fraction 0)."
        )
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1, MOST_HELD_OUT)
    chosen = {groups[i] for i in rng.permutation(len(groups))[:count]}
    return (
        [example for example in examples if example.group not in chosen],
        [example for example in examples if example.group in chosen],
    )


class _Trainer:
    """One training: optimiser, schedule, evaluations, early stopping."""

    def __init__(
        self,
        model: Any,
        training: list[TokenExample],
        held_out: list[TokenExample],
        settings: SFTSettings,
        rng: np.random.Generator,
        together: OneProcess,
    ) -> None:
        self.model, self.settings, self.together = model, settings, together
        self.training, self.held_out = training, held_out
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        sizes = np.array([len(example) for example in training])
        self.batches = [
            batch
            for _ in range(settings.epochs)
            for batch in minibatch_indices(sizes, settings.batch_tokens, rng)
        ]
        self.report = SFTReport(len(training), len(held_out), all_steps=len(self.batches))
        self.evaluate_every = max(
            1, len(self.batches) // (settings.epochs * settings.evaluations_per_epoch)
        )
        self.optimizer = _optimizer(self.weights, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        together.prepare(model, self.optimizer)
        self.losses: list[tuple[float, int]] = []
        self.looked_at = 0
        self.without_gain = 0
        self.read_tokens = self.padded_tokens = 0
        self.few_tokens = FEW_TOKENS * (GPU_FACTOR if model.device.type == "cuda" else 1)

    def _rate(self, step: int) -> float:
        return _rate(step, self.report.all_steps, self.settings)

    def run(self, on_step: OnStep | None, on_evaluation: OnEvaluation | None) -> SFTReport:
        """Train until the steps are done or something ends it."""
        start, report = time.perf_counter(), self.report
        self._keep(0)
        report.eval_loss_before = report.eval_loss = self._evaluate(on_evaluation)
        if self.held_out and not math.isfinite(report.eval_loss_before):
            raise ValueError(
                f"the held-out loss is {report.eval_loss_before:g} before the first step: a weight "
                "of the model, or the precision that it computes in, is no good."
            )
        for batch in self.batches:
            loss = self._step(batch)
            if not report.stopped:
                report.steps += 1
                if on_step is not None:
                    on_step(report.steps, report.all_steps, loss)
                self._look(on_evaluation)
            if report.stopped:
                break
        self._finish()
        report.seconds = time.perf_counter() - start
        return report

    def _step(self, batch: np.ndarray) -> float:
        """Take one step; returns the mean loss per learned token, before it."""
        sizes = np.array([len(self.training[i]) for i in batch])
        learned = sum(len(self.training[i].targets) for i in batch)
        own, weight = self.together.share(batch, sizes)
        examples = [self.training[i] for i in own]
        lengths = np.array([len(example) - 1 for example in examples])
        self.optimizer.zero_grad()
        sums = []
        parts = list(micro_batches(lengths, self.settings.micro_batch_tokens, self.few_tokens))
        for number, part in enumerate(parts, start=1):
            with self.together.one_pass(is_last=number == len(parts)):
                with computing_in(self.settings.precision, self.model.device):
                    losses = self.together.call(token_losses, [examples[i] for i in part])
                    loss = weight * losses.sum() / learned
                (self.together.factor * loss).backward()
            sums.append(loss.detach())
            self.read_tokens += int(lengths[part].sum())
            self.padded_tokens += len(part) * int(lengths[part].max())
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.max_grad_norm)
        total, norm_value = torch.stack([torch.stack(sums).sum(), norm.to(sums[0].dtype)]).tolist()
        total = self.together.sum(total)
        if not (math.isfinite(total) and math.isfinite(norm_value)):
            self._diverge(
                f"the loss of step {self.report.steps + 1} is {total:g} and the norm of its "
                f"gradient {norm_value:g}"
            )
            return total
        self.optimizer.step()
        self.schedule.step()
        self.losses.append((total, learned))
        self.report.tokens += int(sizes.sum())
        self.report.learned_tokens += learned
        return total

    def _diverge(self, what: str) -> None:
        self.report.stopped = "not finite"
        self.report.reason = (
            f"{what}: training ended. Lower the learning rate, or look for examples that are "
            "unlike all others."
        )

    def _look(self, on_evaluation: OnEvaluation | None) -> None:
        """Evaluate where it is due, keep the weights if they are good, stop if they stay bad."""
        report, settings = self.report, self.settings
        is_last = report.steps == report.all_steps
        is_asked = self.together.any(signal_is_pending())
        if not (is_last or is_asked or report.steps % self.evaluate_every == 0):
            return
        loss = self._evaluate(on_evaluation)
        if self.held_out and not math.isfinite(loss):
            self._diverge(f"the held-out loss after step {report.steps} is {loss:g}")
            return
        if not (self.held_out and settings.early_stopping):
            if all(bool(torch.isfinite(weight).all()) for weight in self.weights):
                self._keep(report.steps)
                report.eval_loss = loss
            else:
                self._diverge(f"weights are not finite after step {report.steps}")
        elif loss < report.eval_loss:
            self._keep(report.steps)
            report.eval_loss, self.without_gain = loss, 0
        else:
            self.without_gain += 1
        if report.stopped or is_last:
            return
        if is_asked:
            report.stopped, report.reason = "signal", f"a signal came in step {report.steps}."
        elif self.without_gain >= settings.patience:
            report.stopped = "early"
            report.reason = (
                f"stopped early after step {report.steps:,} of {report.all_steps:,}: the held-out "
                f"loss has not fallen for {settings.patience} evaluations (--no-early-stopping "
                "turns this off)."
            )

    def _evaluate(self, on_evaluation: OnEvaluation | None) -> float:
        settings = self.settings
        micro_batch = max(settings.micro_batch_tokens, 1)
        loss = self.together.decide(
            lambda: held_out_loss(self.model, self.held_out, micro_batch, settings.precision)
        )
        new = self.losses[self.looked_at :]
        self.looked_at = len(self.losses)
        evaluation = Evaluation(self.report.steps, _mean(new), loss)
        self.report.history.append(evaluation)
        if on_evaluation is not None:
            on_evaluation(evaluation)
        return loss

    def _keep(self, step: int) -> None:
        self.kept = [weight.detach().clone() for weight in self.weights]
        self.report.kept_step = step

    @torch.no_grad()
    def _finish(self) -> None:
        """Bring the weights back that were kept, and free the gradients."""
        report = self.report
        if report.kept_step != report.steps or report.is_diverged:
            for weight, kept in zip(self.weights, self.kept, strict=True):
                weight.copy_(kept)
        self.optimizer.zero_grad()
        report.train_loss = _mean(self.losses[-max(1, len(self.losses) // 10) :])
        if self.padded_tokens:
            report.padding = 1.0 - self.read_tokens / self.padded_tokens


def _mean(losses: list[tuple[float, int]]) -> float:
    """Mean loss per token of (mean, tokens) of steps; NaN without any."""
    tokens = sum(count for _, count in losses)
    return sum(loss * count for loss, count in losses) / tokens if tokens else math.nan


def _rate(step: int, steps: int, settings: SFTSettings) -> float:
    """The factor of the learning rate at a step, from 0."""
    warm_up = round(settings.warmup_fraction * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _optimizer(weights: list[torch.nn.Parameter], settings: SFTSettings) -> torch.optim.Optimizer:
    """Torch's optimiser; AdamW decays matrices alone."""
    kind = OPTIMIZERS[settings.optimizer]
    kwargs: dict[str, Any] = {"lr": settings.learning_rate}
    if settings.optimizer != "adamw":
        return kind(weights, **fused_where_possible(kind, kwargs))
    matrices = [weight for weight in weights if weight.ndim >= 2]
    others = [weight for weight in weights if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return kind(
        [group for group in groups if group["params"]], **fused_where_possible(kind, kwargs)
    )
