"""Models without weights, from a config alone."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from tokenenv.json_files import read_json_object
from tokenenv.models import build_language_model, check_config, freeze, prepare, quiet_loading
from tokenenv.tasks import model_source

__all__ = ["bytes_of", "language_model", "materialise", "model_config", "reward_model", "weights"]

_SIZES = {
    "vocab_size": "the size of the vocabulary",
    "hidden_size": "the width of the hidden states",
    "num_hidden_layers": "the number of layers",
    "num_attention_heads": "the number of attention heads",
    "intermediate_size": "the width inside of the feed-forward layers",
    "ffn_dim": "the width inside of the feed-forward layers",
}
"""Sizes that a config must say itself, by transformers' names: the defaults of its class are those
of some other model."""


def model_config(name: str, what: str) -> dict[str, Any]:
    """The config that `name` means.

    Args:
        name: path of a config.json, of a folder with one, or a bundled task.
        what: the argument that named it.

    Raises:
        ValueError: there is none, it is of no architecture that transformers knows, or it lacks
            sizes.
    """
    source = model_source(name, "reward_model" if what == "reward_model" else "reference")
    path = str(source)
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    if not os.path.isfile(path):
        raise ValueError(
            f"{what}={name!r} is neither a config.json nor a folder with one, and nothing is "
            "downloaded: fetch the config.json of a model of a hub (`hf download ID config.json`) "
            "and give its path."
        )
    content = read_json_object(Path(path), "what transformers writes", allow_nan=True)
    check_config(content, what, name)
    kind = content.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ValueError(
            f"{what}={name!r} has no 'model_type', so that it is no config of transformers: give "
            "the config.json that lies beside a model's weights."
        )
    try:
        made = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ValueError(
            f"{what}={name!r}: transformers knows no model_type={kind!r}. Update transformers if "
            "it is a new one; an architecture that comes with code of its own can't be trained "
            "here (docs/architectures.md lists those that were tested)."
        ) from error
    _check_sizes(content, made, what, name)
    return content


def _check_sizes(content: dict[str, Any], default: Any, what: str, name: str) -> None:
    """Raise ValueError where a config leaves a size to the defaults of its class."""
    if default.get_text_config() is not default:
        text = content.get("text_config")
        if not isinstance(text, dict):
            raise ValueError(f"{what}={name!r} has no 'text_config', which has its sizes.")
        content, default = text, default.get_text_config()
    names = type(default).attribute_map
    for size, words in _SIZES.items():
        key = names.get(size, size)
        if not isinstance(getattr(default, key, None), int):
            continue
        value = content.get(key, content.get(size))
        if value is None:
            raise ValueError(
                f"{what}={name!r} does not say {key!r}, {words}: give the whole config.json of the "
                "model, as transformers wrote it."
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 10**9:
            raise ValueError(
                f"{what}={name!r} has {key}={value!r:.40}, {words}: it must be a whole number of "
                "at least 1."
            )


def language_model(config: dict[str, Any], dtype: str, what: str, name: str) -> Any:
    """A causal LM on the meta device, prepared as a loaded one is.

    Raises:
        ValueError: transformers can't make one of `config`.
    """
    with torch.device("meta"):
        try:
            return build_language_model(copy.deepcopy(config), dtype)
        except Exception as error:  # of many kinds: whatever a model's class makes of its config
            raise _unusable(name, what, "causal language model", error) from error


def reward_model(config: dict[str, Any], dtype: torch.dtype, name: str) -> Any:
    """A frozen sequence classifier of one output on the meta device.

    Raises:
        ValueError: transformers can't make one of `config`.
    """
    try:
        with quiet_loading(), torch.device("meta"):
            made = AutoConfig.for_model(**copy.deepcopy(config))
            made.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(
                made, dtype=dtype, trust_remote_code=False
            )
    except Exception as error:  # as above
        raise _unusable(name, "reward_model", "sequence classifier", error) from error
    prepare(model)
    freeze(model)
    return model


def _unusable(name: str, what: str, kind: str, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    other = " For a reward that is no such model, give --reward-model none." * (kind[0] == "s")
    return ValueError(
        f"{what}={name!r} makes no {kind} of transformers ({reason:.200}): give the config of a "
        f"model that is one (docs/architectures.md).{other}"
    )


def materialise(model: nn.Module, made: dict[int, torch.Tensor]) -> None:
    """Move a model from the meta device to a CPU, without values; shared tensors stay shared.

    In `FakeTensorMode` the new tensors are fake as well.

    Args:
        model: changed in place.
        made: identity of a tensor → the one that takes its place; it is added to.
    """

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            like = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                like = nn.Parameter(like, requires_grad=tensor.requires_grad)
            made[id(tensor)] = like
        return made[id(tensor)]

    for module in model.modules():
        named: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for tensors in named:
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = moved(tensor)


def weights(model: nn.Module, trained: bool | None = None) -> list[torch.Tensor]:
    """Parameters of a model, each once; those that are trained, that are frozen, or all."""
    return [w for w in model.parameters() if trained is None or w.requires_grad == trained]


def bytes_of(tensors: Any) -> int:
    """Of tensors, each storage once."""
    return sum({id(t): t.nbytes for t in tensors}.values())
