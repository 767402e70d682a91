"""A state as JSON and tensors, and back: nothing of it is code, and no number is rounded.

JSON holds what it can. Where an array stands, it holds the array's name; a float that is not finite
is a text in an object; a key that begins as these do gets a further `$`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["split_state", "whole_state"]

_ARRAY, _TENSOR, _FLOAT = "$array", "$tensor", "$float"


def split_state(state: Any, name: str = "state") -> tuple[Any, dict[str, torch.Tensor]]:
    """The JSON of a state, and its arrays and tensors by name.

    Args:
        state: dictionaries with texts as keys, lists, tuples (which become lists), None, bool, int,
            float, texts, NumPy arrays and scalars, and tensors.
        name: of the whole, for messages of errors.

    Raises:
        TypeError: there is something else in it; it is named.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _split(state, name, tensors), tensors


def _split(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{place} is an array of {value.dtype}: a checkpoint holds numbers.")
        _refuse_twice(place, tensors)
        wide = value.astype(np.int64) if value.dtype == np.uint32 else value
        tensors[place] = torch.from_numpy(np.array(wide, order="C"))
        return {_ARRAY: place, "dtype": str(value.dtype)}
    if isinstance(value, torch.Tensor):
        _refuse_twice(place, tensors)
        tensors[place] = _alone(value.detach().cpu().contiguous())
        return {_TENSOR: place}
    if isinstance(value, list | tuple):
        return [_split(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            f"${key}" if key.startswith("$") else key: _split(item, f"{place}.{key}", tensors)
            for key, item in value.items()
        }
    raise TypeError(
        f"{place} is a {type(value).__name__}: a checkpoint holds dictionaries with texts as keys, "
        "lists, numbers, texts, None, NumPy arrays and tensors."
    )


def _refuse_twice(place: str, tensors: Mapping[str, torch.Tensor]) -> None:
    if place in tensors:
        raise TypeError(f"{place} stands for two arrays: no key may hold a dot beside such a path.")


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is no part of a larger one, which a file would hold whole."""
    is_part = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if is_part else tensor


def whole_state(content: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that `split_state` split.

    Raises:
        LookupError: an array is missing.
        ValueError: it is not as `split_state` writes it.
    """
    if isinstance(content, list):
        return [whole_state(item, tensors) for item in content]
    if not isinstance(content, dict):
        return content
    if _FLOAT in content:
        return float(content[_FLOAT])
    if _TENSOR in content:
        return tensors[content[_TENSOR]]
    if _ARRAY in content:
        return tensors[content[_ARRAY]].numpy().astype(content["dtype"], copy=False)
    return {
        key.removeprefix("$") if key.startswith("$") else key: whole_state(item, tensors)
        for key, item in content.items()
    }
