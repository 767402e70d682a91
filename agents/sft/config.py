"""The typed settings of supervised fine-tuning, and of `tokenrlhf sft`.

Every field's text is its `--help`. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tokenenv.data import parse_columns
from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_POSITIVE_FINITE,
    POSITIVE,
    POSITIVE_FINITE,
    SEED,
    WEIGHT,
    Range,
    check_ranges,
    count,
)

__all__ = ["SFTConfig", "SFTSettings"]

_RANGES = {
    **dict.fromkeys(("epochs", "batch_tokens", "micro_batch_tokens"), COUNT),
    **dict.fromkeys(("evaluations_per_epoch", "patience"), COUNT),
    "learning_rate": POSITIVE_FINITE,
    "weight_decay": WEIGHT,
    "max_grad_norm": POSITIVE,
    "warmup_fraction": Range("a number of 0 or more and at most 1", 0, 1),
    "eval_fraction": Range("a number of 0 or more and at most 0.9", 0, 0.9),
    "seed": SEED,
}

_CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "optimizer": ("adamw", "adam", "sgd", "adagrad"),
    "precision": ("float32", "bfloat16"),
}

_FLAGS = ("early_stopping", "gradient_checkpointing")


@dataclass(frozen=True)
class SFTSettings:
    """How a language model is fine-tuned.

    Attributes:
        epochs: passes over the training examples.
        batch_tokens: tokens of the examples of a step, prompts included, approximately: examples
            are not split.
        micro_batch_tokens: tokens of one forward and backward pass, padding included, at most; a
            longer example is a pass by itself. It changes memory and time, not the result.
        learning_rate: the peak.
        schedule: how the rate falls to 0 after the warm-up: along half a cosine, linearly, or not.
        warmup_fraction: share of the steps in which the rate rises linearly.
        optimizer: torch's, in one kernel.
        weight_decay: of AdamW, for matrices; biases and gains of norms are left alone.
        max_grad_norm: gradients are clipped to this norm.
        eval_fraction: share of the prompts and documents held out for the loss that stops training
            early and chooses the weights; 0: none.
        evaluations_per_epoch: how often the held-out loss is measured.
        early_stopping: whether training stops when the held-out loss has not fallen for `patience`
            evaluations, and the weights with the lowest one are kept. Otherwise the last ones are.
        patience: see `early_stopping`.
        precision: of the forward and backward passes; weights and optimiser state stay as they are.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        seed: of the split and the order.
    """

    epochs: int = 3
    batch_tokens: int = 4096
    micro_batch_tokens: int = 4096
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    eval_fraction: float = 0.1
    evaluations_per_epoch: int = 4
    early_stopping: bool = True
    patience: int = 3
    precision: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(
                    f"{name}={value!r:.60} must be one of {', '.join(map(repr, allowed))}."
                )
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r:.60} must be True or False.")


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tune a language model on texts, or on prompts with a response: the warm start."""

    model: str
    """Task name, folder or hub id of the causal LM to start from."""
    data: Path
    """File of examples: plain text, or JSON Lines, JSON, CSV, TSV or Parquet, packed by gzip or
    not; a folder of datasets; or a hub id. Its rows hold text; prompt and response (or completion,
    answer, output); or messages, which the tokenizer's chat template writes."""
    out: Path
    """Folder to write the model to, which --reference, --actor and --base take."""
    overwrite: bool = False
    """Write into a folder that exists already."""

    columns: tuple[str, ...] = ()
    """What columns mean and their names in the file: prompt=question response=best_answer."""
    skip_bad: bool = False
    """Go on without the rows that can't be used, and say how many they are."""
    documents: str = "lines"
    """Where a document of plain text ends: lines, paragraphs (at blank lines), whole (nowhere), or
    a marker such as '<|endoftext|>'."""
    max_tokens: int | None = None
    """Tokens that an example has room for; default: the limit of the model."""
    truncation: Literal["keep-end", "drop", "error"] = "keep-end"
    """What is done with longer examples: the prompt loses its beginning, and the response its end
    where it does not fit by itself; they are left out; or they are refused. Documents are learned
    in pieces instead of being cut."""

    epochs: int = 3
    """Passes over the training examples."""
    batch_tokens: int = 4096
    """Tokens of a step, approximately, prompts included: examples are not split."""
    micro_batch_tokens: int = 4096
    """Tokens per forward and backward at most, padding included; less memory, same result."""
    learning_rate: float = 3e-4
    """Peak of the learning rate; models of a billion weights want 1e-5 to 2e-5, their adapters ten
    times that."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to 0 after the warm-up, or that it doesn't."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the rate rises."""
    optimizer: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    """Torch's optimiser, in one kernel."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, for matrices alone."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""

    eval_fraction: float = 0.1
    """Share of the prompts and documents held out for the loss that chooses the weights; 0: none,
    and the last weights are kept."""
    evaluations_per_epoch: int = 4
    """How often the held-out loss is measured."""
    early_stopping: bool = True
    """Stop when the held-out loss has not fallen for --patience evaluations, and keep the weights
    with the lowest one. With --no-early-stopping all steps are taken and the last weights kept."""
    patience: int = 3
    """Evaluations without a lower held-out loss after which training stops."""

    lora_rank: int | None = None
    """Train low-rank adapters (LoRA) of this rank instead of all weights; the folder then holds the
    merged model, and the adapter in adapter/."""
    lora_alpha: float | None = None
    """α of the adapters, ΔW = (α/rank)·B·A; twice the rank unless given."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the linear layers that get adapters; those that peft has for the architecture unless
    given, else those of attention."""
    gradient_checkpointing: bool = False
    """Compute the activations of layers again in the backward pass instead of keeping them: less
    memory, more time, same result."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward passes; the weights stay float32."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of adapters, split and order."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        self.settings()
        parse_columns(self.columns)
        ranges = {
            "max_tokens": count(2, or_what=", or None (leave it out)", is_optional=True),
            "lora_rank": OPTIONAL_COUNT,
            "lora_alpha": OPTIONAL_POSITIVE_FINITE,
        }
        check_ranges(vars(self), ranges)
        for name in ("lora_alpha", "lora_target_modules"):
            if self.lora_rank is None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for adapters: give lora_rank with it, or leave it out."
                )

    def settings(self) -> SFTSettings:
        """The settings of the training.

        Raises:
            ValueError: one is out of its range.
        """
        return SFTSettings(
            **{field.name: getattr(self, field.name) for field in fields(SFTSettings)}
        )

    def as_json(self) -> dict[str, Any]:
        """The settings for `report.json`."""
        content = dataclasses.asdict(self)
        return {**content, "data": str(self.data), "out": str(self.out)}
