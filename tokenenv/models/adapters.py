"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), by `peft`.

A linear layer W of a frozen model becomes W + (α/r)·B·A, with B = 0 at first: the model starts as
what it was, to the last bit. The frozen weights are not copied: a reference and any number of
adapted models are module trees over the same tensors.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokenenv.memory import is_out_of_memory
from tokenenv.ranges import POSITIVE_FINITE, check_ranges, count

__all__ = [
    "ADAPTER_NAME",
    "LoraSettings",
    "adapts_tied_weights",
    "add_lora",
    "copy_sharing_frozen",
    "is_adapter_weight",
    "merged",
    "require_peft",
]

ADAPTER_NAME = "default"
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
            inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    except Exception as error:  # peft raises errors of many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{what}: no adapter can be put into this {type(model).__name__} "
            f"({str(error).strip().splitlines()[0]:.200}). Its linear layers are called "
            f"{', '.join(linear_layers(model))}: name some of them as lora_target_modules."
        ) from error
    if model.get_output_embeddings() is not output or adapts_tied_weights(model):
        raise ValueError(
            f"{what}: lora_target_modules={list(settings.target_modules or ())} has the output "
            "layer among them, or the input embedding that is tied to it; the output layer is "
            "computed apart from the others: leave it out."
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


def adapts_tied_weights(model: Any) -> bool:
    """Whether an adapter is put on a weight that is the output layer's as well.

    Merging would change the output layer too, which the adapted model does not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    output = model.get_output_embeddings()
    shared = getattr(output, "weight", None)
    return any(
        isinstance(module, BaseTunerLayer)
        and module is not output
        and getattr(module.get_base_layer(), "weight", None) is shared
        for module in model.modules()
    )


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
