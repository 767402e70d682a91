"""The folder of a trained policy: the actor as `transformers` writes it, the critic beside it."""

from __future__ import annotations

import copy
import json
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
    kwargs = json.loads((folder / _POLICY_FILE).read_text(encoding="utf-8"))
    width, vocabulary_size = kwargs.pop("width"), kwargs.pop("vocabulary_size")
    policy = policy_class(
        spaces.Box(NO_TOKEN, vocabulary_size - 1, (width,), np.int64),
        spaces.Discrete(vocabulary_size),
        lambda _: 0.0,
        **{**kwargs, "actor": str(folder), "config": None},
    )
    critic = torch.load(folder / _CRITIC_FILE, map_location="cpu", weights_only=True)
    missing, unexpected = policy.load_state_dict(critic, strict=False)
    assert not unexpected and all(name.startswith(_ACTOR_PREFIX) for name in missing)
    return policy


def json_config(model: Any) -> dict[str, Any]:
    """A model's transformers config as JSON holds it."""
    config = copy.deepcopy(model.config.to_dict())
    config.pop("dtype", None)
    # Where it lists more ends than the config, a model built from the config must know them, too.
    eos_token_id = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos_token_id is not None:
        config["eos_token_id"] = eos_token_id
    return json.loads(json.dumps(config))
