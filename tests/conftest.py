"""Fixtures that several test files share: tiny models of several architectures."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

_SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 40,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": {"model_type": "llama", **_SMALL},
    "qwen2": {"model_type": "qwen2", **_SMALL},
    "gpt_neox": {"model_type": "gpt_neox", **{**_SMALL, "num_key_value_heads": 4}},
    "opt": {
        "model_type": "opt",
        **_SMALL,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "pad_token_id": 0,
    },
    "mistral-window-6": {"model_type": "mistral", **_SMALL, "sliding_window": 6},
    "gemma3-window-6": {
        "model_type": "gemma3_text",
        **_SMALL,
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": 0,
    },
}


def small_model(name: str, seed: int = 0, dtype: str = "float32") -> Any:
    """A randomly initialised model of an architecture, with weights large enough to matter."""
    from tokenenv.language_model import build_language_model

    torch.manual_seed(seed)
    model = build_language_model(ARCHITECTURES[name], dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test uses its data")
    return SHARED
