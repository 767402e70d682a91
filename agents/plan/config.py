"""The settings of `tokenrlhf plan`; they have the names and defaults of `tokenrlhf train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_RESPONSES_OR_0,
    Range,
    check_ranges,
    count,
)
from tokenenv.tasks import is_bundled, load_task

__all__ = ["MOST_GPUS", "PlanConfig"]

MOST_GPUS = 65_536
"""Limit of `gpus`."""

_RANGES: dict[str, Range] = {
    "gpus": count(high=MOST_GPUS),
    "gpu_memory": Range("the GiB of one GPU, more than 0 and at most 100,000", 0, 1e5, True),
    "reserve": Range("a share of the memory, from 0 to 0.9", 0, 0.9),
    "n_envs": count(high=65_536),
    **dict.fromkeys(("n_steps", "batch_size", "eval_prompts"), COUNT),
    **dict.fromkeys(
        ("max_prompt_tokens", "max_new_tokens"),
        count(high=1_000_000, or_what=", or None (leave it out)", is_optional=True),
    ),
    "micro_batch_tokens": OPTIONAL_COUNT,
    "eval_responses": OPTIONAL_RESPONSES_OR_0,
    "lora_rank": count(high=4096, or_what=", or None (leave it out)", is_optional=True),
}


@dataclass(frozen=True)
class PlanConfig:
    """Say whether a training fits into memory, with which micro-batch, and what bounds it.

    From a model's config alone: no weight is loaded, nothing is downloaded. Exit status 1 where it
    does not fit.
    """

    model: str
    """A transformers config.json, a folder with one, or the name of a bundled task."""
    gpu_memory: float
    """Memory of one GPU in GiB."""
    gpus: int = 1
    """Number of GPUs, one process each."""
    sharding: Literal["replicated", "fully_shard"] = "replicated"
    """What several GPUs hold of the training: all of them the whole (data parallel), or each its
    part of gradients, optimiser state and a copy of the weights beside the whole one that samples
    (torch's fully_shard: --shard-actor)."""
    reward_model: str = "same"
    """'same': the model with a head of one output; 'none': a function, or one that lives elsewhere;
    or the config of a reward model, as for --model."""
    value_head: Literal["shared", "separate"] = "shared"
    """The critic: a linear head on the actor's trunk, or a model with a separate trunk."""
    lora_rank: int | None = None
    """Train low-rank adapters (LoRA) of this rank: actor and reference share the frozen weights."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the linear layers that get adapters, as in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights; bfloat16 is for frozen ones, with --lora-rank."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the update's forward and backward passes."""
    gradient_checkpointing: bool = False
    """Compute the activations of layers again in the backward pass."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """Torch's optimiser."""
    max_prompt_tokens: int | None = None
    """Longest prompt, P. Default: a bundled task's own, else 128."""
    max_new_tokens: int | None = None
    """Longest response, T. Default: likewise."""
    n_envs: int = 64
    """Episodes side by side, over all GPUs."""
    n_steps: int = 32
    """Steps per environment and rollout."""
    batch_size: int = 512
    """Tokens per minibatch, over all GPUs."""
    micro_batch_tokens: int | None = None
    """Tokens per forward and backward of a GPU, prompts included; the largest that fits unless
    given."""
    scoring: Literal["deferred", "step"] = "deferred"
    """Score whole rollouts at once, or at every step: then the reference has a cache as well."""
    eval_prompts: int = 64
    """Held-out prompts of the evaluations."""
    eval_responses: int | None = None
    """Responses for each of them, half the policy's, half the reference's; 0: no evaluation.
    Default: 256."""
    reserve: float = 0.1
    """Share of a GPU's memory that is kept free, for the driver's context, libraries and what
    the allocator can't use."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What the GPUs are: 'cpu' plans for processes on CPUs with --gpu-memory each."""
    json: Path | None = None
    """Write the numbers here too, as JSON."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        for name in ("model", "reward_model"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}={getattr(self, name)!r} is empty: give a config's path.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {listed}.")
        if self.lora_rank is None and self.lora_target_modules is not None:
            raise ValueError(
                "lora_target_modules is for adapters: give --lora-rank with it, or leave it out."
            )
        if self.dtype == "bfloat16" and self.lora_rank is None:
            raise ValueError(
                "dtype='bfloat16' is for frozen weights: trained ones stay in float32, or small "
                "updates are rounded away. Give --lora-rank with it, or --precision bfloat16."
            )
        if self.gpus > self.n_envs:
            raise ValueError(
                f"gpus={self.gpus:,} is more than n_envs={self.n_envs:,}: each GPU has "
                "environments of its own. Raise --n-envs, or take fewer GPUs."
            )
        if self.sharding == "fully_shard" and self.lora_rank is not None:
            raise ValueError(
                "sharding='fully_shard' shards the weights of the actor, and with lora_rank they "
                "are the reference's too: take --sharding replicated, where adapters alone have "
                "gradients and optimiser state, or leave --lora-rank out."
            )

    @property
    def prompt_tokens(self) -> int:
        """P."""
        return self._length("max_prompt_tokens")

    @property
    def response_tokens(self) -> int:
        """T."""
        return self._length("max_new_tokens")

    def _length(self, name: str) -> int:
        given: int | None = getattr(self, name)
        if given is not None:
            return given
        if is_bundled(self.model) and not Path(self.model).exists():
            return int(getattr(load_task(self.model), name))
        return 128

    @property
    def tokens(self) -> int:
        """P + T."""
        return self.prompt_tokens + self.response_tokens

    @property
    def envs_of_a_gpu(self) -> int:
        """Environments of the GPU that has most."""
        return -(-self.n_envs // self.gpus)

    @property
    def states_of_a_sequence(self) -> int:
        """Tokens of the longest sequence of an update that are trained on."""
        return min(self.response_tokens, self.n_steps)

    @property
    def sequences_of_a_minibatch(self) -> int:
        """Sequences of a GPU's share of a minibatch, all of them as long as can be."""
        collected = self.envs_of_a_gpu * self.n_steps
        share = min(-(-self.batch_size // self.gpus), collected)
        return max(1, -(-share // self.states_of_a_sequence))

    @property
    def sequences_of_a_rollout(self) -> int:
        """Sequences of a GPU's rollout, cut ones included, all of them as long as can be."""
        whole = -(-self.envs_of_a_gpu * self.n_steps // self.states_of_a_sequence)
        return max(self.envs_of_a_gpu, whole)

    @property
    def evaluation_slots(self) -> int:
        """Responses that an evaluation samples side by side on a GPU; 0: there is none."""
        if self.eval_responses == 0:
            return 0
        return min(256, self.eval_prompts * (self.eval_responses or 256) // 2)

    def as_json(self) -> dict[str, Any]:
        """The settings, for JSON."""
        content = dict(vars(self))
        del content["json"]
        return content


_CHOICES = {
    "sharding": ("replicated", "fully_shard"),
    "value_head": ("shared", "separate"),
    "dtype": ("float32", "bfloat16"),
    "precision": ("float32", "bfloat16"),
    "optimizer": ("adam", "adamw", "sgd", "adagrad"),
    "scoring": ("deferred", "step"),
    "device": ("cuda", "cpu"),
}
