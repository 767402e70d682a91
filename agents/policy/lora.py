"""A policy whose actor is a low-rank adapter over frozen weights that it shares.

With `lora`, the actor is a module tree of its own over the tensors of the frozen model that the
environment has as its reference (`tokenenv.models.copy_sharing_frozen`): no second copy is in
memory, and π = π_ref to the last bit until the first update. State dicts and folders hold the
adapter, not the frozen weights; a digest tells whether those are still the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from tokenenv.models import (
    LanguageModel,
    LoraSettings,
    add_lora,
    contents_digest,
    copy_sharing_frozen,
    is_adapter_weight,
    load_frozen,
)

__all__ = ["check_digest", "leave_out_frozen", "load_adapted", "lora_kwargs", "lora_settings"]


def lora_settings(lora: dict[str, Any] | None) -> tuple[LoraSettings | None, dict[str, str]]:
    """The settings in `policy_kwargs["lora"]`, and the digests of the weights that they belong to.

    Raises:
        ValueError: they are no settings of an adapter.
    """
    if lora is None:
        return None, {}
    allowed = "rank, and if wanted alpha and target_modules"
    if not isinstance(lora, dict):
        raise ValueError(f"lora={lora!r:.60} must be a dict with {allowed}.")
    values = dict(lora)
    digests: dict[str, str] = {
        name: values.pop(name) for name in ("actor_digest", "critic_digest") if name in lora
    }
    try:
        return LoraSettings(**values), digests
    except TypeError:
        raise ValueError(f"lora={lora!r:.100} must be a dict with {allowed}.") from None


def lora_kwargs(settings: LoraSettings, actor: Any, critic: Any | None) -> dict[str, Any]:
    """The entry in `policy_kwargs` that makes the same adapters over the same weights; JSON.

    Args:
        settings: of the adapters.
        actor: the adapted model.
        critic: that of a separate critic, if there is one.
    """
    values = asdict(settings)
    if settings.target_modules is not None:
        values["target_modules"] = list(settings.target_modules)
    digests = {"actor_digest": _digest(actor)}
    if critic is not None:
        digests["critic_digest"] = _digest(critic)
    return {**values, **digests}


def _digest(model: Any) -> str:
    """Of the weights of a model that are none of its adapter's."""
    return contents_digest(
        (name, weight) for name, weight in model.named_parameters() if not is_adapter_weight(name)
    )


def check_digest(model: Any, digest: str | None, what: str) -> None:
    """Raise ValueError where frozen weights are not those that an adapter was trained on.

    Args:
        model: adapted.
        digest: of the frozen weights at the time; None: any will do.
        what: which model it is.
    """
    if digest is not None and _digest(model) != digest:
        raise ValueError(
            f"{what} is not the model that the adapter was trained on: its weights have changed "
            "since. Restore them; where the whole policy was saved (policy/ of a run), the actor "
            "is there as a merged model as well."
        )


def load_adapted(name: str, dtype: str, settings: LoraSettings) -> LanguageModel:
    """The model in `name` with a new adapter, over the weights of the shared frozen one.

    Args:
        name: folder or hub id.
        dtype: of the frozen weights.
        settings: of the adapter.

    Raises:
        ValueError: the model can't be used or adapted.
    """
    device = load_frozen.device_of(name, dtype) or "cpu"
    frozen = load_frozen(name, device, dtype)
    model = add_lora(copy_sharing_frozen(frozen.model), settings, f"actor={name!r}")
    return LanguageModel(name, model, frozen.tokenizer, frozen.eos_token_ids)


def leave_out_frozen(policy: nn.Module, models: dict[str, Any]) -> None:
    """Let a policy's state dict hold the adapters of its models, not the frozen weights.

    Loading takes the frozen ones as they are. Where a whole state dict is loaded, they are first
    separated from the tensors that other models share.

    Args:
        policy: changed in place.
        models: adapted models by the name that they have in the policy, a dot behind it.
    """
    frozen = {
        prefix + name
        for prefix, model in models.items()
        for name in model.state_dict()
        if not is_adapter_weight(name)
    }

    def leave_out(_module: nn.Module, state: dict[str, Any], prefix: str, _local: Any) -> None:
        for name in [name for name in state if name.removeprefix(prefix) in frozen]:
            del state[name]

    def fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        weights = module.named_parameters(remove_duplicate=False)  # tied ones have two names
        for name, tensor in [*weights, *module.named_buffers(remove_duplicate=False)]:
            if name not in frozen:
                continue
            if prefix + name in state:
                tensor.data = tensor.data.clone()
            else:
                state[prefix + name] = tensor.data

    policy.register_state_dict_post_hook(leave_out)
    policy.register_load_state_dict_pre_hook(fill_in)
