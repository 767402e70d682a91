"""Tiny models of several architectures, and folders that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
    from tokenenv.models.language_model import build_language_model

    torch.manual_seed(seed)
    model = build_language_model(ARCHITECTURES[name], dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model


def word_tokenizer(pad_token: str = "<pad>", reverse: bool = False) -> Any:
    """A tokenizer of 40 entries: `"w4 w39"` is [1, 4, 39], with BOS = 1 in front and EOS = 2.

    Args:
        pad_token: `"<pad>"` (id 0), or `"<eos>"` for the trap of a pad that is EOS.
        reverse: number the words from the other end: another tokenizer for the same texts.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(4, 40)]
    entries = ["<pad>", "<bos>", "<eos>", "<unk>", *(reversed(words) if reverse else words)]
    vocabulary = {word: index for index, word in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token=pad_token,
    )


def save_language_model(
    folder: Path, name: str = "llama", seed: int = 0, pad_token: str = "<pad>", **config: Any
) -> str:
    """Write a small causal LM with its tokenizer to `folder`, in transformers' format."""
    tokenizer = word_tokenizer(pad_token)
    model = small_model(name, seed)
    model.config.pad_token_id = tokenizer.pad_token_id
    for key, value in config.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_classifier(
    folder: Path,
    name: str = "llama",
    num_labels: int = 1,
    seed: int = 1,
    tokenizer: Any = None,
    **config: Any,
) -> str:
    """Write a small sequence classifier to `folder`: with one label, a reward model."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tokenizer or word_tokenizer()
    torch.manual_seed(seed)
    settings = {**ARCHITECTURES[name], "pad_token_id": tokenizer.pad_token_id, **config}
    made = AutoConfig.for_model(**settings, num_labels=num_labels)
    model = AutoModelForSequenceClassification.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
