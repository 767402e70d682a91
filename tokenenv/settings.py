"""The keyword arguments of `gym.make`, checked and completed by the task's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenenv.language_model import resolve_device, resolve_dtype
from tokenenv.shaping import KL_SHAPINGS
from tokenenv.tasks import Task, check_split, model_source

__all__ = ["SCORINGS", "EnvSettings", "check_kl_coef"]

SCORINGS = ("step", "deferred")
"""Rewards at every step, or all of a rollout's episodes scored together by the trainer's buffer."""


@dataclass(frozen=True)
class EnvSettings:
    """The keyword arguments of `gym.make`; `TokenEnv` documents them. None means: the task's own."""

    task: str = "reviews"
    reference: str | None = None
    reward_model: str | Callable[..., Sequence[Any]] | None = None
    prompts: str | Sequence[str] | None = None
    split: str = "train"
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    kl_coef: float | None = None
    kl_shaping: str = "k1"
    temperature: float = 1.0
    score_clip: float | None = None
    missing_eos_penalty: float = 0.0
    scoring: str = "step"
    device: str = "auto"
    dtype: str = "float32"
    render_mode: str | None = None

    def __post_init__(self) -> None:
        """Refuse what can be refused without loading a model."""
        check_split(self.split)
        _one_of("kl_shaping", self.kl_shaping, KL_SHAPINGS)
        _one_of("scoring", self.scoring, SCORINGS)
        _one_of("render_mode", self.render_mode, (None, "ansi", "human"))
        resolve_dtype(self.dtype)
        for name in ("max_prompt_tokens", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if self.kl_coef is not None:
            check_kl_coef(self.kl_coef)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if self.score_clip is not None and not self.score_clip > 0:
            raise ValueError(f"score_clip={self.score_clip} must be positive, or None for no clip.")
        if not self.missing_eos_penalty >= 0:
            raise ValueError(f"missing_eos_penalty={self.missing_eos_penalty} must be 0 or more.")

    def resolved(self, task: Task) -> EnvSettings:
        """The same settings with every None that a task fills replaced, and the device decided."""
        own = {
            name: getattr(task, name)
            for name in (
                "reference",
                "reward_model",
                "max_prompt_tokens",
                "max_new_tokens",
                "kl_coef",
            )
            if getattr(self, name) is None
        }
        for name in ("reference", "reward_model"):
            own[name] = model_source(own.get(name) or getattr(self, name), name)
        return dataclasses.replace(self, device=resolve_device(self.device), **own)


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, allowed))}."
        )


def check_kl_coef(kl_coef: float) -> float:
    """β as a float; ValueError where it is negative or no finite number."""
    if not (math.isfinite(kl_coef) and kl_coef >= 0):
        raise ValueError(
            f"kl_coef={kl_coef} must be 0 or a positive number: a negative one would reward leaving "
            "the reference."
        )
    return float(kl_coef)
