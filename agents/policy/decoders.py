"""The slot decoders of a policy, by purpose: when they are made, followed and dropped.

A decoder keeps keys and values of every environment's episode, so that a step costs one forward of
one token (`tokenenv.models.SlotDecoder`). `predict` has decoders of its own: an evaluation during
training leaves those of the rollout as they are. Caches are dropped whenever weights can have
changed; a decoder also looks at the weights itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tokenenv.models import SlotDecoder

__all__ = ["PolicyDecoders"]


class PolicyDecoders:
    """Decoders of a policy's models, kept per purpose.

    Args:
        check: called with P+T before decoders are made; raises ValueError for a model whose cached
            step is not its plain forward.

    Attributes:
        is_in_rollout: whether `"rollout"` decoders take a quick look at the weights only. It does
            not see what is written through `.data` to a part of a tensor, nor in place on a GPU.
        by_purpose: purpose → one decoder for each model.
    """

    def __init__(self, check: Callable[[int], None]) -> None:
        self._check = check
        self.by_purpose: dict[str, tuple[SlotDecoder, ...]] = {}
        self.is_in_rollout = False

    def follow(
        self, purpose: str, models: list[Any], observations: np.ndarray
    ) -> tuple[torch.Tensor, ...]:
        """Last hidden states at observations, one tensor for each model.

        Args:
            purpose: `"rollout"` or `"predict"`.
            models: the actor, and the critic's model where values are wanted and it has its own.
            observations: (N, P+T) token ids.

        Returns:
            (N, h) each. All weights are read to find out whether one has changed, but not at every
            step of a rollout.
        """
        slots, width = observations.shape
        decoders = self.by_purpose.get(purpose, ())
        is_ready = decoders and decoders[0].num_slots == slots
        if not is_ready or [decoder.model for decoder in decoders] != models:
            self._check(width)
            decoders = tuple(SlotDecoder(model, slots, width) for model in models)
            self.by_purpose[purpose] = decoders
        thorough = purpose == "predict" or not self.is_in_rollout
        return tuple(decoder.hidden_states(observations, thorough) for decoder in decoders)

    def have_followed(self, purpose: str, slots: int) -> bool:
        """Whether there are decoders for that many environments."""
        decoders = self.by_purpose.get(purpose, ())
        return bool(decoders) and decoders[0].num_slots == slots

    def drop(self) -> None:
        """Forget all keys and values; the decoders stay."""
        for decoders in self.by_purpose.values():
            for decoder in decoders:
                decoder.drop()

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop after every step of an optimiser."""
        optimizer.register_step_post_hook(lambda *_: self.drop())
