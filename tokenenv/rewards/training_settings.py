"""The settings of a reward model's training."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenenv.ranges import (
    COUNT,
    FRACTION,
    OPTIONAL_COUNT,
    POSITIVE,
    POSITIVE_FINITE,
    SEED,
    WEIGHT,
    Range,
    check_ranges,
)

__all__ = ["PRECISIONS", "SCHEDULES", "RewardTrainingSettings"]

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16", "auto")

_RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "micro_batch_tokens"), COUNT),
    **dict.fromkeys(("evaluations_per_epoch", "patience"), COUNT),
    "batch_tokens": OPTIONAL_COUNT,
    "learning_rate": POSITIVE_FINITE,
    "warmup_fraction": Range("a number of 0 or more and at most 1", 0, 1),
    **dict.fromkeys(("weight_decay", "centering_coef"), WEIGHT),
    "max_grad_norm": POSITIVE,
    **dict.fromkeys(("eval_fraction", "report_fraction"), FRACTION),
    "seed": SEED,
}

_CHOICES = {"schedule": SCHEDULES, "precision": PRECISIONS}


@dataclass(frozen=True, slots=True)
class RewardTrainingSettings:
    """How a reward model is trained.

    Args:
        epochs: passes over the training pairs.
        batch_size: pairs per step at most.
        batch_tokens: tokens per step at most, those of both sides, padding included; the pairs of a
            step are random ones. None: `batch_size` pairs, however long they are.
        micro_batch_tokens: tokens per forward and backward pass at most, padding included; a longer
            pair is a pass by itself. It changes memory and time, not the result.
        learning_rate: AdamW's peak.
        schedule: how the rate falls to 0 after the warm-up: along half a cosine, linearly, or not.
        warmup_fraction: share of the steps in which the rate rises.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        centering_coef: weight of mean((r_w + r_l)²), which holds the rewards near 0.
        eval_fraction: share of the prompts held out for the loss that stops training early and
            chooses the weights; 0, without early stopping only: none.
        report_fraction: share of the prompts held out for the report alone. At 0, and where there
            are fewer than three prompts, the report is on the pairs that chose the weights, and
            says so.
        evaluations_per_epoch: how often the held-out loss is looked at.
        early_stopping: whether training stops when the held-out loss has not fallen for `patience`
            evaluations, and the weights with the lowest one are kept. Otherwise all steps are
            taken, and the last weights kept.
        patience: see `early_stopping`.
        precision: of the forward and backward passes: `"float32"`, `"bfloat16"`, or `"auto"`, the
            faster of the two, which is measured. Weights, rewards and the report are float32.
        seed: of the split and the order.
    """

    epochs: int = 2
    batch_size: int = 64
    batch_tokens: int | None = 4096
    micro_batch_tokens: int = 8192
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    centering_coef: float = 0.0
    eval_fraction: float = 0.1
    report_fraction: float = 0.1
    evaluations_per_epoch: int = 4
    early_stopping: bool = True
    patience: int = 3
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges({field.name: getattr(self, field.name) for field in fields(self)}, _RANGES)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(
                    f"{name}={value!r:.60} must be one of {', '.join(map(repr, allowed))}."
                )
        if not isinstance(self.early_stopping, bool):
            raise ValueError(f"early_stopping={self.early_stopping!r:.60} must be True or False.")
        if self.eval_fraction == 0 and self.early_stopping:
            raise ValueError(
                "eval_fraction=0 holds out no pairs to stop early by: hold some out, or turn early "
                "stopping off (early_stopping=False; --no-early-stopping)."
            )
        if not 0 <= self.report_fraction < 1 - self.eval_fraction:
            raise ValueError(
                f"eval_fraction={self.eval_fraction} and report_fraction={self.report_fraction} "
                "must be 0 or more, and less than 1 together: something must be left to train on."
            )
        if not self.eval_fraction + self.report_fraction:
            raise ValueError(
                "eval_fraction=0 and report_fraction=0 leave no pairs to report on: hold some out."
            )
