"""The keyword arguments of `gym.make`, checked, and completed by the defaults of the task."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenenv.combinations import check_combination, named_rewards
from tokenenv.data import TRUNCATIONS, Message, Prompt, check_columns
from tokenenv.maths import KL_SHAPINGS
from tokenenv.models import resolve_device, resolve_dtype
from tokenenv.ranges import POSITIVE_FINITE, WEIGHT, check_ranges, count
from tokenenv.tasks import Task, check_split, is_bundled, model_source

__all__ = [
    "SCORINGS",
    "EnvSettings",
    "Prompts",
    "ResolvedSettings",
    "Rewards",
    "check_kl_coef",
]

Rewards = str | Callable[..., Sequence[Any]] | Sequence[str | Callable[..., Sequence[Any]]]
"""What `reward_model` may be: a name, a function, or several of them."""

Prompts = str | Sequence[str | Sequence[Message] | Mapping[str, Any] | Prompt]
"""What `prompts` may be: a name, or prompts as `tokenenv.data.as_prompt` takes them."""

SCORINGS = ("step", "deferred")
"""Rewards at every step, or all of a rollout's episodes scored together by the trainer's buffer."""


_TOKENS = count(high=2**20)
"""Range of the tokens of a prompt or a response, and of the episodes of a group."""

_NUMBERS = {
    "temperature": POSITIVE_FINITE,
    "score_clip": dataclasses.replace(
        POSITIVE_FINITE, words="positive, or None for no clip", is_optional=True
    ),
    "missing_eos_penalty": WEIGHT,
}


@dataclass(frozen=True)
class EnvSettings:
    """The keyword arguments of `gym.make`, as `TokenEnv` documents them. None: that of the task.

    A `pathlib.Path` will do for `reference`, `reward_model` and `prompts`; it becomes a string.
    """

    task: str = "reviews"
    reference: str | None = None
    reward_model: Rewards | None = None
    prompts: Prompts | None = None
    split: str = "train"
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    kl_coef: float | None = None
    kl_shaping: str = "k1"
    temperature: float = 1.0
    score_clip: float | None = None
    missing_eos_penalty: float = 0.0
    scoring: str = "step"
    group_size: int = 1
    device: str = "auto"
    dtype: str = "float32"
    render_mode: str | None = None
    reward_weights: Sequence[float] | None = None
    prompt_truncation: str = "error"
    prompt_columns: Mapping[str, str] | None = None
    skip_bad_prompts: bool = False
    reward_combine: str | None = None
    uncertainty_coef: float | None = None

    def __post_init__(self) -> None:
        """Validate as much as possible without loading a model."""
        for name in ("reference", "reward_model", "prompts"):
            object.__setattr__(self, name, _without_path(getattr(self, name)))
        if isinstance(self.reward_model, list | tuple):
            object.__setattr__(self, "reward_model", list(map(_without_path, self.reward_model)))
        check_split(self.split)
        _one_of("kl_shaping", self.kl_shaping, KL_SHAPINGS)
        _one_of("scoring", self.scoring, SCORINGS)
        _one_of("prompt_truncation", self.prompt_truncation, TRUNCATIONS)
        check_columns(self.prompt_columns, None, "prompt_columns")
        if not isinstance(self.skip_bad_prompts, bool):
            raise ValueError(
                f"skip_bad_prompts={self.skip_bad_prompts!r:.60} must be true or false."
            )
        check_combination(
            self.reward_model, self.reward_weights, self.reward_combine, self.uncertainty_coef
        )
        _one_of("render_mode", self.render_mode, (None, "ansi", "human", "rgb_array"))
        resolve_dtype(self.dtype)
        if not isinstance(self.task, str):
            raise ValueError(f"task={self.task!r} must be the name of a task.")
        for name in ("max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_ranges({name: getattr(self, name)}, {name: _TOKENS})
        check_ranges({"group_size": self.group_size}, {"group_size": _TOKENS})
        if self.kl_coef is not None:
            check_kl_coef(self.kl_coef)
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        check_ranges(numbers, _NUMBERS)

    def resolved(self, task: Task) -> ResolvedSettings:
        """The same settings, with those of the task in place of None.

        Raises:
            ValueError: reference or prompts are the user's own, and the reward is left to a bundled
                task; or there are not several rewards to combine.
        """
        self._refuse_inherited_reward(task)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in _OF_THE_TASK:
            if values[name] is None:
                values[name] = getattr(task, name)
        for name in ("reference", "reward_model"):
            value = _without_path(values[name])
            is_list = name == "reward_model" and isinstance(value, list | tuple)
            values[name] = (
                [model_source(one, name) for one in value] if is_list else model_source(value, name)
            )
        values["reward_model"], values["reward_combine"] = named_rewards(
            values["reward_model"], self.reward_combine
        )
        # Again, with the task's rewards and those of an ensemble's folder.
        check_combination(
            values["reward_model"],
            self.reward_weights,
            values["reward_combine"],
            self.uncertainty_coef,
        )
        values["max_prompt_tokens"] = int(values["max_prompt_tokens"])
        values["max_new_tokens"] = int(values["max_new_tokens"])
        values["kl_coef"] = float(values["kl_coef"])
        values["device"] = resolve_device(self.device)
        return ResolvedSettings(**values)

    def _refuse_inherited_reward(self, task: Task) -> None:
        """Raise ValueError where a bundled task's reward would judge a user's model or prompts."""
        if self.reward_model is not None or not is_bundled(self.task):
            return
        own_reference = self.reference is not None and (
            model_source(self.reference, "reference") != task.reference
        )
        own_prompts = self.prompts is not None and self.prompts != self.task
        brought = [("reference", own_reference), ("prompts", own_prompts)]
        names = " and ".join(name for name, is_own in brought if is_own)
        if names:
            raise ValueError(
                f"reward_model is missing: with {names} of your own, the reward model of the task "
                f"{self.task!r} would score texts that it was not trained on. Name a reward: "
                "'module:function' (or a function), the folder or hub id of a reward model, or "
                f"reward_model={self.task!r} if it is really meant to."
            )


_OF_THE_TASK = ("reference", "reward_model", "max_prompt_tokens", "max_new_tokens", "kl_coef")
"""Settings whose default is that of the task."""


@dataclass(frozen=True)
class ResolvedSettings:
    """The complete settings of an environment; only `prompts` may still be left to its task.

    Attributes:
        prompts: a file, a task or a list of texts; None: those of the task.
        score_clip: None: scores are not clipped.
        render_mode: None: nothing is rendered.
        reward_combine: one of `tokenenv.combinations.COMBINATIONS`.

    The others as `TokenEnv` documents them.
    """

    task: str
    reference: str
    reward_model: Rewards
    prompts: Prompts | None
    split: str
    max_prompt_tokens: int
    max_new_tokens: int
    kl_coef: float
    kl_shaping: str
    temperature: float
    score_clip: float | None
    missing_eos_penalty: float
    scoring: str
    group_size: int
    device: str
    dtype: str
    render_mode: str | None
    reward_weights: Sequence[float] | None
    prompt_truncation: str
    prompt_columns: Mapping[str, str] | None
    skip_bad_prompts: bool
    reward_combine: str
    uncertainty_coef: float | None


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, allowed))}."
        )


def _without_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_kl_coef(kl_coef: float) -> float:
    """β as a float; ValueError where it is negative or no finite number."""
    if not WEIGHT.holds(kl_coef):
        raise ValueError(
            f"kl_coef={kl_coef!r} must be 0 or a positive number: a negative one would reward "
            "leaving the reference."
        )
    return float(kl_coef)
