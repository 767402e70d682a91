"""The typed settings of `tokenrlhf reward-model`.

Every field's text is its `--help`. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenenv.data import parse_columns
from tokenenv.ranges import (
    COUNT_OR_0,
    OPTIONAL_COUNT,
    OPTIONAL_POSITIVE_FINITE,
    SEED,
    WEIGHT,
    check_ranges,
    count,
)

__all__ = ["RewardModelConfig", "RewardTrainingOptions"]


@dataclass(frozen=True)
class RewardModelPlaces:
    """What a reward model is made of, and where it goes."""

    pairs: Path
    """File of pairs: JSON Lines, JSON, CSV, TSV or Parquet, packed by gzip or not; a folder of
    datasets; or a hub id. Its rows hold chosen and rejected, with a prompt or as whole dialogues;
    response_a, response_b and a label; or responses and their ratings (docs/data.md)."""
    base: str
    """Task name, folder or hub id of the model to start from: a causal LM or a classifier."""
    out: Path
    """Folder to write it to, with report.json and report.png."""
    overwrite: bool = False
    """Write into a folder that exists already."""
    members: int = 1
    """Reward models to train, with other seeds of head and order and the same split; more than one
    are written to member-1, member-2, …; `train --reward-model` takes the folder of all."""


@dataclass(frozen=True)
class RewardTrainingOptions:
    """How pairs are read and reward models are trained; every command that trains some has them."""

    epochs: int = 2
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per step at most."""
    batch_tokens: int | None = 4096
    """Tokens per step at most, of both sides, padding included; the pairs are random ones. None:
    --batch-size pairs, however long they are."""
    micro_batch_tokens: int = 8192
    """Tokens per forward and backward at most, padding included; less memory, same result."""
    learning_rate: float = 3e-4
    """AdamW's peak; models of a billion weights want about 1e-5, their adapters ten times that."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to 0 after the warm-up, or that it doesn't."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.01
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""
    centering_coef: float = 0.0
    """Weight of the loss term that keeps rewards near 0."""

    eval_fraction: float = 0.1
    """Share of the prompts held out to choose the weights by; 0, with --no-early-stopping: none."""
    report_fraction: float = 0.1
    """Share of the prompts held out for the report alone; 0: it is made on those of the choice."""
    evaluations_per_epoch: int = 4
    """How often the held-out loss that chooses the weights is measured."""
    early_stopping: bool = True
    """Stop when that loss has not fallen for --patience evaluations, and keep the weights with the
    lowest one. With --no-early-stopping all steps are taken and the last weights kept."""
    patience: int = 3
    """Evaluations without a lower held-out loss after which training stops."""

    lora_rank: int | None = None
    """Train low-rank adapters (LoRA) of this rank and the head instead of all weights; the folder
    then holds the merged model, and the adapter with the head in adapter/."""
    lora_alpha: float | None = None
    """α of the adapters, ΔW = (α/rank)·B·A; twice the rank unless given."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the linear layers that get adapters; those that peft has for the architecture unless
    given, else those of attention."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the forward and backward passes; auto: the faster one, which is measured. The
    weights and the rewards stay float32."""

    columns: tuple[str, ...] = ()
    """What columns mean and their names in the file: prompt=question chosen=good."""
    skip_bad: bool = False
    """Go on without the rows that can't be used, and say how many they are."""
    ratings: Literal["all", "best-worst"] = "all"
    """Where several responses to a prompt have ratings: all pairs of them, or the best against the
    worst."""
    max_tokens: int | None = None
    """Tokens that a prompt and a response have room for together; default: the limit of the
    model."""
    truncation: Literal["keep-end", "drop", "error"] = "keep-end"
    """What is done with longer pairs: the prompt loses its beginning, and a response its end where
    it does not fit by itself; they are left out; or they are refused."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of head, adapters, split and order."""

    def __post_init__(self) -> None:
        """Validate the settings that `RewardTrainingSettings` does not."""
        parse_columns(self.columns)
        ranges = {
            "max_tokens": OPTIONAL_COUNT,
            "centering_coef": WEIGHT,
            "seed": SEED,
            "lora_rank": OPTIONAL_COUNT,
            "lora_alpha": OPTIONAL_POSITIVE_FINITE,
        }
        check_ranges(vars(self), ranges)
        for name in ("lora_alpha", "lora_target_modules"):
            if self.lora_rank is None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for adapters: give lora_rank with it, or leave it out."
                )

    def training(self) -> dict[str, Any]:
        """The fields that are arguments of `tokenenv.rewards.RewardTrainingSettings`."""
        others = {
            *("columns", "skip_bad", "ratings", "max_tokens", "truncation", "device"),
            *("lora_rank", "lora_alpha", "lora_target_modules"),
        }
        names = [field.name for field in dataclasses.fields(RewardTrainingOptions)]
        return {name: getattr(self, name) for name in names if name not in others}


@dataclass(frozen=True)
class RewardModelConfig(RewardTrainingOptions, RewardModelPlaces):
    """Train a reward model on preference pairs."""

    reference: str | None = None
    """Task name, folder or hub id of the policy that will be trained against this reward: the
    report shows the scores of its samples, too. Unless given, that of the task that is the
    base."""
    reference_samples: int = 128
    """Responses to sample from the reference, at most one for each held-out prompt; 0: none."""

    def __post_init__(self) -> None:
        """Validate the settings that `RewardTrainingSettings` does not."""
        RewardTrainingOptions.__post_init__(self)
        check_ranges(vars(self), {"members": count(high=100), "reference_samples": COUNT_OR_0})
