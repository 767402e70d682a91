"""The folder of a trained policy: the actor in `transformers`' format, and the critic."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from transformers import AutoConfig

from agents.atomic_files import write_json
from agents.settings import settings_from_json
from tokenenv.episodes import NO_TOKEN
from tokenenv.json_files import read_json_object
from tokenenv.models import (
    check_config,
    load_adapter,
    load_tokenizer,
    merged,
    quiet_loading,
    save_adapter,
)

__all__ = ["json_config", "load_policy", "save_policy", "store_rebuild_kwargs"]

_POLICY_FILE = "policy.json"
_CRITIC_FILE = "critic.pt"
_ADAPTER_FOLDER = "adapter"
_ACTOR_PREFIX = "actor."


def save_policy(policy: Any, folder: Path, tokenizer: Any) -> None:
    """See `LMActorCriticPolicy.save_pretrained`."""
    if tokenizer is None:
        tokenizer = load_tokenizer(policy.actor_source, "actor")
    actor = policy.actor if policy.lora is None else merged(policy.actor)
    with quiet_loading():
        actor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if policy.lora is not None:
        save_adapter(policy.actor, folder / _ADAPTER_FOLDER, policy.actor_source)
    weights = policy.state_dict()
    critic = {name: w for name, w in weights.items() if not name.startswith(_ACTOR_PREFIX)}
    torch.save(critic, folder / _CRITIC_FILE)
    kwargs = policy.rebuild_kwargs()
    kwargs["width"] = int(policy.observation_space.shape[0])
    kwargs["vocabulary_size"] = int(policy.action_space.n)
    write_json(folder / _POLICY_FILE, kwargs)


def store_rebuild_kwargs(model: Any) -> None:
    """Let an algorithm's archive build its policy without the first checkpoint.

    Args:
        model: an SB3 algorithm with an `LMActorCriticPolicy`. It gets a new dictionary of
            `policy_kwargs`: the old one may be the caller's, who may build another policy of it.
    """
    model.policy_kwargs = {**(model.policy_kwargs or {}), **model.policy.rebuild_kwargs()}


def load_policy(policy_class: type[Any], folder: Path) -> Any:
    """See `LMActorCriticPolicy.from_pretrained`."""
    if not os.path.isfile(folder / _POLICY_FILE):
        raise ValueError(
            f"{str(folder)!r} holds no policy, {_POLICY_FILE} is missing: give a folder that "
            "save_pretrained wrote."
        )
    arguments = _read_arguments(folder)
    try:
        policy = policy_class(**arguments)
    except ValueError as error:
        if str(folder) in str(error):
            raise
        merged_model = (
            f" The merged model in {str(folder)!r} needs nothing else: give it as a model."
            if arguments.get("lora")
            else ""
        )
        raise ValueError(
            f"{str(folder / _POLICY_FILE)!r} describes no policy that can be made here: {error}"
            f"{merged_model}"
        ) from error
    _load_critic(policy, folder / _CRITIC_FILE)
    if policy.lora is not None:
        load_adapter(policy.actor, folder / _ADAPTER_FOLDER, repr(str(folder)))
        policy.drop_caches()
    return policy


def _read_arguments(folder: Path) -> dict[str, Any]:
    """The arguments that build the policy; ValueError where its file is broken."""
    file = folder / _POLICY_FILE
    try:
        description = read_json_object(file, "the description of a policy")
        _check_description(description)
        if "lora" not in description:
            _check_same_config(description["config"], folder)
    except ValueError as error:
        raise ValueError(
            f"{str(file)!r} is broken ({str(error).rstrip('.')}): save the policy again, or "
            "restore the file."
        ) from error
    width, vocabulary_size = description.pop("width"), description.pop("vocabulary_size")
    if "lora" not in description:
        description |= {"actor": str(folder), "config": None}
    return {
        "observation_space": spaces.Box(NO_TOKEN, vocabulary_size - 1, (width,), np.int64),
        "action_space": spaces.Discrete(vocabulary_size),
        "lr_schedule": lambda _: 0.0,
        **description,
    }


@dataclasses.dataclass(frozen=True)
class _Description:
    """The content of `policy.json` without the configs; no defaults are filled in."""

    actor: str
    value_head: Literal["shared", "separate"]
    critic: str
    temperature: float
    dtype: str
    width: int
    vocabulary_size: int
    attention: str | None
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if self.width < 1 or self.vocabulary_size < 1:
            raise ValueError("width and vocabulary_size must be at least 1")


def _check_description(description: dict[str, Any]) -> None:
    """Raise ValueError where a setting of the policy is missing, unknown or of another type."""
    is_separate = description.get("value_head") == "separate"
    needed = ["config", *(["critic_config"] if is_separate else [])]
    if "lora" in description:
        needed = ["lora"]
    plain = {name: value for name, value in description.items() if name not in needed}
    defaults = {"attention": None, "gradient_checkpointing": False}
    settings_from_json(_Description, {**defaults, **plain})
    for name in needed:
        if not isinstance(description.get(name), dict):
            raise ValueError(f"{name!r} must be an object")


_NOT_OF_THE_MODEL = {
    *("transformers_version", "_name_or_path", "architectures", "dtype"),
    "eos_token_id",  # `json_config` takes it from the generation config
}


def _check_same_config(recorded: dict[str, Any], folder: Path) -> None:
    """Raise ValueError where `config.json` is not that of the saved model.

    Most of its numbers (of heads, of the rotary embedding) fit the weights with any value.
    """
    now = read_json_object(folder / "config.json", "a model's config")
    for config in (recorded, now):
        check_config(config, "policy", str(folder))
    try:
        recorded_values, values = (
            AutoConfig.for_model(**copy.deepcopy(c)).to_dict() for c in (recorded, now)
        )
    except Exception as error:  # config classes raise errors of many kinds
        raise ValueError(f"no transformers config: {type(error).__name__}: {error}") from error
    for name in (recorded_values.keys() & values.keys()) - _NOT_OF_THE_MODEL:
        if json.dumps(recorded_values[name], default=str) != json.dumps(values[name], default=str):
            raise ValueError(
                f"config.json beside it says {name}={values[name]!r:.60}, the model that was saved "
                f"had {recorded_values[name]!r:.60}"
            )


def _load_critic(policy: Any, file: Path) -> None:
    """Load everything but the actor; ValueError where the file is missing or not this policy's."""
    if not file.is_file():
        raise ValueError(
            f"{str(file)!r} is missing, which holds the policy's critic: save the policy again, or "
            "restore the file."
        )
    try:
        critic = torch.load(file, map_location="cpu", weights_only=True)
        missing, unexpected = policy.load_state_dict(critic, strict=False)
    except (EOFError, LookupError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{str(file)!r} does not hold this policy's critic ({type(error).__name__}): save the "
            "policy again, or restore the file."
        ) from error
    wrong = [*unexpected, *(name for name in missing if not name.startswith(_ACTOR_PREFIX))]
    if wrong:
        raise ValueError(
            f"{str(file)!r} does not hold this policy's critic (it differs in {wrong[0]!r}): save "
            "the policy again, or restore the file."
        )


def json_config(model: Any) -> dict[str, Any]:
    """A model's transformers config as JSON holds it."""
    config = copy.deepcopy(model.config.to_dict())
    config.pop("dtype", None)
    # It may list more end tokens than the config; a model built from the config needs them, too.
    eos_token_id = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos_token_id is not None:
        config["eos_token_id"] = eos_token_id
    return json.loads(json.dumps(config))
