"""Weights, and what an optimiser knows of them, by the names that they have in the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["load_optimizer", "load_weights", "optimizer_state", "weights_state"]


def weights_state(module: nn.Module) -> dict[str, Any]:
    """A module's state dict; a tensor that has several names stands under the first of them."""
    tensors: dict[str, torch.Tensor] = {}
    same_as: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in first:
            same_as[name] = first[place]
        else:
            first[place], tensors[name] = name, tensor
    return {"tensors": tensors, "same_as": same_as}


def load_weights(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load what `weights_state` gave.

    Args:
        module: of the same shapes.
        state: of the other.
        what: names it in messages: "the policy".

    Raises:
        ValueError: they don't fit; nothing has changed then.
    """
    tensors: dict[str, torch.Tensor] = dict(state["tensors"])
    tensors |= {name: tensors[first] for name, first in state["same_as"].items()}
    here = module.state_dict()
    missing, unknown = sorted(here.keys() - tensors.keys()), sorted(tensors.keys() - here.keys())
    shaped = {
        name for name in here.keys() & tensors.keys() if _kind(here[name]) != _kind(tensors[name])
    }
    if missing or unknown or shaped:
        wrong = (missing or unknown or sorted(shaped))[0]
        raise ValueError(
            f"the stored weights are not those of {what}: they differ in {wrong!r}. Build it with "
            "the same model and settings."
        )
    module.load_state_dict(tensors)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """The settings of an optimiser's groups, and its state of every weight by the weight's name."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    state = {names[id(weight)]: dict(known) for weight, known in optimizer.state.items()}
    groups = [
        {**_settings(group), "weights": [names[id(weight)] for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, "groups": groups, "weights": state}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, state: Mapping[str, Any]
) -> None:
    """Load what `optimizer_state` gave.

    Args:
        optimizer: of the same kind, over the weights of `module`.
        module: with the same weights.
        state: of the other.

    Raises:
        ValueError: it is of another optimiser, or of other weights.
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    here = [[names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups]
    stored = [group["weights"] for group in state["groups"]]
    if type(optimizer).__name__ != state["kind"] or here != stored:
        raise ValueError(
            f"the stored state is of {state['kind']} over {sum(map(len, stored))} weights, and the "
            f"optimiser is {type(optimizer).__name__} over {sum(map(len, here))}: build the policy "
            "with the same model, optimizer and settings."
        )
    indices = {name: index for index, name in enumerate(name for part in here for name in part)}
    places = iter(range(len(indices)))
    optimizer.load_state_dict(
        {
            "state": {indices[name]: dict(known) for name, known in state["weights"].items()},
            "param_groups": [
                {**_typed(group, known), "params": _take(places, len(group["params"]))}
                for group, known in zip(optimizer.param_groups, state["groups"], strict=True)
            ],
        }
    )


def _typed(group: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings of a group; JSON knows no tuples, which the betas are."""
    return {
        name: tuple(value) if isinstance(group.get(name), tuple) else value
        for name, value in stored.items()
        if name != "weights"
    }


def _take(places: Iterator[int], count: int) -> list[int]:
    return [next(places) for _ in range(count)]
