"""A `TokenPPO` among those of other ranks: what it needs, its generators, its count of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed

from agents.policy import LMActorCriticPolicy, fused_where_possible
from agents.rollout import EpisodeRolloutBuffer
from agents.scaling import Ranks
from agents.scaling.trained import InDDP, Sharded

__all__ = ["StepsOfRanks", "join", "seed_rank"]


def join(model: Any, ranks: Ranks, shard: bool = False) -> None:
    """Let a model train together with those of the other ranks; see `CheckpointedPPO.join`."""
    _check(model, shard)
    if ranks.count == 1:
        if shard:
            raise ValueError(
                "shard_actor shards over ranks, and there is one: start several processes "
                "(torchrun), or leave it out."
            )
        return
    policy = model.policy
    model.ranks = ranks
    if shard:
        for weight in [*policy.parameters(), *policy.buffers()]:
            _take_of_first(weight, ranks)
        model.trained_by_ranks = Sharded(policy, lambda weights: _optimizer(policy, weights), ranks)
    else:
        model.trained_by_ranks = InDDP(policy, policy.optimizer, ranks)
    policy.drop_caches()
    if ranks.rank:
        seed_rank(ranks, model.seed)


@torch.no_grad()
def _take_of_first(tensor: torch.Tensor, ranks: Ranks) -> None:
    import torch.distributed as dist

    with ranks.talking():
        dist.broadcast(tensor, src=0)


def _optimizer(policy: Any, weights: list[Any]) -> torch.optim.Optimizer:
    """The policy's optimiser, over other weights."""
    kind = policy.optimizer_class
    rate = policy.optimizer.param_groups[0]["lr"]
    return kind(weights, lr=rate, **fused_where_possible(kind, policy.optimizer_kwargs))


def seed_rank(ranks: Ranks, *numbers: int | None) -> None:
    """Seed this rank's global generators, in another way than any other rank's.

    Args:
        ranks: this one among others.
        *numbers: what else they depend on; where the first is None, on nothing known.
    """
    known = [number for number in numbers if number is not None]
    if numbers and numbers[0] is None:
        known = [int(np.random.SeedSequence().generate_state(1)[0])]
    sequence = np.random.SeedSequence([*known, ranks.rank])
    set_random_seed(int(sequence.generate_state(1)[0]))


def _check(model: Any, shard: bool) -> None:
    policy = model.policy
    needed = ((policy, LMActorCriticPolicy), (model.rollout_buffer, EpisodeRolloutBuffer))
    for part, kind in needed:
        if not isinstance(part, kind):
            raise ValueError(
                f"many ranks train {kind.__name__}, and this is {type(part).__name__}: use "
                f"{kind.__name__}, or one process."
            )
    buffer: EpisodeRolloutBuffer = model.rollout_buffer
    for name, is_on in (
        ("whiten_rewards=True", buffer.whiten_rewards),
        ("advantage_estimator='reinforce'", buffer.advantage_estimator == "reinforce"),
    ):
        if is_on:
            raise ValueError(
                f"{name} takes its statistics from one rank's rollout, and several ranks would "
                "each have others: leave it out, or train in one process."
            )
    if not shard:
        return
    if policy.lora is not None:
        raise ValueError(
            "shard_actor shards all weights, and with lora few of them are trained: leave "
            "shard_actor out; frozen weights have neither gradients nor a state."
        )
    if model.critic_warmup:
        raise ValueError(
            f"critic_warmup={model.critic_warmup} holds the actor's weights still for a while, "
            "which fully_shard can't: leave out shard_actor or critic_warmup."
        )


class StepsOfRanks(BaseCallback):
    """The first of the callbacks: counts the steps that the other ranks take at the same time.

    Args:
        ranks: with as many environments each.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def _on_step(self) -> bool:
        self.model.num_timesteps += (self.ranks.count - 1) * self.training_env.num_envs
        return True
