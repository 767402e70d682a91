"""What a file of the zoo may say about an agent of `tokenrlhf compare`: names and ranges.

The names are those of Stable-Baselines3's constructors, besides a few about the environment that
the agent sees, which RL Zoo (https://github.com/DLR-RM/rl-baselines3-zoo) has under the same names
(`n_envs`, `normalize`, `frame_stack`). What a file does not say is Stable-Baselines3's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.zoo.settings_files import as_number, near
from tokenenv.ranges import COUNT, COUNT_OR_0, FRACTION, POSITIVE_FINITE, WEIGHT, Range, count

__all__ = ["ALGORITHMS", "LINEAR", "check_learner"]

LINEAR = "lin_"
"""`lin_0.001` falls linearly from 0.001 to 0 at the run's end."""

_SCHEDULES = ("learning_rate", "clip_range")

_STEPS: dict[str, Range] = {"gamma": FRACTION, "max_grad_norm": POSITIVE_FINITE}
_ON_POLICY: dict[str, Range] = {
    **{"n_steps": COUNT, "gae_lambda": FRACTION, "ent_coef": WEIGHT, "vf_coef": WEIGHT},
    **_STEPS,
}
_PPO: dict[str, Range] = {**_ON_POLICY, "batch_size": COUNT, "n_epochs": COUNT}

ALGORITHMS: dict[str, dict[str, Range]] = {
    "ppo": _PPO,
    "token-ppo": _PPO,
    "a2c": {**_ON_POLICY, "rms_prop_eps": POSITIVE_FINITE},
    "dqn": {
        **_STEPS,
        **{"batch_size": COUNT, "buffer_size": COUNT, "learning_starts": COUNT_OR_0},
        **{"train_freq": COUNT, "gradient_steps": count(-1, or_what="; -1: as many as steps")},
        **{"target_update_interval": COUNT, "tau": FRACTION},
        **{"exploration_fraction": FRACTION, "exploration_initial_eps": FRACTION},
        "exploration_final_eps": FRACTION,
    },
}
"""Agent → its numbers, besides schedules."""

_FLAGS = ("normalize", "use_rms_prop", "normalize_advantage")
_COMMON: dict[str, Range] = {"n_envs": count(high=65_536), "frame_stack": count(high=1024)}
_OTHERS = ("net_arch", "env_id", "env_kwargs")

_ENV_KWARGS = ("task", "k")
"""Arguments of `gym.make` that a file may give: those that leave rewards and prompts as they are,
or make them those of the row's environment."""


def check_learner(agent: str, content: Any, place: str) -> dict[str, Any]:
    """The settings of an agent, with numbers as numbers.

    Args:
        agent: one of `ALGORITHMS`.
        content: what the file says about it.
        place: the file and the agent, for messages.

    Raises:
        ValueError: a setting does not exist, or has a value that it can't have; it is named.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: {content!r:.80} must be a mapping of settings.")
    if "train" in content:
        return _train(agent, dict(content), place)
    names = {*_SCHEDULES, *_FLAGS, *_OTHERS, *_COMMON, *ALGORITHMS[agent]}
    names -= {"clip_range"} if agent in ("a2c", "dqn") else set()
    names -= {"use_rms_prop"} if agent != "a2c" else set()
    names -= {"normalize_advantage"} if agent not in ("a2c", "ppo") else set()
    names |= {"train"} if agent == "token-ppo" else set()
    settings = {}
    for key, value in content.items():
        name = str(key)
        if name not in names:
            raise ValueError(f"{place}: there is no setting {name!r}{near(name, names)}")
        settings[name] = _value(agent, name, value, place)
    if settings.get("normalize") and settings.get("frame_stack", 1) > 1:
        raise ValueError(f"{place}: normalize and frame_stack exclude each other: leave one out.")
    return settings


def _train(agent: str, content: dict[str, Any], place: str) -> dict[str, Any]:
    """The name of a file for `tokenrlhf train`, which stands for all settings."""
    if agent != "token-ppo":
        raise ValueError(f"{place}: 'train' names settings of `tokenrlhf train`: for token-ppo.")
    if len(content) > 1 or not isinstance(content["train"], str):
        raise ValueError(
            f"{place}: 'train' is the name of a file of the zoo, and stands alone: {content!r:.80}."
        )
    return content


def _value(agent: str, name: str, value: Any, place: str) -> Any:
    if name in _SCHEDULES:
        return _schedule(name, value, place)
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise ValueError(f"{place}: {name}={value!r:.80} must be true or false.")
        return value
    if name == "net_arch":
        if not isinstance(value, list) or not value or not all(map(COUNT.holds, value)):
            raise ValueError(f"{place}: net_arch={value!r:.80} must be a list of widths.")
        return value
    if name == "env_id":
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{place}: env_id={value!r:.80} must be the id of an environment.")
        return value
    if name == "env_kwargs":
        if not isinstance(value, Mapping) or set(value) - set(_ENV_KWARGS):
            raise ValueError(
                f"{place}: env_kwargs={value!r:.80} must be a mapping with "
                f"{' or '.join(_ENV_KWARGS)} and nothing else, which would be another problem."
            )
        return dict(value)
    allowed = {**_COMMON, **ALGORITHMS[agent]}[name]
    number = as_number(value)
    if not allowed.holds(number):
        raise ValueError(f"{place}: {name}={value!r:.80} must be {allowed.words}.")
    return number


def _schedule(name: str, value: Any, place: str) -> Any:
    """A number, or `lin_` and a number."""
    is_linear = isinstance(value, str) and value.startswith(LINEAR)
    number = as_number(value.removeprefix(LINEAR) if is_linear else value)
    if not POSITIVE_FINITE.holds(number):
        raise ValueError(
            f"{place}: {name}={value!r:.80} must be {POSITIVE_FINITE.words}, or such a number "
            f"after {LINEAR!r}, from which it falls linearly to 0."
        )
    return f"{LINEAR}{number}" if is_linear else number
