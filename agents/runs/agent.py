"""The agent of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.utils import ConstantSchedule

from agents.config import TrainConfig
from agents.policy import LMActorCriticPolicy
from agents.ppo import Decay, TokenPPO
from agents.vec_env import TokenVecEnv

__all__ = ["build_agent", "choose_threads"]

SMALL_MODEL = 2_000_000
"""Number of parameters below which a second CPU thread does not help."""


def choose_threads(config: TrainConfig, model: TokenPPO) -> None:
    """Let torch compute with as many threads as are asked for; else a small model with one."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    elif sum(p.numel() for p in model.policy.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)


def build_agent(
    config: TrainConfig,
    env: TokenVecEnv,
    policy_kwargs: Mapping[str, Any] | None = None,
    **agent: Any,
) -> TokenPPO:
    """The agent of a configuration.

    Args:
        config: the settings.
        env: its environment.
        policy_kwargs: of the policy, over those of the configuration, which has fewer.
        **agent: of `TokenPPO`, likewise, such as a schedule of the learning rate.

    Raises:
        ValueError: a setting can't be used.
    """
    settings, arguments = env.inner.settings, config.agent()
    if config.critic == "reward_model" and isinstance(settings.reward_model, list):
        raise ValueError(
            f"critic='reward_model', but reward_model={config.reward_model!r} holds an ensemble of "
            f"{len(settings.reward_model)}: give the folder of the member that the critic is to "
            f"start from as --critic, such as {settings.reward_model[0]!r}."
        )
    if config.lr_schedule == "constant":  # a number alone decays linearly
        arguments["learning_rate"] = ConstantSchedule(config.learning_rate)
    elif config.lr_schedule != "linear":
        arguments["learning_rate"] = Decay(config.learning_rate, config.lr_schedule)
    model = TokenPPO(
        LMActorCriticPolicy,
        env,
        **{**arguments, **agent},
        policy_kwargs={
            "actor": config.actor or settings.reference,
            "value_head": config.value_head,
            "critic": settings.reward_model if config.critic == "reward_model" else config.critic,
            "temperature": config.temperature,
            "dtype": config.dtype,
            "optimizer_class": config.optimizer,
            **({"gradient_checkpointing": True} if config.gradient_checkpointing else {}),
            **({"lora": config.lora()} if config.lora_rank is not None else {}),
            **(policy_kwargs or {}),
        },
        seed=config.seed,
        device=settings.device,
    )
    # The start of training asks for this too, but by then a folder has been written.
    model.rollout_buffer.check_environment(env, settings)  # type: ignore[attr-defined]
    return model
