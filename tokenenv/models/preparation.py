"""Preparation of every model after loading: weights checked, dropout off, activations fused.

None of it changes the outputs of a model in eval mode, beyond the rounding of activations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from transformers.activations import ACT2FN

__all__ = [
    "check_weights",
    "disable_dropout",
    "enable_checkpointing",
    "fuse_activations",
    "prepare",
]

_TANH_GELUS = tuple(type(ACT2FN[name]) for name in ("gelu_new", "gelu_fast"))
"""transformers writes the tanh approximation of GELU out, operation by operation: on a CPU its
`torch.pow` costs more than the matrix products around it."""


def prepare(model: nn.Module) -> None:
    """Eval mode without dropout, activations fused: for actors, critics, references, reward models.

    Args:
        model: a transformers model; changed in place.
    """
    disable_dropout(model)
    fuse_activations(model)
    model.eval()


@torch.no_grad()
def check_weights(model: nn.Module, name: str, what: str) -> None:
    """Raise ValueError where a weight is NaN or infinite; it names the first such tensor.

    Args:
        model: just loaded.
        name: where the weights came from.
        what: the argument that named it.
    """
    for key, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        low, high = torch.aminmax(weight)  # NaN spreads to both; a twentieth of isfinite's time
        if torch.isfinite(low) and torch.isfinite(high):
            continue
        nan = int(torch.isnan(weight).sum())
        infinite = int(torch.isinf(weight).sum())
        kinds = [f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (infinite, "∞")) if count]
        raise ValueError(
            f"{what}={name!r}: the tensor {key!r} holds {' and '.join(kinds)} among its "
            f"{weight.numel():,} weights ({str(weight.dtype).removeprefix('torch.')}), so every "
            "output would be NaN. The training that wrote it diverged, the file is damaged, or the "
            "dtype is too narrow for its weights: give another checkpoint or a wider dtype."
        )


def enable_checkpointing(model: Any) -> None:
    """Let a model's layers compute their activations again in the backward pass.

    In training mode alone; the outputs and gradients stay the same.

    Args:
        model: of transformers; changed in place.

    Raises:
        ValueError: its architecture can't.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(
            f"{type(model).__name__} has no gradient checkpointing: leave it out, and take smaller "
            "micro-batches (micro_batch_tokens) for less memory."
        )
    kwargs = {"use_reentrant": False, "context_fn": _contexts_of_checkpoint}
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.20
        model.activation_checkpointing_enable(kwargs)
    else:
        model.gradient_checkpointing_enable(kwargs)


def _contexts_of_checkpoint() -> tuple[Any, Any]:
    """Contexts of a checkpoint's forward and of its repetition in the backward pass.

    torch restores autocast in the second, but no `TorchFunctionMode`, such as the one that keeps
    attention in float32 on CPUs: the repetition would compute something else.
    """
    return contextlib.nullcontext(), _in_modes(_get_current_function_mode_stack())


@contextlib.contextmanager
def _in_modes(modes: list[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def fuse_activations(model: nn.Module) -> None:
    """Replace activations that are written out by torch's kernels of the same function.

    Parameters, their names and the config stay, so that checkpoints are the same.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in _TANH_GELUS:
                setattr(module, name, nn.GELU(approximate="tanh"))


def disable_dropout(model: nn.Module) -> None:
    """Switch off every kind of dropout, so that train and eval mode compute the same.

    Modules, the floats that attention layers keep (`attention_dropout`) and the config are all set
    to 0.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_dropout_floats(module)
    config = getattr(model, "config", None)
    if config is not None:
        _zero_dropout_floats(config)


def _zero_dropout_floats(owner: Any) -> None:
    for key, value in list(vars(owner).items()):
        if isinstance(value, float) and ("dropout" in key or key.endswith(("pdrop", "drop_rate"))):
            setattr(owner, key, 0.0)
