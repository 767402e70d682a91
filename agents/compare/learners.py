"""The agents of a comparison, built from their settings in the zoo (`agents/zoo/*.yaml`)."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from agents.compare.environments import CLASSIC, RAW_TOKENS, is_text, make_training_env
from agents.config import TrainConfig
from agents.ppo import TokenPPO
from agents.runs.agent import build_agent
from agents.vec_env import TokenVecEnv
from agents.zoo import environment_settings, train_settings
from agents.zoo.learners import LINEAR
from tokenenv.settings import EnvSettings

__all__ = ["build_learner", "is_judged_by_objective", "learner_settings", "why_not"]

_NO_MATTER = (
    *("config", "out", "overwrite", "seed", "seeds", "total_tokens", "device", "num_threads"),
    *("eval_prompts", "eval_responses", "eval_every", "explain_every", "explain_prompts"),
    *("checkpoint_every", "keep_checkpoints", "resume", "trust_code"),
    "max_skipped_updates",
    *("tracker", "tracker_project", "launcher", "workers", "sweep"),
    *("on_hacking_alarm", "hacking_kl_factor", "hacking_kl_raises", "shift_every", "shift_pairs"),
    *("refresh_every", "refresh_pairs", "refresh_labels", "refresh_label_noise"),
    *("refresh_old_pairs", "refresh_epochs", "refresh_learning_rate"),
    *("shard_actor", "check_ranks_every"),
)
"""Settings of `tokenrlhf train` that do not change what an agent learns from a step."""

_NO_ARGUMENTS = ("n_envs", "normalize", "frame_stack", "net_arch", "env_id", "env_kwargs")
"""Settings that are no arguments of the algorithm."""

_HOW_IT_IS_PLAYED = ("scoring", "group_size", "kl_shaping", "device", "dtype")
"""Arguments of the environment that the agent's settings decide: rewards and prompts stay."""

_CLASSES: dict[str, Any] = {"ppo": PPO, "a2c": A2C, "dqn": DQN, "token-ppo": TokenPPO}

