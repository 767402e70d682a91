"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), by `peft`.

A linear layer W of a frozen model becomes W + (α/r)·B·A, with B = 0 at first: the model starts as
what it was, to the last bit. The frozen weights are not copied: a reference and any number of
adapted models are module trees over the same tensors.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenenv.json_files import read_json_object
from tokenenv.memory import is_out_of_memory
from tokenenv.models.loading import ADAPTER_CONFIG, loading_errors
from tokenenv.ranges import POSITIVE_FINITE, check_ranges, count

__all__ = [
    "LoraSettings",
    "adapter_base",
    "add_lora",
    "copy_sharing_frozen",
    "is_adapter_weight",
    "load_adapter",
    "merge_adapter",
    "merged",
    "save_adapter",
]

_NAME = "default"
"""The name that peft gives the one adapter of a model."""

MOST_RANK = 4096


@dataclass(frozen=True)
class LoraSettings:
    """What of a model is adapted, and how.

    Attributes:
        rank: r, columns of B.
        alpha: α; ΔW = (α/r)·B·A. None: twice the rank.
        target_modules: names of the linear layers, or the last parts of names; None: those that
            peft has for the architecture, else those of attention.
    """

    rank: int
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges({"lora_rank": self.rank}, {"lora_rank": count(high=MOST_RANK)})
        if self.alpha is not None:
            check_ranges({"lora_alpha": self.alpha}, {"lora_alpha": POSITIVE_FINITE})
        names = self.target_modules
        if names is None:
            return
        is_list = isinstance(names, list | tuple) and names
        if not is_list or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(
                f"lora_target_modules={names!r} must be names of linear layers, such as 'q_proj' "
                "'v_proj', or be left out."
            )
        object.__setattr__(self, "target_modules", tuple(names))

    @property
    def resolved_alpha(self) -> float:
        """α."""
        return 2.0 * self.rank if self.alpha is None else float(self.alpha)


def require_peft(what: str) -> None:
    """Raise ValueError where peft is not installed.

    Args:
        what: what needs it, for the message.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{what} needs the package peft: pip install 'tokenrlhf[lora]'.")


# Adapters in folders --------------------------------------------------------------------------


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
            kind = adapted.peft_config[_NAME].peft_type
            raise ValueError(
                f"it is an adapter of the kind {kind!s:.40}, which can't be merged into its model."
            )
        return adapted.merge_and_unload(safe_merge=True)


# Adapters of a model in memory -----------------------------------------------------------------


def copy_sharing_frozen(model: Any) -> Any:
    """A copy of a model: a module tree of its own over the same frozen tensors and buffers.

    Weights that are trained are copied. The parameters are objects of their own, so that moving one
    tree to a device, or making its weights trainable, leaves the other as it is.
    """
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        if not weight.requires_grad:
            memo[id(weight)] = nn.Parameter(weight.data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


def add_lora(model: Any, settings: LoraSettings, what: str) -> Any:
    """Put low-rank adapters of zeros into a model, in place; they alone are trainable then.

    The adapters are in float32 at least: bfloat16 would swallow their small updates.

    Args:
        model: of transformers.
        settings: which.
        what: the model's name, for messages.

    Raises:
        ValueError: peft is missing, or no layer of the model fits.
    """
    require_peft("lora_rank")
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    output = model.get_output_embeddings()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.resolved_alpha,  # type: ignore[arg-type]
        target_modules=_target_modules(model, settings),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Conv1D, whose weight is transposed
            inject_adapter_in_model(config, model, adapter_name=_NAME)
    except Exception as error:  # peft raises errors of many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{what}: no adapter can be put into this {type(model).__name__} "
            f"({str(error).strip().splitlines()[0]:.200}). Its linear layers are called "
            f"{', '.join(linear_layers(model))}: name some of them as lora_target_modules."
        ) from error
    if model.get_output_embeddings() is not output:
        raise ValueError(
            f"{what}: lora_target_modules={list(settings.target_modules or ())} has the output "
            "layer among them, which is computed apart from the others: leave it out."
        )
    for name, weight in model.named_parameters():
        is_trained = is_adapter_weight(name)
        weight.requires_grad_(is_trained)
        if is_trained and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            f"{what}: no weight would be trained; its linear layers are called "
            f"{', '.join(linear_layers(model))}: name some of them as lora_target_modules."
        )
    return model


def _target_modules(model: Any, settings: LoraSettings) -> list[str] | str:
    """The names for peft: the user's, peft's for the architecture, of attention layers, or all."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    if settings.target_modules is not None:
        return list(settings.target_modules)
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    return list(known or linear_layers(model, of_attention=True)) or "all-linear"


def linear_layers(model: Any, of_attention: bool = False) -> list[str]:
    """The last parts of the names of a model's linear layers, each once, without the output.

    Args:
        model: of transformers.
        of_attention: only those that are in modules called attention and nowhere else.
    """
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]
    everywhere = {name.rpartition(".")[2] for name in names}
    if not of_attention:
        return sorted(everywhere)
    elsewhere = {n.rpartition(".")[2] for n in names if "att" not in n.rpartition(".")[0].lower()}
    return sorted(everywhere - elsewhere)


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return ".lora_" in name


def merged(model: Any) -> Any:
    """The plain model that an adapted one is: new tensors where it was adapted, the others shared.

    Args:
        model: with adapters of `add_lora`; it stays as it is.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.no_grad():
        twin = copy_sharing_frozen(model)
        while adapted := _outermost(twin, BaseTunerLayer):  # one may stand in another
            for name, module in adapted:
                # A safe merge writes into new tensors; the others are shared.
                module.merge(safe_merge=True)
                twin.set_submodule(name, module.base_layer)
    for leftover in ("peft_config", "peft_type"):
        if leftover in vars(twin):
            delattr(twin, leftover)
    return twin


def _outermost(model: Any, kind: type) -> list[tuple[str, Any]]:
    """Modules of a kind that stand in no other of it, with their names."""
    names: list[tuple[str, Any]] = []
    for name, module in model.named_modules():  # parents come before their children
        if isinstance(module, kind) and not any(name.startswith(f"{n}.") for n, _ in names):
            names.append((name, module))
    return names


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the adapter of a model as peft does, so that peft loads it on the model `base`.

    Args:
        model: with adapters of `add_lora`.
        folder: where to; made where it is missing.
        base: folder or hub id of the adapted model, noted in the config.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(model.peft_config[_NAME])
    is_folder = os.path.isdir(base)
    config.base_model_name_or_path = os.path.abspath(base) if is_folder else base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights = {
        f"base_model.model.{name}": weight.detach().cpu().contiguous()
        for name, weight in get_peft_model_state_dict(model, adapter_name=_NAME).items()
    }
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
    names = {f"base_model.model.{n.replace(f'.{_NAME}.', '.')}": p for n, p in own.items()}
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
