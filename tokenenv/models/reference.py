"""The reference: the frozen language model that the actor started from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tokenenv.models.cache_check import check_cached_step
from tokenenv.models.language_model import LanguageModel
from tokenenv.models.log_probs import response_log_probs, token_log_probs
from tokenenv.models.slot_decoder import SlotDecoder

__all__ = ["Reference"]


class Reference:
    """log π_ref, token by token or for whole responses.

    Args:
        language_model: the frozen causal LM.
        temperature: divides its logits; the same as the actor's.
    """

    def __init__(self, language_model: LanguageModel, temperature: float = 1.0) -> None:
        self.language_model = language_model
        self.temperature = temperature

    def decoder(self, num_slots: int, width: int) -> SlotDecoder:
        """A decoder for N observations of P+T = `width` columns.

        Raises:
            ValueError: the model can't be decoded token by token.
        """
        model = self.language_model.model
        what = f"reference {self.language_model.name!r}"
        check_cached_step(model, -(-width // 2), width // 2, what)
        return SlotDecoder(model, num_slots, width)

    @torch.no_grad()
    def step_log_probs(self, hidden: torch.Tensor, actions: np.ndarray) -> np.ndarray:
        """(n,) float64 log π_ref(a_t | s_t) for (n, h) hidden states and (n,) actions."""
        tokens = torch.as_tensor(actions, device=hidden.device)
        log_probs = token_log_probs(self.language_model.model, hidden, tokens, self.temperature)
        return log_probs.double().cpu().numpy()

    def response_log_probs(
        self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Log π_ref of every token of whole responses, in length-sorted batches."""
        return response_log_probs(self.language_model.model, prompts, responses, self.temperature)
