"""The folder of a fine-tuned model: transformers' format, and the adapter beside it."""

from __future__ import annotations

from pathlib import Path

from tokenenv.models import LanguageModel, is_adapter_weight, merged, quiet_loading, save_adapter

__all__ = ["ADAPTER_FOLDER", "save_sft"]

ADAPTER_FOLDER = "adapter"


def save_sft(language_model: LanguageModel, folder: str | Path) -> None:
    """Write a model and its tokenizer, in plain transformers' format.

    One with adapters is written merged, and its adapter into the folder `adapter` as peft has it,
    to be loaded over the model that it adapts.

    Args:
        language_model: as `train_sft` left it.
        folder: where to; made where it is missing.
    """
    folder, model = Path(folder), language_model.model
    is_adapted = any(is_adapter_weight(name) for name, _ in model.named_parameters())
    with quiet_loading():
        (merged(model) if is_adapted else model).save_pretrained(folder)
        language_model.tokenizer.save_pretrained(folder)
    if is_adapted:
        save_adapter(model, folder / ADAPTER_FOLDER, language_model.name)
