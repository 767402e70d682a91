"""Folders of adapters, as `peft` writes and reads them."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from tokenenv.json_files import read_json_object
from tokenenv.models.adapters import (
    ADAPTER_NAME,
    adapts_tied_weights,
    is_adapter_weight,
    require_peft,
)
from tokenenv.models.loading import ADAPTER_CONFIG, loading_errors

__all__ = ["adapter_base", "load_adapter", "merge_adapter", "save_adapter"]


def adapter_base(name: str, what: str) -> str:
    """The folder or hub id of the model that an adapter in a folder adapts.

    A relative path counts from the working directory, or else from the adapter's folder.

    Raises:
        ValueError: the folder's config names none.
    """
    file = Path(name) / ADAPTER_CONFIG
    config = read_json_object(file, "the config of an adapter")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise ValueError(
            f"{what}={name!r}: {str(file)!r} does not say which model it adapts: write its folder "
            "or hub id there as 'base_model_name_or_path'."
        )
    beside = Path(name) / base
    return str(beside) if not os.path.isdir(base) and os.path.isdir(beside) else base


def merge_adapter(model: Any, name: str, what: str) -> Any:
    """The plain model that a model with the adapter in a folder is; it is changed in place.

    Args:
        model: the adapted model, of transformers.
        name: the adapter's folder.
        what: the argument that named it, for messages.

    Raises:
        ValueError: peft is missing, the adapter does not fit the model, or can't be merged.
    """
    require_peft(f"{what}={name!r}, an adapter,")
    from peft import PeftModel

    with loading_errors(name, what), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of weights that are missing
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        warnings.simplefilter("ignore", FutureWarning)
        adapted: Any = PeftModel.from_pretrained(model, name)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = adapted.peft_config[ADAPTER_NAME].peft_type
            raise ValueError(
                f"it is an adapter of the kind {kind!s:.40}, which can't be merged into its model."
            )
        if adapts_tied_weights(adapted.get_base_model()):
            raise ValueError(
                "it adapts the input embedding, which is tied to the output layer: merging would "
                "change both."
            )
        return adapted.merge_and_unload(safe_merge=True)


def save_adapter(model: Any, folder: Path, base: str, has_head: bool = False) -> None:
    """Write the adapter of a model as peft does, so that peft loads it on the model `base`.

    Args:
        model: with adapters of `add_lora`.
        folder: where to; made where it is missing.
        base: folder or hub id of the adapted model, noted in the config.
        has_head: whether the model is a sequence classifier whose head `score` was trained, too,
            and is written with the adapter.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(model.peft_config[ADAPTER_NAME])
    is_folder = os.path.isdir(base)
    config.base_model_name_or_path = os.path.abspath(base) if is_folder else base
    config.inference_mode = True
    if has_head:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    config.save_pretrained(str(folder))
    weights = {
        f"base_model.model.{name}": weight.detach().cpu().contiguous()
        for name, weight in get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME).items()
    }
    if has_head:
        for name, weight in model.score.named_parameters():
            weights[f"base_model.model.score.{name}"] = weight.detach().cpu().contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(model: Any, folder: Path, what: str) -> None:
    """Fill the adapter of a model with the weights that `save_adapter` wrote.

    Args:
        model: with adapters of `add_lora`.
        folder: the adapter's.
        what: what it belongs to, for messages.

    Raises:
        ValueError: the file is missing, broken, or holds another adapter.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    try:
        weights = load_file(file)
    except Exception as error:  # safetensors raises errors of its own kind
        raise ValueError(
            f"{str(file)!r}, the adapter of {what}, can't be read ({str(error)[:120]}): save it "
            "again, or restore the file."
        ) from error
    own = {n: p for n, p in model.named_parameters() if is_adapter_weight(n)}
    names = {f"base_model.model.{n.replace(f'.{ADAPTER_NAME}.', '.')}": p for n, p in own.items()}
    wrong = sorted(names.keys() ^ weights.keys())
    wrong += [n for n, p in names.items() if n in weights and weights[n].shape != p.shape]
    if wrong:
        raise ValueError(
            f"{str(file)!r} does not hold the adapter of {what} (it differs in {wrong[0]!r}): save "
            "it again, or restore the file."
        )
    with torch.no_grad():
        for name, weight in names.items():
            weight.copy_(weights[name])
