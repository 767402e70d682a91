"""PPO with a reward model, and what the gold reward says of the policy."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import TrainConfig
from agents.evaluation import HeldOut, respond
from agents.rollout import RLHFCallback
from agents.runs.agent import build_agent
from agents.vec_env import make_vec_env
from agents.zoo import settings_at
from tokenenv.tasks import load_task

__all__ = ["POLICY_NUMBERS", "policy_settings", "train_policy"]

POLICY_NUMBERS = ("gold", "gold_objective", "score", "kl", "objective")
"""What is measured of a policy, per response: the gold reward; J of the gold reward, in deviations
of the reference's gold rewards from their mean, less β·KL; the score R; the KL in nats; and J."""


def policy_settings(place: str, tokens: int, device: str) -> TrainConfig:
    """The settings of PPO.

    Args:
        place: `zoo:NAME`, or a file as `tokenrlhf train --config` reads it.
        tokens: response tokens to train on.
        device: torch's.

    Raises:
        ValueError: they can't be used, or the task has no gold reward.
    """
    try:
        config = settings_at(place)
    except ValueError as error:
        raise ValueError(
            f"ppo_{error}" if str(error).startswith("config=") else f"ppo_config: {error}"
        ) from None
    if load_task(config.task).gold_reward is None:
        raise ValueError(
            f"ppo_config={place!r}: the task {config.task!r} knows no gold reward, which is what "
            "policies are measured by here: leave ppo_tokens out, or give settings of a task that "
            "does, such as reviews."
        )
    return dataclasses.replace(config, total_tokens=tokens, device=device, out=None, seeds=None)


def train_policy(
    folder: Path, config: TrainConfig, prompts: int, responses: int, seed: int
) -> dict[str, Any]:
    """Train `TokenPPO` with a reward model, and measure it on held-out prompts.

    Args:
        folder: of the reward model.
        config: of `policy_settings`.
        prompts: held-out prompts, at most.
        responses: to each of them.
        seed: of the training; what is measured by has the same seed always.

    Returns:
        The `POLICY_NUMBERS`, the same of the reference under `untrained`, and `tokens`.
    """
    config = dataclasses.replace(config, reward_model=str(folder), reward_weights=None, seed=seed)
    held_out = HeldOut.from_env_kwargs(config.environment(), prompts)
    with contextlib.closing(
        make_vec_env(n_envs=config.n_envs, seed=seed, **config.environment())
    ) as env:
        model = build_agent(config, env)
        model.learn(config.total_tokens, callback=RLHFCallback())
        actor: Any = model.policy
        trained = _means(actor.actor, held_out, responses)
    untrained = _means(held_out.scorer.reference.language_model.model, held_out, responses)
    kl_coef = held_out.settings.kl_coef
    for means in (trained, untrained):
        means["objective"] = means["score"] - kl_coef * means["kl"]
        gain = means["gold"] - untrained["gold"]
        deviation = max(untrained["gold_deviation"], 1e-12)
        means["gold_objective"] = gain / deviation - kl_coef * means["kl"]
    names = POLICY_NUMBERS
    return {
        **{name: trained[name] for name in names},
        "untrained": {name: untrained[name] for name in names},
        "tokens": model.num_timesteps,
    }


def _means(actor: Any, held_out: HeldOut, responses: int) -> dict[str, float]:
    """Means over one sample of an actor's responses."""
    reports = respond(
        actor,
        held_out.scorer,
        [text for text in held_out.texts for _ in range(responses)],
        [prompt for prompt in held_out.prompts for _ in range(responses)],
        held_out.max_new_tokens,
        seed=0,
        origins=[origin for origin in held_out.origins for _ in range(responses)],
    )
    gold = np.array([report.gold_reward for report in reports], dtype=np.float64)
    return {
        "gold": float(gold.mean()),
        "gold_deviation": float(gold.std()),
        "score": float(np.mean([report.score for report in reports])),
        "kl": float(np.mean([report.kl for report in reports])),
    }
