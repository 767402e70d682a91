"""One update of PPO on the same rollout, by one process and by several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from support.tiny_task import begin, collect, make_agent, perturb

from agents.scaling import Ranks
from tokenenv.models import minibatch_indices

LARGE: dict[str, Any] = {"batch_size": 100_000}
CASES: dict[str, dict[str, Any]] = {
    "one minibatch": {**LARGE, "n_epochs": 1},
    "several": {"batch_size": 10, "n_epochs": 2, "micro_batch_tokens": 30, "clip_range_vf": 0.05},
    "by sequence": {
        **{"batch_size": 60, "loss_aggregation": "sequence", "ent_coef": 0.01},
        **{"normalize_advantage": True, "whiten_advantages": False, "normalize_returns": False},
        "policy_kwargs": {"gradient_checkpointing": True},
    },
    "a critic of its own": {
        **{"batch_size": 50, "n_epochs": 3, "critic_epochs": 1, "loss_aggregation": "constant"},
        **{"policy_kwargs": {"value_head": "separate"}, "vf_coef": 0.5},
    },
    "a warm-up": {**LARGE, "critic_warmup": 2, "vf_coef": 0.5},
    "a KL loss": {
        **{"batch_size": 64, "kl_estimator": "k3", "use_kl_loss": True, "n_epochs": 6},
        **{"target_kl": 0.002, "learning_rate": 3e-3},
    },
}
"""Settings of `TokenPPO` that change what is summed up over tokens, and how."""


def agent_with_rollout(task: dict[str, Any], case: str) -> Any:
    """An agent in float64 whose buffer holds a rollout of 6 environments, always the same."""
    settings = dict(CASES[case])
    kwargs = {**task, "dtype": "float64", "scoring": "deferred"}
    if settings.get("use_kl_loss"):
        kwargs["kl_shaping"] = "none"
    model = make_agent(kwargs, n_envs=6, **settings)
    perturb(model.policy, 0.02)
    callback = begin(model)
    collect(model, callback)
    perturb(model.policy, 0.02)  # so that ratios differ from 1, and some are clipped
    model._current_progress_remaining = 1.0
    return model


def segments_of(model: Any, rank: int, count: int) -> np.ndarray:
    """The segments of a rank: the first has one sixth of the environments' rollouts, or less."""
    segments = np.arange(len(model.rollout_buffer.lengths))
    first = max(1, len(segments) // 6)
    return segments[:first] if rank == 0 else np.array_split(segments[first:], count - 1)[rank - 1]


def keep(buffer: Any, segments: np.ndarray) -> None:
    """Let a buffer hold these segments of its rollout alone."""
    tokens = np.concatenate([np.arange(*buffer.offsets[i : i + 2]) for i in segments])
    prefixes = [buffer.prefix(i) for i in segments]
    for name in ("actions", "rewards", "values", "log_probs", "advantages", "returns", "kl_coefs"):
        setattr(buffer, name, getattr(buffer, name)[tokens])
    if len(buffer.ref_log_probs):
        buffer.ref_log_probs = buffer.ref_log_probs[tokens]
    buffer.old_log_probs = buffer.old_log_probs[tokens]
    buffer.lengths = buffer.lengths[segments]
    buffer.offsets = np.concatenate([[0], np.cumsum(buffer.lengths)])
    buffer._prefixes = np.concatenate(prefixes)
    buffer._prefix_offsets = np.concatenate([[0], np.cumsum([len(p) for p in prefixes])])


def result_of(model: Any) -> dict[str, torch.Tensor]:
    """Weights, last gradients and logged numbers of an update."""
    found = {name: weight.detach().clone() for name, weight in model.policy.state_dict().items()}
    for name, weight in model.policy.named_parameters():
        if weight.grad is not None and not hasattr(weight.grad, "placements"):
            found[f"gradient of {name}"] = weight.grad.detach().clone()
    logged = model.logger.name_to_value
    names = ("loss", "approx_kl", "clip_fraction", "grad_norm", "explained_variance")
    numbers = [float(logged[f"train/{name}"]) for name in names] + [float(model._n_updates)]
    return {**found, "numbers": torch.tensor(numbers, dtype=torch.float64)}


def alone(task: dict[str, Any], case: str, count: int) -> dict[str, torch.Tensor]:
    """What one process with all episodes comes to, with the minibatches that ranks would take."""
    model = agent_with_rollout(task, case)
    buffer, draws = model.rollout_buffer, [np.random.RandomState(100 + r) for r in range(count)]
    own = [segments_of(model, rank, count) for rank in range(count)]

    def get(batch_size: int) -> Iterator[Any]:
        groups = min(len(buffer.lengths), max(1, -(-buffer.num_tokens // batch_size)))
        shares = []
        for segments, draw in zip(own, draws, strict=True):
            rng = np.random.default_rng(draw.randint(2**31))
            lengths = buffer.lengths[segments]
            shares.append([segments[i] for i in minibatch_indices(lengths, None, rng, groups)])
        for parts in zip(*shares, strict=True):
            if len(together := np.concatenate(parts)):
                yield buffer.minibatch(together)

    buffer.get = get
    model.train()
    return result_of(model)


def together(task: dict[str, Any], case: str, ranks: Ranks, shard: bool = False) -> Any:
    """The same by the ranks, each with its own segments; returns (result, model)."""
    model = agent_with_rollout(task, case)
    model.join(ranks, shard)
    keep(model.rollout_buffer, segments_of(model, ranks.rank, ranks.count))
    np.random.seed(100 + ranks.rank)
    model.train()
    return result_of(model), model
