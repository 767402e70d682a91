"""The two parts of a causal LM: the trunk gives hidden states, the head logits of some of them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["output_logits", "trunk_hidden_states"]


def trunk_hidden_states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The trunk's last hidden states.

    Args:
        model: a transformers model with a trunk (`base_model`).
        tokens: (B, L) int64, sequences from column 0 and **right**-padded with any token: a causal
            trunk computes the same for the real tokens whatever stands behind them, with positions
            0, 1, …

    Returns:
        (B, L, h).
    """
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def output_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(…, V) logits of (…, h) hidden states, as the forward of the model computes them.

    They are float32, or float64 where the model is; under autocast the output layer still
    computes in the precision of its weights.
    """
    layer = model.get_output_embeddings()
    if torch.is_autocast_enabled(hidden.device.type):
        with torch.autocast(hidden.device.type, enabled=False):
            logits = layer(hidden.to(getattr(layer, "weight", hidden).dtype))
    else:
        logits = layer(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits
