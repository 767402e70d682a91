"""The arguments of a `TokenPPO` as JSON, and a model that is made of them again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule

from agents.policy import LMActorCriticPolicy
from agents.ppo.learning_rates import DECAYS, Decay

__all__ = ["arguments_of", "settings_state"]

_GIVEN_ANEW = frozenset(
    ("self", "policy", "env", "device", "tensorboard_log", "rollout_buffer_class")
)
"""Arguments that are no settings, or are the same in every checkpoint."""

_NAMES = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd", "Adagrad": "adagrad"}


def settings_state(model: Any) -> dict[str, Any]:
    """The settings of a `TokenPPO` as JSON.

    Returns:
        `arguments`, and the names of those that JSON can't hold, as `not_stored`: functions, and
        optimisers of the user's.
    """
    arguments: dict[str, Any] = {}
    not_stored = []
    for name in inspect.signature(type(model).__init__).parameters:
        if name in _GIVEN_ANEW or name.startswith("_"):
            continue
        value = getattr(model, "_stats_window_size" if name == "stats_window_size" else name)
        try:
            arguments[name] = json.loads(json.dumps(_as_json(value), allow_nan=False))
        except (TypeError, ValueError):
            not_stored.append(name)
    return {"arguments": arguments, "not_stored": not_stored}


def _as_json(value: Any) -> Any:
    """A setting as JSON holds it; schedules become objects, optimisers of torch their names."""
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
        if isinstance(value, ConstantSchedule):
            return value.val
    if isinstance(value, ConstantSchedule):
        return {"schedule": "constant", "start": value.val}
    if isinstance(value, Decay):
        return {"schedule": value.shape, "start": value.start}
    if isinstance(value, type) and value.__module__.startswith("torch.optim"):
        return _NAMES.get(value.__name__, value)
    if isinstance(value, Mapping):
        return {name: _as_json(inner) for name, inner in value.items()}
    return value


def arguments_of(state: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keyword arguments of `TokenPPO` that `settings_state` described.

    Args:
        state: the settings.
        given: arguments that come in the place of those.
        where: the checkpoint, for messages.

    Raises:
        ValueError: an argument was not stored and is not given.
    """
    missing = [name for name in state["not_stored"] if name not in given]
    if missing:
        raise ValueError(
            f"{where} could not store {', '.join(missing)}, which is no number, name or schedule "
            f"that JSON has: pass it as it was, TokenPPO.load(…, {missing[0]}=…)."
        )
    stored = {name: _from_json(value) for name, value in state["arguments"].items()}
    return {"policy": LMActorCriticPolicy, **stored, **given}


def _from_json(value: Any) -> Any:
    if not (isinstance(value, dict) and value.keys() == {"schedule", "start"}):
        return value
    if value["schedule"] == "constant":
        return ConstantSchedule(value["start"])
    if value["schedule"] not in DECAYS:
        raise ValueError(f"there is no schedule {value['schedule']!r}.")
    return Decay(value["start"], value["schedule"])
