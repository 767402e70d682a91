"""A critic with a separate trunk: initialised from the actor, a causal LM, or a reward model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from agents.policy.value_head import ValueHead
from tokenenv.models import (
    LoraSettings,
    add_lora,
    build_language_model,
    check_source,
    copy_sharing_frozen,
    load_trainable,
    loading_errors,
    quiet_loading,
    resolve_dtype,
)
from tokenenv.rewards import RewardModel, load_reward_model

__all__ = ["SeparateCritic", "build_critic", "new_value_head"]


class SeparateCritic(nn.Module):
    """A trunk and a linear head.

    Attributes:
        model: a transformers model with a trunk.
        head: hidden state → value.
    """

    def __init__(self, model: Any, head: ValueHead) -> None:
        super().__init__()
        self.model = model
        self.head = head


def new_value_head(hidden_size: int, dtype: str) -> ValueHead:
    """A value head of zeros, in float32 at least: half precision rounds values too coarsely."""
    wide = torch.float64 if resolve_dtype(dtype) == torch.float64 else torch.float32
    head = ValueHead(hidden_size, wide)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def build_critic(
    source: str,
    actor: Any,
    tokenizer: Any,
    config: dict[str, Any] | None,
    dtype: str,
    lora: LoraSettings | None = None,
) -> SeparateCritic:
    """The critic that `source` names.

    Args:
        source: `"actor"`, or the folder or hub id of a reward model or of a causal LM. A reward
            model's head is used as well, normalised: V starts as the score of the text so far.
        actor: the actor, copied for `"actor"`.
        tokenizer: the actor's; None where it is unknown (a saved model, filled by a state dict).
        config: build the trunk from this instead, to be filled by a state dict.
        dtype: of the weights.
        lora: train adapters of the trunk instead of all of it. A critic that starts from the actor
            then shares the actor's frozen weights.

    Raises:
        ValueError: `source` can't be used, reads a smaller vocabulary than the actor, or has
            another tokenizer.
    """
    trained_head = None
    if config is not None:
        model = build_language_model(config, dtype)
    elif source == "actor":
        model = copy_sharing_frozen(actor)
    elif _is_classifier(source):
        reward_model = load_reward_model(source, "cpu", dtype)
        _check_tokenizer(source, tokenizer, reward_model.tokenizer)
        model, trained_head = _from_reward_model(reward_model, dtype)
    else:
        loaded = load_trainable(source, dtype=dtype)
        _check_tokenizer(source, tokenizer, loaded.tokenizer)
        model = loaded.model
    if lora is None:
        model.requires_grad_(True)
    elif source != "actor":  # a copy of the actor has its adapters already, of zeros
        add_lora(model, lora, f"critic={source!r}")
    _drop_output_layer(model)
    rows = model.get_input_embeddings().weight.shape[0]  # of (V', h)
    actor_rows = actor.get_output_embeddings().weight.shape[0]
    if rows < actor_rows:
        raise ValueError(
            f"the critic {source!r} reads {rows} token ids, the actor has {actor_rows}: they must "
            "share a vocabulary. Take a critic with the actor's tokenizer, or critic='actor'."
        )
    head = new_value_head(_hidden_size(model), dtype)
    if trained_head is not None:
        head.load_state_dict(trained_head)
    return SeparateCritic(model, head)


def _is_classifier(source: str) -> bool:
    check_source(source, "critic")
    with quiet_loading(), loading_errors(source, "critic"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return any("SequenceClassification" in a for a in (config.architectures or []))


def _check_tokenizer(source: str, actor_tokenizer: Any, critic_tokenizer: Any) -> None:
    if actor_tokenizer is not None and actor_tokenizer.get_vocab() != critic_tokenizer.get_vocab():
        raise ValueError(
            f"the critic {source!r} and the actor have different tokenizers: the same token ids "
            "would mean different texts. Take a critic with the actor's tokenizer, or "
            "critic='actor'."
        )


def _from_reward_model(
    reward_model: RewardModel, dtype: str
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The trunk in a causal LM's shell, and a head so that V is the normalised reward."""
    shell = build_language_model(_shell_config(reward_model.model.config), dtype)
    shell.base_model.load_state_dict(reward_model.model.base_model.state_dict())
    weight = reward_model.model.score.weight.detach().clone() / reward_model.std  # (1, h)
    bias = torch.full((1,), -reward_model.mean / reward_model.std, dtype=weight.dtype)  # (1,)
    return shell, {"weight": weight, "bias": bias}


def _shell_config(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    for key in ("dtype", "architectures", "reward_mean", "reward_std", "id2label", "label2id"):
        values.pop(key, None)
    return values


def _drop_output_layer(model: Any) -> None:
    """Remove the layer of logits, which a critic does not use: nothing to save, train or clip."""
    if not getattr(model.config, "tie_word_embeddings", False):
        model.set_output_embeddings(nn.Identity())


def _hidden_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])
