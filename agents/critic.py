"""A critic with a trunk of its own: started from the actor, a causal LM, or the reward model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from tokenenv.language_model import (
    build_language_model,
    check_source,
    load_trainable,
    loading_errors,
    quiet_loading,
    resolve_dtype,
)
from tokenenv.reward_model import load_reward_model

__all__ = ["SeparateCritic", "build_critic"]


class SeparateCritic(nn.Module):
    """A trunk and a linear head.

    Attributes:
        model: a transformers model with a trunk.
        head: hidden state → value.
    """

    def __init__(self, model: Any, head: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self.head = head


def build_critic(
    source: str, actor: Any, config: dict[str, Any] | None, dtype: str
) -> SeparateCritic:
    """The critic that `source` names.

    Args:
        source: `"actor"`, or the folder or hub id of a reward model or of a causal LM. From a reward
            model the head comes as well, normalised: V starts as the score of the text so far.
        actor: the actor, copied for `"actor"`.
        config: build the trunk from this instead, to be filled by a state dict.
        dtype: of the weights.

    Raises:
        ValueError: `source` can't be used, or reads a smaller vocabulary than the actor.
    """
    trained_head = None
    if config is not None:
        model = build_language_model(config, dtype)
    elif source == "actor":
        model = copy.deepcopy(actor)
    elif _is_classifier(source):
        model, trained_head = _from_reward_model(source, actor, dtype)
    else:
        model = load_trainable(source, dtype=dtype).model
    _drop_output_layer(model)
    model.requires_grad_(True)
    rows = model.get_input_embeddings().weight.shape[0]
    needed = actor.get_output_embeddings().weight.shape[0]
    if rows < needed:
        raise ValueError(
            f"the critic {source!r} reads {rows} token ids, the actor has {needed}: they must share a "
            "vocabulary."
        )
    head = nn.Linear(_hidden_size(model), 1, dtype=resolve_dtype(dtype))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if trained_head is not None:
        head.load_state_dict(trained_head)
    return SeparateCritic(model, head)


def _is_classifier(source: str) -> bool:
    check_source(source, "critic")
    with quiet_loading(), loading_errors(source, "critic"):
        config = AutoConfig.from_pretrained(source)
    return any("SequenceClassification" in a for a in (config.architectures or []))


def _from_reward_model(source: str, actor: Any, dtype: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The reward model's trunk inside a causal LM's shell, and its head so that V = normalised reward."""
    reward_model = load_reward_model(source, "cpu", dtype)
    shell = build_language_model(_shell_config(reward_model.model.config), dtype)
    shell.base_model.load_state_dict(reward_model.model.base_model.state_dict())
    weight = reward_model.model.score.weight.detach().clone() / reward_model.std
    bias = torch.full((1,), -reward_model.mean / reward_model.std, dtype=weight.dtype)
    return shell, {"weight": weight, "bias": bias}


def _shell_config(config: Any) -> dict[str, Any]:
    found = config.to_dict()
    for key in ("dtype", "architectures", "reward_mean", "reward_std", "id2label", "label2id"):
        found.pop(key, None)
    return found


def _drop_output_layer(model: Any) -> None:
    """A critic has no use for logits: leave one weight set to save, train and clip."""
    if not getattr(model.config, "tie_word_embeddings", False):
        model.set_output_embeddings(nn.Identity())


def _hidden_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])
