"""Which settings of `tokenrlhf train` go together; those of the agent and its buffer apart.

Mappings, not the dataclass: it is made of settings that are right, and stands above this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.settings.ranges import PPO_RANGES
from agents.settings.sweep import parse_sweep
from tokenenv.addresses import check_addresses, names_server
from tokenenv.combinations import check_combination
from tokenenv.data import parse_columns
from tokenenv.ranges import (
    COUNT,
    COUNT_OR_0,
    OPTIONAL_COUNT,
    OPTIONAL_POSITIVE_FINITE,
    OPTIONAL_RESPONSES_OR_0,
    POSITIVE_FINITE,
    SEED,
    WEIGHT,
    Range,
    check_ranges,
    count,
)

__all__ = ["HACKING_ACTIONS", "LR_SCHEDULES", "check_train_settings"]

MOST_ENVS = 65_536
"""Limit of `n_envs`: every environment needs a cache."""

LR_SCHEDULES = ("linear", "cosine", "cubic", "constant")
"""Values of `lr_schedule`."""

HACKING_ACTIONS = ("ignore", "warn", "stop", "raise-kl")
"""Values of `on_hacking_alarm`."""

LAUNCHERS = (None, "local", "ray")
"""Values of `launcher`."""

_RANGES: dict[str, Range] = {
    **PPO_RANGES,
    "seed": SEED,
    "total_tokens": count(high=10**12),
    "n_envs": count(high=MOST_ENVS),
    **dict.fromkeys(("seeds", "workers"), OPTIONAL_COUNT),
    "eval_prompts": COUNT,
    "eval_responses": OPTIONAL_RESPONSES_OR_0,
    "eval_every": COUNT_OR_0,
    "explain_every": COUNT_OR_0,
    "explain_prompts": COUNT,
    "checkpoint_every": COUNT_OR_0,
    "keep_checkpoints": OPTIONAL_COUNT,
    "check_ranks_every": COUNT_OR_0,
    **{"shift_every": COUNT_OR_0, "refresh_every": COUNT_OR_0, "refresh_pairs": COUNT},
    **{"refresh_label_noise": WEIGHT, "refresh_epochs": COUNT_OR_0},
    "refresh_learning_rate": POSITIVE_FINITE,
    "num_threads": count(1, 1024, ", or None (leave it out)", is_optional=True),
    "lora_rank": OPTIONAL_COUNT,
    "lora_alpha": OPTIONAL_POSITIVE_FINITE,
    "hacking_kl_factor": Range("a number above 1, and at most 10,000", 1, 1e4, is_open=True),
    "hacking_kl_raises": COUNT,
}

_NAMES = (
    *("task", "actor", "reference", "reward_model", "prompts", "critic", "tracker"),
    *("shift_pairs", "refresh_labels", "refresh_old_pairs"),
)
"""Settings that are names or paths."""


def check_train_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a setting that is out of its range, or that goes with none of the others.

    Args:
        settings: all fields of `agents.config.TrainConfig`, by name.

    Raises:
        ValueError: what was given, what is allowed, and what to do.
    """
    check_ranges(settings, _RANGES)
    _check_choice(settings, "lr_schedule", LR_SCHEDULES)
    _check_adapters(settings)
    _check_names(settings)
    check_addresses(settings["reward_model"])  # before a message could show what is in one
    check_addresses(settings["refresh_labels"], "refresh_labels")
    _check_shift_and_refresh(settings)
    _check_launcher(settings)
    parse_columns(settings["columns"])
    _check_hacking_alarm(settings)
    names = ("reward_model", "reward_weights", "combine", "uncertainty_coef")
    check_combination(*map(settings.__getitem__, names))
    _check_critic(settings)


def _check_choice(settings: Mapping[str, Any], name: str, values: tuple[str | None, ...]) -> None:
    if settings[name] not in values:
        allowed = ", ".join(repr(value) for value in values if value is not None)
        raise ValueError(f"{name}={settings[name]!r} must be one of {allowed}.")


def _check_adapters(settings: Mapping[str, Any]) -> None:
    modules = settings["lora_target_modules"]
    for name in ("lora_alpha", "lora_target_modules"):
        if settings["lora_rank"] is None and settings[name] is not None:
            raise ValueError(f"{name} is for adapters: give lora_rank with it, or leave it out.")
    if modules is not None and not all(name.strip() for name in modules or ("",)):
        raise ValueError(
            f"lora_target_modules={modules!r} must be names of linear layers, or be left out."
        )


def _check_names(settings: Mapping[str, Any]) -> None:
    for name in _NAMES:
        values = settings[name]
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, str) and not value.strip():
                raise ValueError(
                    f"{name}={value!r} is empty: give a name or a path, or leave it out."
                )


def _check_shift_and_refresh(settings: Mapping[str, Any]) -> None:
    if settings["shift_pairs"] is not None and not settings["shift_every"]:
        raise ValueError(
            f"shift_pairs={settings['shift_pairs']!r} is what shift_every compares with, and that "
            "is 0: give --shift-every as well, or leave out --shift-pairs."
        )
    for name in ("refresh_labels", "refresh_old_pairs"):
        if settings[name] is not None and not settings["refresh_every"]:
            raise ValueError(
                f"{name}={settings[name]!r} is for refresh_every, and that is 0: give "
                f"--refresh-every as well, or leave out --{name.replace('_', '-')}."
            )


def _check_launcher(settings: Mapping[str, Any]) -> None:
    launcher, workers, sweep = (settings[name] for name in ("launcher", "workers", "sweep"))
    parse_sweep(sweep, settings)
    _check_choice(settings, "launcher", LAUNCHERS)
    if launcher is not None and settings["seeds"] is None and not sweep:
        raise ValueError(
            f"launcher={launcher!r} trains several runs: give --seeds or --sweep as well."
        )
    if workers is not None and launcher is None and not sweep:
        raise ValueError(
            f"workers={workers!r} is for --launcher: give --launcher local with it, or leave it "
            "out."
        )


def _check_hacking_alarm(settings: Mapping[str, Any]) -> None:
    _check_choice(settings, "on_hacking_alarm", HACKING_ACTIONS)
    if settings["on_hacking_alarm"] == "raise-kl" and settings["kl_coef"] == 0:
        raise ValueError(
            "on_hacking_alarm='raise-kl' multiplies β, and kl_coef is 0: give a positive kl_coef, "
            "or another on_hacking_alarm."
        )


def _check_critic(settings: Mapping[str, Any]) -> None:
    critic, reward_model = settings["critic"], settings["reward_model"]
    if critic == "reward_model" and isinstance(reward_model, tuple):
        raise ValueError(
            f"critic='reward_model', but reward_model names {len(reward_model)} rewards: give the "
            "folder of the one that the critic is to start from as --critic."
        )
    if critic == "reward_model" and names_server(reward_model):
        raise ValueError(
            f"critic='reward_model', but reward_model={reward_model!r} is on a server: give the "
            "folder or hub id of a reward model that the critic is to start from as --critic."
        )
    if settings["value_head"] == "shared" and critic != "actor":
        raise ValueError(
            f"critic={critic!r} is for a critic with a separate trunk, but value_head is 'shared': "
            "pass --value-head separate, or leave --critic out."
        )
