"""How large the evaluation after a training is, from settings and counts, never from the clock.

Costs are counted in forward passes of one token. The update's backward pass costs two of them, and
a token that is sampled one by one as much as `SAMPLING`. Of an episode with P tokens of prompt and
T of response, S = P + `SAMPLING`·T to sample and F = P + T for a packed forward pass:

    trained:    S + 2·F (reference, reward model) + epochs·update·trunks·F
    evaluated:  S + 3·F (policy, reference, reward model)

How many episodes were trained on is counted by the run: where responses end by themselves they are
more than tokens / T. The two costs are then both smaller, and their ratio is about the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FULL_RESPONSES", "EvaluationSize", "evaluation_size"]

FULL_RESPONSES = 256
"""Responses to each prompt, half the policy's, half the reference's, where nothing is reduced."""

LEAST_RESPONSES = 2
"""Responses to each prompt, one of each policy; where that is too much, fewer prompts are taken."""

SAMPLING = 3.0
"""Cost of sampling a token, in forward passes of one in a batch of whole sequences; the table of
stages in docs/performance.md has 2.8."""


@dataclass(frozen=True)
class EvaluationSize:
    """The size of an evaluation.

    Attributes:
        prompts: how many of the held-out prompts.
        responses: to each, half the policy's, half the reference's; 0: no evaluation.
        full_prompts: what `prompts` would be if nothing were reduced.
        full_responses: likewise.
    """

    prompts: int
    responses: int
    full_prompts: int
    full_responses: int

    @property
    def is_reduced(self) -> bool:
        """Whether it is smaller than it would be without regard to its cost."""
        return (self.prompts, self.responses) != (self.full_prompts, self.full_responses)

    def note(self) -> str:
        """What was reduced and how to get more, as a line; empty where nothing was."""
        if not self.is_reduced:
            return ""
        return (
            f"the evaluation is reduced to {self.prompts:,} prompts × {self.responses:,} responses "
            f"from {self.full_prompts:,} × {self.full_responses:,}, so as to cost no more than the "
            f"training: --eval-responses {FULL_RESPONSES} takes all"
        )


def evaluation_size(
    config: Any,
    prompts: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    episodes: float,
    has_function: bool = False,
) -> EvaluationSize:
    """The size of the evaluation after a run: as set, or no more expensive than its training.

    Args:
        config: a `TrainConfig`, or anything with its fields.
        prompts: held-out prompts that there are.
        max_prompt_tokens: P.
        max_new_tokens: T.
        episodes: how many responses ended in the training; at least tokens / T are taken.
        has_function: whether a reward is a user's function, which may cost anything: it is then
            called for no more responses than in training.
    """
    # Where there are fewer prompts than were asked for, each gets more responses.
    times = -(-config.eval_prompts // prompts)
    if config.eval_responses is not None:
        asked = times * config.eval_responses
        return EvaluationSize(prompts, asked, prompts, asked)
    episodes = max(episodes, config.total_tokens / max_new_tokens)
    affordable = episodes * _relative_cost(config, max_prompt_tokens, max_new_tokens)
    if has_function:
        affordable = min(affordable, episodes)
    if config.actor is not None:  # the untrained model is evaluated as well
        affordable /= 2
    full = times * FULL_RESPONSES
    responses = min(full, int(affordable / prompts) // 2 * 2)
    if responses >= LEAST_RESPONSES:
        return EvaluationSize(prompts, responses, prompts, full)
    fewer = min(prompts, max(1, int(affordable / LEAST_RESPONSES)))
    return EvaluationSize(fewer, LEAST_RESPONSES, prompts, full)


def _relative_cost(config: Any, max_prompt_tokens: int, max_new_tokens: int) -> float:
    """What an episode costs in training, relative to a response in the evaluation."""
    sampling = max_prompt_tokens + SAMPLING * max_new_tokens
    forward = max_prompt_tokens + max_new_tokens
    # Forward, and backward with respect to activations and weights; adapters have few weights.
    update = 3 - (config.lora_rank is not None) + bool(config.gradient_checkpointing)
    passes, values = config.n_epochs, 0
    if config.value_head == "separate":  # its values are one forward pass of their own
        passes += config.critic_epochs or config.n_epochs
        values = forward
    trained = sampling + values + 2 * forward + passes * update * forward
    return trained / (sampling + 3 * forward)
