"""What came of a supervised fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Evaluation", "SFTReport", "perplexity"]

FEW = 30
"""Held-out examples below which a report says that its loss is a rough one."""


def perplexity(loss: float) -> float:
    """E to the power of a mean negative log-likelihood in nats; ∞ beyond float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A look at the training.

    Attributes:
        step: steps taken so far.
        train_loss: mean loss per learned token since the last look; NaN before the first step.
        eval_loss: of the held-out examples, per learned token; NaN where none are held out.
    """

    step: int
    train_loss: float
    eval_loss: float


@dataclass(slots=True)
class SFTReport:
    """What came of a training.

    Attributes:
        training_examples: sequences that were trained on.
        held_out_examples: sequences that were held out.
        steps: steps taken.
        all_steps: steps that there would have been.
        tokens: tokens of the examples that were trained on, prompts included, repetitions counted.
        learned_tokens: those of them whose loss was taken.
        padding: share of the tokens in the forward passes that was filler.
        train_loss: mean loss per learned token over the last tenth of the steps taken.
        eval_loss_before: held-out loss per token before the first step; NaN where none is held out.
        eval_loss: that of the weights that were kept.
        kept_step: the step whose weights were kept.
        stopped: why training ended before its last step: "", "early", "signal" or "not finite".
        reason: the same as a sentence.
        history: the evaluations.
        seconds: of the training.
    """

    training_examples: int = 0
    held_out_examples: int = 0
    steps: int = 0
    all_steps: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    padding: float = 0.0
    train_loss: float = math.nan
    eval_loss_before: float = math.nan
    eval_loss: float = math.nan
    kept_step: int = 0
    stopped: str = ""
    reason: str = ""
    history: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def eval_perplexity_before(self) -> float:
        """E to the power of the held-out loss before the first step."""
        return perplexity(self.eval_loss_before)

    @property
    def eval_perplexity(self) -> float:
        """E to the power of the held-out loss of the weights that were kept."""
        return perplexity(self.eval_loss)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were trained on per second, evaluations included."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def is_diverged(self) -> bool:
        """Whether a number that is not finite ended the training."""
        return self.stopped == "not finite"

    @property
    def notes(self) -> list[str]:
        """Caveats to read the numbers with."""
        notes = []
        if self.held_out_examples and self.steps and not self.kept_step and not self.is_diverged:
            notes.append(
                "no step has lowered the held-out loss, so that the model is what it was: lower "
                "the learning rate, or look at whether the data fits the model."
            )
        if 0 < self.held_out_examples < FEW:
            notes.append(
                f"the held-out loss is that of {self.held_out_examples} examples, fewer than "
                f"{FEW}: a rough one."
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "eval_perplexity_before": self.eval_perplexity_before,
            "eval_perplexity": self.eval_perplexity,
            "tokens_per_second": self.tokens_per_second,
            "notes": self.notes,
        }
