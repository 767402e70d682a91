"""What a reward model computes its reward from: the hidden state that its head reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenenv.models import MICRO_BATCH_TOKENS, token_batches
from tokenenv.rewards.reward_model import RewardModel, sequence_rewards

__all__ = ["pooled_features"]


@torch.no_grad()
def pooled_features(
    reward_model: RewardModel, sequences: Sequence[np.ndarray], max_tokens: int = MICRO_BATCH_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """The input of the last layer of a reward model, and its raw rewards.

    Of a decoder that is the hidden state at the last token; of an encoder, whatever its head has
    pooled.

    Args:
        reward_model: the reward model.
        sequences: B arrays of token ids, as it reads them.
        max_tokens: of a forward pass.

    Returns:
        (B, h) and (B,) float64.

    Raises:
        ValueError: its last layer is no linear one, so that there is no such input.
    """
    model: Any = reward_model.model
    head, seen = _head(reward_model), []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = np.zeros((len(sequences), head.in_features))
    rewards = np.zeros(len(sequences))
    try:
        for batch in token_batches(np.array([len(s) for s in sequences]), max_tokens):
            seen.clear()
            batch_rewards = sequence_rewards(model, [sequences[i] for i in batch])
            if not seen or seen[-1].shape != (len(batch), head.in_features):
                raise _no_features(reward_model)
            features[batch] = seen[-1].double().cpu().numpy()
            rewards[batch] = batch_rewards.double().cpu().numpy()
    finally:
        hook.remove()
    return features, rewards


def _head(reward_model: RewardModel) -> nn.Linear:
    """The linear layer that gives the reward."""
    score = getattr(reward_model.model, "score", None)
    if isinstance(score, nn.Linear):
        return score
    linear = [m for m in reward_model.model.modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1].out_features != 1:
        raise _no_features(reward_model)
    return linear[-1]


def _no_features(reward_model: RewardModel) -> ValueError:
    return ValueError(
        f"the reward model {reward_model.name!r} does not end in a linear layer that makes one "
        "number of one vector per text, and so has no features that its reward is computed from."
    )
