"""The largest micro-batch that fits, and what to change where none does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agents.plan.config import PlanConfig
from agents.plan.memory import GIB, Memory, Planned

__all__ = ["Change", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True)
class Change:
    """Other settings, and the peak with them and the smallest micro-batch, in bytes."""

    options: str
    peak: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer.

    Attributes:
        config: what was asked.
        parameters: of the model.
        limit: bytes that may be used of a GPU.
        memory: with the micro-batch that is given or found; the smallest where none fits.
        micro_batch_tokens: the setting; None: whole minibatches.
        changes: what helps, where it does not fit.
    """

    config: PlanConfig
    parameters: int
    limit: int
    memory: Memory
    micro_batch_tokens: int | None
    changes: list[Change]

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.memory.peak <= self.limit

    def as_json(self) -> dict[str, Any]:
        """The answer, for JSON; sizes in bytes."""
        memory = self.memory
        return {
            "settings": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.config.as_json().items()
            },
            "parameters": self.parameters,
            "fits": self.fits,
            "micro_batch_tokens": self.micro_batch_tokens,
            "sequences_of_a_micro_batch": memory.sequences,
            "limit": self.limit,
            "peak": memory.peak,
            "stage": memory.worst.name,
            "bound": memory.bound,
            "parts": memory.parts,
            "stages": {stage.name: memory.together(stage) for stage in memory.stages},
            "changes": [dataclasses.asdict(change) for change in self.changes],
        }


def make_plan(config: PlanConfig) -> Plan:
    """What a training with these settings takes, with the largest micro-batch that fits.

    Raises:
        ValueError: as `Planned`.
    """
    traces: dict[Any, Any] = {}
    planned = Planned(config, traces)
    limit = int(config.gpu_memory * GIB * (1 - config.reserve))
    if config.micro_batch_tokens is not None:
        sequences = planned.sequences_of(config.micro_batch_tokens)
    else:
        sequences = _largest(planned, limit)
    memory = planned.memory(sequences)
    tokens = config.micro_batch_tokens or planned.micro_batch_tokens(sequences)
    changes = [] if memory.peak <= limit else _helpful(config, traces, memory.peak, limit)
    return Plan(config, planned.parameters, limit, memory, tokens, changes)


def _largest(planned: Planned, limit: int) -> int:
    """The most sequences of a micro-batch within the limit; 1 where none is.

    What the peak grows by per sequence is read off at 1 and 2; the guess is then checked.
    """
    most = planned.most_sequences
    if most == 1 or planned.memory(1).peak > limit:
        return 1
    if planned.memory(most).peak <= limit:
        return most
    low, high = 1, most  # fits, does not
    one, two = (_update(planned, sequences) for sequences in (1, 2))
    guess = 1 + int((limit - one) / max(1, two - one))
    while high - low > max(1, low // 16):
        tried = min(high - 1, max(low + 1, guess))
        if planned.memory(tried).peak <= limit:
            low, guess = tried, (tried + high) // 2
        else:
            high, guess = tried, (low + tried) // 2
    return low


def _update(planned: Planned, sequences: int) -> int:
    memory = planned.memory(sequences)
    return memory.together(memory.stages[0])


def _helpful(config: PlanConfig, traces: dict[Any, Any], peak: int, limit: int) -> list[Change]:
    """The changes that lower the peak: those that suffice, or all where none does."""
    found: list[Change] = []
    for change in _changes(config):
        try:
            settings = {"micro_batch_tokens": None, **change}
            planned = Planned(dataclasses.replace(config, **settings), traces)
            lowered = planned.memory(1).peak
        except ValueError:  # not for this model, or not with the other settings
            continue
        if lowered < peak:
            found.append(Change(_options(change), lowered, lowered <= limit))
    enough = [change for change in found if change.fits]
    return sorted(enough or found, key=lambda change: change.peak)


def _changes(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Settings that take less memory, one by one, and then together."""
    one = [*_smaller(config), *_of_the_models(config)]
    yield from one
    together: dict[str, Any] = {}
    for change in one:
        if "sharding" not in change and "reward_model" not in change:
            together |= change
    if len(one) > 1 and together not in one:
        yield together
    if config.lora_rank is None and config.sharding != "fully_shard":
        kept = {n: v for n, v in together.items() if n not in ("lora_rank", "dtype")}
        yield {**kept, **_sharded(config)}


def _smaller(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Less at once."""
    if config.micro_batch_tokens is not None:
        yield {"micro_batch_tokens": config.tokens}
    if config.evaluation_slots and config.eval_responses is None:
        yield {"eval_responses": 2, "eval_prompts": 16}
    if config.n_envs > config.gpus:
        yield {"n_envs": max(config.gpus, config.n_envs // 4)}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}


def _of_the_models(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Fewer weights, gradients and optimiser states on a GPU."""
    if config.value_head == "separate":
        yield {"value_head": "shared"}
    if config.reward_model == "same":
        yield {"reward_model": "none"}
    if config.lora_rank is not None and config.dtype == "float32":
        yield {"dtype": "bfloat16"}
    if config.lora_rank is None and config.sharding != "fully_shard":
        yield {"lora_rank": 16}
        yield {"lora_rank": 16, "dtype": "bfloat16"}
        yield _sharded(config)


def _sharded(config: PlanConfig) -> dict[str, Any]:
    return {"gpus": max(8, config.gpus), "sharding": "fully_shard"}


def _options(change: dict[str, Any]) -> str:
    words = []
    for name, value in change.items():
        option = "--" + name.replace("_", "-")
        words.append(option if value is True else f"{option} {value}")
    return " ".join(words)
