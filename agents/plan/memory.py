"""What one GPU holds, part by part and stage by stage.

    resident    = weights of actor, critic, reference, reward model + optimiser state + caches
    update      = resident + gradients + activations + logits
    other stage = resident + gradients + what the stage adds

The peak is the largest stage. `docs/scaling.md` has the formulas, and how far they are off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from agents.plan.config import PlanConfig
from agents.plan.models import bytes_of, language_model, model_config, reward_model, weights
from agents.plan.traces import Decoding, Forward, Sampling, UpdateMemory, update_memory
from tokenenv.models import (
    GPU_FACTOR,
    MICRO_BATCH_TOKENS,
    LoraSettings,
    add_lora,
    check_context,
    enable_checkpointing,
    resolve_dtype,
    rows_at_once,
)

__all__ = ["GIB", "Memory", "Planned", "Stage"]

GIB = 2**30

_OPTIMISER_TENSORS = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
"""Numbers that an optimiser keeps for each weight."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage of a training adds to what is always there, in bytes by part.

    Attributes:
        name: of the stage.
        parts: what it adds; all that there is, where it comes before the training.
        is_before: whether it does.
    """

    name: str
    parts: dict[str, int]
    is_before: bool = False

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one GPU.

    Attributes:
        resident: part → bytes that are there in every stage.
        stages: what each adds.
        sequences: of a micro-batch.
    """

    resident: dict[str, int]
    stages: list[Stage] = field(default_factory=list)
    sequences: int = 1

    @property
    def worst(self) -> Stage:
        """The stage with the peak."""
        return max(self.stages, key=self.together)

    def together(self, stage: Stage) -> int:
        """Bytes of a stage, with all that is resident."""
        return sum(({} if stage.is_before else self.resident).values()) + stage.total

    @property
    def peak(self) -> int:
        """Bytes of the largest stage, with all that is resident."""
        return self.together(self.worst)

    @property
    def parts(self) -> dict[str, int]:
        """Part → bytes at the peak."""
        return {**({} if self.worst.is_before else self.resident), **self.worst.parts}

    @property
    def bound(self) -> str:
        """The largest part at the peak."""
        return max(self.parts, key=lambda name: self.parts[name])