_OF_PPO = (
    *("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
    *("normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm"),
)


def is_judged_by_objective(agent: str, kind: str) -> bool:
    """Whether an agent knows π and pays the whole KL, so that it is judged by J."""
    return agent == "token-ppo" and kind == RAW_TOKENS


def why_not(agent: str, kind: str) -> str | None:
    """Why an agent is left out in environments of a kind; None where it is not."""
    if agent == "token-ppo" and kind not in (CLASSIC, RAW_TOKENS):
        return "its language model reads token ids, and this environment shows and takes others"
    return None


def learner_settings(
    agent: str, env_id: str, kind: str, folder: Path | None = None
) -> dict[str, Any]:
    """The settings of an agent as they go into its record; JSON only.

    Args:
        agent: one of `config.AGENTS`.
        env_id: of the environment that it is compared in.
        kind: of that.
        folder: of files of settings that go before those of the zoo.

    Raises:
        ValueError: a file can't be used, or is for another environment or task.
    """
    found = environment_settings(env_id, folder)
    settings, place = found.learner(agent), f"{str(found.path)!r}, {agent}"
    if is_judged_by_objective(agent, kind) != ("train" in settings):
        raise ValueError(
            f"{place}: token-ppo has the settings of a file for `tokenrlhf train` on raw token ids "
            "(`train: exact`), and there alone: write them so."
        )
    if "train" in settings:
        config = train_settings(settings["train"])
        _require_environment(config, env_id, f"{place}, train: {settings['train']}")
        if config.on_hacking_alarm in ("stop", "raise-kl"):
            raise ValueError(
                f"{place}, train: {settings['train']} sets on_hacking_alarm="
                f"{config.on_hacking_alarm!r}: the agents of a comparison learn without a monitor. "
                "Leave it out, or choose 'ignore'."
            )
        if config.refresh_every:
            raise ValueError(
                f"{place}, train: {settings['train']} sets refresh_every={config.refresh_every}: "
                "the agents of a comparison have one reward, which stays. Leave it out."
            )
        matters = {n: v for n, v in config.as_json().items() if n not in _NO_MATTER}
        return {"train": settings["train"], **matters}
    if "env_id" in settings or "env_kwargs" in settings:
        _check_view(settings, env_id, place)
    return settings


def _task_of(env_id: str, env_kwargs: dict[str, Any]) -> str:
    kwargs = {**gym.spec(env_id.rpartition(":")[2]).kwargs, **env_kwargs}
    (default,) = (f.default for f in dataclasses.fields(EnvSettings) if f.name == "task")
    return str(kwargs.get("task", default))


def _require_environment(config: TrainConfig, env_id: str, place: str) -> None:
    """Refuse settings of `tokenrlhf train` for another task, or that change the problem."""
    _require_task(config.task, env_id, place)
    usual, has = TrainConfig(task=config.task).environment(), config.environment()
    for name in set(usual) - set(_HOW_IT_IS_PLAYED):
        if has[name] != usual[name]:
            raise ValueError(
                f"{place} sets {name}={has[name]!r}, which changes the environment: the agents of "
                "a comparison have the same. Leave it out."
            )


def _require_task(task: str, env_id: str, place: str) -> None:
    if task != _task_of(env_id, {}):
        raise ValueError(
            f"{place} is for the task {task!r}, and {env_id} is {_task_of(env_id, {})!r}: name "
            "settings that were made for it."
        )


def _check_view(settings: dict[str, Any], env_id: str, place: str) -> None:
    """Refuse another id for the agent that is not the same problem, seen otherwise."""
    view = settings.get("env_id", env_id)
    if not (is_text(view) and is_text(env_id)):
        raise ValueError(
            f"{place}: env_id={view!r} can't stand for {env_id!r}: only ids of this package show "
            "one problem in several ways."
        )
    _require_task(
        _task_of(view, settings.get("env_kwargs", {})), env_id, f"{place}, env_id: {view}"
    )


def build_learner(
    agent: str, env_id: str, kind: str, seed: int, settings: dict[str, Any] | None = None
) -> BaseAlgorithm:
    """An agent, ready to learn.

    Args:
        agent: one of `config.AGENTS`.
        env_id: of its environment.
        kind: of that.
        seed: of agent and environment.
        settings: of `learner_settings`; those of the zoo unless given.
    """
    settings = learner_settings(agent, env_id, kind) if settings is None else dict(settings)
    if "train" in settings:
        return _language_model_agent(env_id, seed, settings)
    env = _environment(env_id, seed, settings)
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if "net_arch" in settings:
        common["policy_kwargs"] = {"net_arch": settings["net_arch"]}
    numbers = {name: _schedule(v) for name, v in settings.items() if name not in _NO_ARGUMENTS}
    if agent == "token-ppo":
        common |= {
            "rollout_buffer_class": RolloutBuffer,
            "whiten_advantages": False,
            "clip_range_vf": None,
        }
        defaults = {name: inspect.signature(PPO).parameters[name].default for name in _OF_PPO}
        numbers = {**defaults, **numbers}
        numbers["learning_rate"] = _schedule(numbers["learning_rate"], is_constant=True)
    return _CLASSES[agent]("MlpPolicy", env, **numbers, **common)


def _language_model_agent(env_id: str, seed: int, settings: dict[str, Any]) -> BaseAlgorithm:
    """`TokenPPO` as `tokenrlhf train` builds it."""
    content = {name: value for name, value in settings.items() if name != "train"}
    config = TrainConfig.from_json({**TrainConfig().as_json(), **content})
    config = dataclasses.replace(config, seed=seed, device="cpu")
    kwargs = {name: config.environment()[name] for name in _HOW_IT_IS_PLAYED}
    env = make_training_env(env_id, config.n_envs, seed, **kwargs)
    assert isinstance(env, TokenVecEnv)
    return build_agent(config, env)


def _environment(env_id: str, seed: int, settings: dict[str, Any]) -> VecEnv:
    """What the agent learns in, as it sees it."""
    env = make_training_env(
        settings.get("env_id", env_id),
        settings.get("n_envs", 1),
        seed,
        **settings.get("env_kwargs", {}),
    )
    if settings.get("normalize"):
        return VecNormalize(env, gamma=settings.get("gamma", 0.99))
    stack = settings.get("frame_stack", 1)
    return VecFrameStack(env, stack) if stack > 1 else env


def _schedule(value: Any, is_constant: bool = False) -> Any:
    """A setting as SB3 takes it: `lin_0.001` as a schedule.

    Args:
        value: of the file.
        is_constant: make a schedule of a number too: `TokenPPO` lets numbers decay.
    """
    if isinstance(value, str) and value.startswith(LINEAR):
        return LinearSchedule(float(value.removeprefix(LINEAR)), 0.0, 1.0)
    return ConstantSchedule(float(value)) if is_constant and not callable(value) else value
