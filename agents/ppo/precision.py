"""The precision in which an update computes: float32, or bfloat16 where that is faster.

Weights, gradients of weights, Adam's state, logits, softmax and values stay float32: autocast runs
the matrix products of the trunk and of the backward pass in bfloat16. On processors that multiply
bfloat16 in hardware this makes an update faster, elsewhere slower; `"auto"` measures it. Ratios
divide by log-probabilities of the same precision, which are decided on here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from agents.policy import LMActorCriticPolicy
from agents.ppo.losses import split_minibatch
from agents.ppo.minibatches import tokens_of_ranks
from agents.rollout import EpisodeRolloutBuffer, find_env_settings
from tokenenv.models import (
    MICRO_BATCH_TOKENS,
    PackedSequences,
    computing_in,
    seconds_by_precision,
)

__all__ = [
    "check_update_precision",
    "computing_in",
    "measured_precision",
    "seconds_by_precision",
    "settle_old_log_probs",
    "update_log_probs",
]

MEASURED_TOKENS = 2048
"""Tokens of the forward pass that is measured, at most."""


def check_update_precision(model: Any) -> None:
    """Raise ValueError where a model can't provide the log-probabilities that ratios divide by.

    Args:
        model: a `TokenPPO`, set up.
    """
    if model.update_precision != "float32" and not _can_be_narrow(model):
        raise ValueError(
            f"precision={model.precision!r} divides by log-probabilities of the update's "
            f"precision, which only LMActorCriticPolicy with EpisodeRolloutBuffer provides, not "
            f"{type(model.policy).__name__} with {type(model.rollout_buffer).__name__}: leave "
            "precision at 'float32', or leave rollout_buffer_class out."
        )


def _can_be_narrow(model: Any) -> bool:
    is_language_model = isinstance(model.policy, LMActorCriticPolicy)
    return is_language_model and isinstance(model.rollout_buffer, EpisodeRolloutBuffer)


def update_log_probs(
    model: Any,
) -> Callable[[PackedSequences, torch.Tensor], torch.Tensor] | None:
    """A function for (n,) log π of actions as a model's update computes it, at present weights.

    Args:
        model: a `TokenPPO`.

    Returns:
        None where the update computes as sampling does.
    """
    precision = model.update_precision
    if precision == "float32":
        return None
    policy, needs_logits = model.policy, model.use_kl_loss and model.kl_estimator == "full"

    def log_probs(states: PackedSequences, actions: torch.Tensor) -> torch.Tensor:
        with computing_in(precision, actions.device):
            return policy.log_probs_of(states, actions, by_logits=needs_logits)

    return log_probs


def settle_old_log_probs(model: Any) -> bool:
    """Set the old log-probabilities that an update's ratios divide by, before any weight changes.

    They are the log-probabilities of the tokens in the update's precision: those of sampling where
    both compute in float32, else those of the update's first forward pass where it sees all tokens
    at once, else those of a separate pass. Carried tokens were sampled by other weights: the buffer
    computed theirs at the end of the rollout that sampled them.

    Args:
        model: a `TokenPPO` whose rollout is complete; its buffer gets the log-probabilities.

    Returns:
        Whether the first forward pass has still to set them.
    """
    buffer = model.rollout_buffer
    if not isinstance(buffer, EpisodeRolloutBuffer) or buffer.cut == "carry":
        return False
    compute = update_log_probs(model)
    if compute is None:
        buffer.old_log_probs = buffer.log_probs
        return False
    if tokens_of_ranks(buffer, model.ranks) <= model.batch_size:  # one minibatch
        return True
    if not buffer.num_tokens:
        return False
    batch = buffer.all_tokens()
    old_log_probs = torch.empty_like(batch.old_log_prob)
    for part, index in split_minibatch(batch, MICRO_BATCH_TOKENS):
        positions = slice(None) if index is None else index
        states: Any = part.observations
        with torch.no_grad():
            old_log_probs[positions] = compute(states, part.actions)
    buffer.old_log_probs = old_log_probs.cpu().numpy()
    return False


def measured_precision(model: Any) -> str:
    """The precision in which `TokenPPO`'s update is faster on this machine; its logger says so.

    It is float32 for other policies and buffers than those of language models.

    Args:
        model: a `TokenPPO`, set up; nothing of it changes.
    """
    policy, settings = model.policy, find_env_settings(model.env)
    if settings is None or not _can_be_narrow(model):
        return "float32"
    batch = _random_batch(
        int(model.action_space.n),
        int(model.observation_space.shape[0]),
        settings.max_new_tokens,
        min(model.batch_size, model.micro_batch_tokens or MEASURED_TOKENS, MEASURED_TOKENS),
        model.device,
    )

    def step() -> torch.Tensor:
        values, log_probs, _ = policy.evaluate_actions(*batch)
        return log_probs.mean() + values.mean()

    seconds = seconds_by_precision(step, list(policy.parameters()))
    fastest = min(seconds, key=lambda precision: seconds[precision])
    ratio = seconds["float32"] / seconds["bfloat16"]
    model.logger.info(
        f"precision='auto': updates compute in {fastest}; a forward and backward pass took "
        f"{ratio:.2f} times as long in float32 as in bfloat16."
    )
    return fastest


def _random_batch(
    vocabulary: int, width: int, responses: int, tokens: int, device: torch.device
) -> tuple[PackedSequences, torch.Tensor]:
    """Sequences of random tokens, as full as an update's can be, and their last actions.

    Args:
        vocabulary: V.
        width: P+T.
        responses: T: every sequence has as many states, at its end.
        tokens: over all sequences, prompts included, about.
        device: where the tensors go.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, tokens // (width - 1))
    drawn = torch.randint(vocabulary, (count, width), generator=generator).to(device)
    rows = torch.arange(count, device=device).repeat_interleave(responses)
    columns = torch.arange(width - 1 - responses, width - 1, device=device).repeat(count)
    return PackedSequences(drawn[:, :-1], rows, columns), drawn[rows, columns + 1]
