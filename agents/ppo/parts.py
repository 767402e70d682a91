"""Which policy and which rollout buffer the settings of `TokenPPO` need."""

from __future__ import annotations

from typing import Any

from agents.policy import LMActorCriticPolicy
from agents.rollout import EpisodeRolloutBuffer

__all__ = ["check_parts"]


def check_parts(model: Any) -> None:
    """Raise ValueError where the policy or the buffer of a `TokenPPO` can't do what is asked for.

    Args:
        model: before its policy and its buffer are made.
    """
    policy, buffer = model.policy_class, model.rollout_buffer_class
    if model.critic_warmup and not issubclass(policy, LMActorCriticPolicy):
        raise ValueError(
            f"critic_warmup={model.critic_warmup} freezes the actor's weights, and which they "
            f"are is unknown for {policy.__name__}: use LMActorCriticPolicy, or critic_warmup=0."
        )
    if model.normalize_returns and not issubclass(policy, LMActorCriticPolicy):
        raise ValueError(
            "normalize_returns=True stores the deviation of returns in the critic's head, and "
            f"{policy.__name__} has no place for it: use LMActorCriticPolicy, or leave "
            "normalize_returns out."
        )
    if issubclass(buffer, EpisodeRolloutBuffer):
        return
    if model.loss_aggregation != "token":
        raise ValueError(
            f"loss_aggregation={model.loss_aggregation!r} is about whole sequences, and "
            f"{buffer.__name__} has single time steps: use "
            "rollout_buffer_class=EpisodeRolloutBuffer, or loss_aggregation='token'."
        )
    if model.critic_warmup_lambda is not None:
        raise ValueError(
            f"critic_warmup_lambda={model.critic_warmup_lambda!r} makes targets of their own for "
            f"the critic, and {buffer.__name__} has those of gae_lambda alone: use "
            "rollout_buffer_class=EpisodeRolloutBuffer, or leave critic_warmup_lambda out."
        )