class Planned:
    """A training that is planned: its models without weights, and the memory of its stages.

    Args:
        config: the settings.
        traces: what was traced already, of plans for the same model; it is added to.

    Attributes:
        actor: on the meta device, as it is trained.
        critic: its separate trunk; None where it is shared.
        reward: the reward model; None for other rewards.

    Raises:
        ValueError: a config can't be used, the model has too few positions, or an option is not for
            its architecture.
    """

    def __init__(self, config: PlanConfig, traces: dict[Any, Any] | None = None) -> None:
        self.config = config
        self._traces = {} if traces is None else traces
        content = model_config(config.model, "model")
        said = content.get("dtype", content.get("torch_dtype"))
        self._dtype_of_the_file = said if said in ("bfloat16", "float16") else "float32"
        self.actor = self._trained(content)
        check_context(self.actor, config.tokens, "model")
        self.reference = language_model(content, config.dtype, "model", config.model)
        self.critic = self._trained(content) if config.value_head == "separate" else None
        if self.critic is not None and not getattr(self.critic.config, "tie_word_embeddings", 0):
            self.critic.set_output_embeddings(nn.Identity())
        self.reward = self._reward(content)

    def _trained(self, content: dict[str, Any]) -> Any:
        config = self.config
        model = language_model(content, config.dtype, "model", config.model)
        if config.lora_rank is not None:
            names = config.lora_target_modules
            with torch.device("meta"):
                add_lora(model, LoraSettings(config.lora_rank, None, names), "model")
        if config.gradient_checkpointing:
            enable_checkpointing(model)
        return model

    def _reward(self, content: dict[str, Any]) -> Any:
        name = self.config.reward_model
        if name == "none":
            return None
        if name != "same":
            content = model_config(name, "reward_model")
        named = self.config.model if name == "same" else name
        return reward_model(content, resolve_dtype(self.config.dtype), named)

    @property
    def parameters(self) -> int:
        """Of the model, without adapters."""
        return sum(w.numel() for w in weights(self.reference))

    @cached_property
    def _trainable(self) -> int:
        models = [self.actor, *([] if self.critic is None else [self.critic])]
        return sum(bytes_of(weights(model, trained=True)) for model in models)

    @cached_property
    def _layers(self) -> list[nn.Module]:
        """The actor's layers: the longest list of modules in it."""
        lists = [m for m in self.actor.modules() if isinstance(m, nn.ModuleList) and len(m)]
        return list(sorted(lists, key=len)[-1]) if lists else []

    @cached_property
    def _layer(self) -> int:
        """Bytes of the largest layer of the actor: what `fully_shard` gathers at a time."""
        return max(bytes_of(weights(layer)) for layer in self._layers or [self.actor])

    @cached_property
    def _outside(self) -> int:
        """Bytes of the actor outside of its layers: embeddings, which stay gathered."""
        inside = {id(w): w.nbytes for layer in self._layers for w in weights(layer)}
        return bytes_of(weights(self.actor)) - sum(inside.values())

    @property
    def is_sharded(self) -> bool:
        """Whether what is trained is divided among GPUs."""
        return self.config.sharding == "fully_shard" and self.config.gpus > 1

    @cached_property
    def resident(self) -> dict[str, int]:
        """Part → bytes that are there from the first update on."""
        config, shares = self.config, self.config.gpus if self.is_sharded else 1
        has_adapters = config.lora_rank is not None
        parts = {"actor": bytes_of(weights(self.actor, has_adapters or None))}
        if self.critic is not None:
            parts["critic"] = bytes_of(weights(self.critic, has_adapters or None))
        sharded = sum(parts.values()) // shares  # beside the whole ones, which sample
        if has_adapters:
            parts["adapters"] = parts.pop("actor") + parts.pop("critic", 0)
        parts["reference"] = bytes_of(weights(self.reference))
        if self.reward is not None:
            parts["reward model"] = bytes_of(weights(self.reward))
        numbers = _OPTIMISER_TENSORS[config.optimizer]
        parts["optimiser state"] = numbers * self._trainable // shares
        if self.is_sharded:
            parts["sharded weights"] = sharded
            parts["gathered layers"] = 2 * self._layer + self._outside
        elif config.gpus > 1:
            parts["gradient buckets"] = self._trainable
        if config.device == "cpu":  # for a GPU it is on the host
            parts["last good weights"] = self._trainable
        times = 2 if config.scoring == "step" else 1
        parts["cache of keys and values"] = times * self._sampling.cache
        return parts

    def _traced(self, key: tuple[Any, ...], trace: Callable[[], Any]) -> Any:
        if key not in self._traces:
            self._traces[key] = trace()
        return self._traces[key]

    def _decoding(self, slots: int) -> Decoding:
        config = self.config
        sizes = (config.prompt_tokens, config.tokens, config.device)
        key = ("sampling", config.dtype, *sizes)
        return self._traced(key, lambda: Sampling(self.reference, *sizes)).decoding(slots)

    def _forward(self, what: str, model: Any, sequences: int, length: int) -> int:
        key = (what, self.config.dtype, length)
        return self._traced(key, lambda: Forward(model, length)).bytes(sequences)

    @cached_property
    def _sampling(self) -> Decoding:
        return self._decoding(self.config.envs_of_a_gpu)

    @property
    def gradients(self) -> int:
        """Bytes of all gradients, which stay until the next minibatch."""
        return self._trainable // (self.config.gpus if self.is_sharded else 1)

    @cached_property
    def other_stages(self) -> list[Stage]:
        """All stages but the update."""
        config, gradients = self.config, {"gradients": self.gradients}
        stages = [Stage("rollout", {**gradients, "sampling": self._sampling.work})]
        sequences = min(config.sequences_of_a_rollout, max(1, MICRO_BATCH_TOKENS // config.tokens))
        work = self._forward("reference", self.reference, sequences, self._length)
        work += self._scored_logits(sequences * config.response_tokens)
        if self.reward is not None:
            work = max(work, self._forward("reward", self.reward, sequences, config.tokens + 1))
        stages.append(Stage("scoring", {**gradients, "forward passes": work}))
        if config.evaluation_slots:
            evaluated = self._decoding(config.evaluation_slots)
            of_it = {"cache of the evaluation": evaluated.cache, "sampling": evaluated.work}
            stages.append(Stage("evaluation", {**gradients, **of_it}))
        return [*stages, *self._loading]

    @property
    def _loading(self) -> list[Stage]:
        """Where weights are converted: what is loaded, and a file of the largest model's.

        A file of the same dtype is mapped and takes no memory of its own; models for a GPU are
        loaded on the host.
        """
        if self.config.device != "cpu" or self.config.dtype == self._dtype_of_the_file:
            return []
        names = ("reference", "reward model")
        parts = {name: self.resident[name] for name in names if name in self.resident}
        size = resolve_dtype(self._dtype_of_the_file).itemsize
        return [Stage("loading", {**parts, "file": size * self.parameters}, is_before=True)]

    def _scored_logits(self, tokens: int) -> int:
        """Logits of so many tokens, and what their logsumexp makes of them, in chunks."""
        vocabulary = self.actor.get_output_embeddings().weight.shape[0]
        factor = GPU_FACTOR if self.config.device == "cuda" else 1
        rows = rows_at_once(torch.device("cpu"), vocabulary) * factor
        return 2 * 4 * vocabulary * min(rows, tokens)

    @property
    def _length(self) -> int:
        """Tokens of a sequence in a forward pass of the update: the last one is not read."""
        return max(1, self.config.tokens - 1)

    @property
    def most_sequences(self) -> int:
        """Sequences of a micro-batch that is a whole minibatch."""
        return self.config.sequences_of_a_minibatch

    def sequences_of(self, micro_batch_tokens: int) -> int:
        """Sequences of a micro-batch of that many tokens; one at least."""
        return min(self.most_sequences, max(1, micro_batch_tokens // self._length))

    def micro_batch_tokens(self, sequences: int) -> int | None:
        """The setting for that many sequences; None: whole minibatches."""
        return None if sequences >= self.most_sequences else sequences * self._length

    def memory(self, sequences: int) -> Memory:
        """The memory with micro-batches of that many sequences."""
        update = self._update(sequences)
        parts = {"gradients": self._sharded_gradients(update.gradients)}
        parts |= {"activations": update.activations, "logits": update.logits}
        stages = [Stage("update", parts), *self.other_stages]
        return Memory(self.resident, stages, sequences)

    def _sharded_gradients(self, whole: int) -> int:
        if not self.is_sharded:
            return whole
        return whole // self.config.gpus + 2 * self._layer

    def _update(self, sequences: int) -> UpdateMemory:
        config, accumulates = self.config, sequences < self.most_sequences
        sizes = (sequences, self._length, config.states_of_a_sequence)
        of_config = (config.device, config.precision, accumulates)
        models = [self.actor, *([] if self.critic is None else [self.critic])]
        kind = (config.lora_rank, config.lora_target_modules, config.gradient_checkpointing)
        key = ("update", config.dtype, config.value_head, *kind, *sizes, *of_config)
        return self._traced(key, lambda: update_memory(models, *sizes, *of_config))
