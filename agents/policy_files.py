"""The folder of a trained policy: the actor as `transformers` writes it, the critic beside it."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tokenenv.episodes import NO_TOKEN
from tokenenv.language_model import load_tokenizer, quiet_loading

__all__ = ["json_config", "load_policy", "save_policy"]

_POLICY_FILE = "policy.json"
_CRITIC_FILE = "critic.pt"
_ACTOR_PREFIX = "actor."


def save_policy(policy: Any, folder: Path, tokenizer: Any) -> None:
    """See `LMActorCriticPolicy.save_pretrained`."""
    if tokenizer is None:
        tokenizer = load_tokenizer(policy.actor_source, "actor")
    with quiet_loading():
        policy.actor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    weights = policy.state_dict()
    critic = {name: w for name, w in weights.items() if not name.startswith(_ACTOR_PREFIX)}
    torch.save(critic, folder / _CRITIC_FILE)
    kwargs = policy.rebuild_kwargs()
    kwargs["width"] = int(policy.observation_space.shape[0])
    kwargs["vocabulary_size"] = int(policy.action_space.n)
    (folder / _POLICY_FILE).write_text(json.dumps(kwargs, indent=2) + "\n", encoding="utf-8")


def load_policy(policy_class: type[Any], folder: Path) -> Any:
    """See `LMActorCriticPolicy.from_pretrained`."""
    if not (folder / _POLICY_FILE).is_file():
        raise ValueError(
            f"{str(folder)!r} holds no policy, {_POLICY_FILE} is missing: give a folder that "
            "save_pretrained wrote."
        )
    policy = policy_class(**_read_arguments(policy_class, folder))
    _load_critic(policy, folder / _CRITIC_FILE)
    return policy


def _read_arguments(policy_class: type[Any], folder: Path) -> dict[str, Any]:
    """The arguments that build the policy; ValueError where its file is broken."""
    file = folder / _POLICY_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        width, vocabulary_size = int(found.pop("width")), int(found.pop("vocabulary_size"))
        arguments = {
            "observation_space": spaces.Box(NO_TOKEN, vocabulary_size - 1, (width,), np.int64),
            "action_space": spaces.Discrete(vocabulary_size),
            "lr_schedule": lambda _: 0.0,
            **{**found, "actor": str(folder), "config": None},
        }
        inspect.signature(policy_class).bind(**arguments)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} is broken ({type(error).__name__}: {error}): save the policy again, or "
            "restore the file."
        ) from error
    return arguments


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
    # Where it lists more ends than the config, a model built from the config must know them, too.
    eos_token_id = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos_token_id is not None:
        config["eos_token_id"] = eos_token_id
    return json.loads(json.dumps(config))
