"""Checks that the cached step of a model equals its plain forward, before anything relies on it.

A model may derive masks, positions or frequencies from the cache or from the longest sequence so
far, or carry something from step to step that is no key and no value. Then rows of different length
come out wrong, and where actor and reference share the fault even their KL does not show it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import torch

from tokenenv.memory import is_out_of_memory
from tokenenv.models.loading import one_at_a_time
from tokenenv.models.step_comparison import Fault, StepComparison, makes_logits

__all__ = ["TESTED_FAMILIES", "UnfaithfulModelError", "check_cached_step", "is_tested"]

TESTED_FAMILIES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
)
"""Model types that the tests compare with plain forwards; with settings that they cover, a model of
one of them is not checked again when it is loaded."""

_PROBE_PARAMETERS = 50_000_000
"""Models up to this size are checked as a float32 copy with weights that make attention matter:
those of a model that was never trained could hide a fault now and show it later."""

_SIZES = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim max_position_embeddings n_positions n_ctx n_embd n_layer n_head "
    "n_inner ffn_dim word_embed_proj_dim".split()
)
_WITHOUT_EFFECT = frozenset(
    "architectures transformers_version model_type dtype torch_dtype use_cache initializer_range "
    "id2label label2id problem_type return_dict output_attentions output_hidden_states "
    "chunk_size_feed_forward is_decoder is_encoder_decoder task_specific_params name_or_path "
    "_name_or_path reward_mean reward_std pretraining_tp attn_implementation layerdrop init_std "
    "tie_word_embeddings".split()
)
_WINDOWS = frozenset("sliding_window use_sliding_window max_window_layers layer_types".split())
_PLAIN_ROPE = frozenset(("rope_type", "rope_theta", "partial_rotary_factor"))


class UnfaithfulModelError(ValueError):
    """A model whose cached step, or whose forward over a padded batch, is not its plain forward."""


_passed: dict[str, int] = {}


def check_cached_step(
    model: Any, prompt_tokens: int, response_tokens: int, what: str, cached: bool = True
) -> None:
    """Refuse a model that can't be decoded token by token as its plain forward computes it.

    Three sequences of different length are decoded over the full P+T and compared with a
    forward of each alone, without cache and without padding; so is one forward of all three,
    padded on the right, as updates and deferred scoring compute it. Settings that the tests cover
    are taken as checked (`is_tested`), and so is a model with the config of one that has passed in
    this process at this length or a longer one.

    Args:
        model: a causal LM, or a trunk in a causal LM's shell (a critic).
        prompt_tokens: P.
        response_tokens: T.
        what: name of the model, for the message: `"reference 'gpt2'"`.
        cached: whether its cached step will be used, or whole sequences only.

    Raises:
        UnfaithfulModelError: they differ, or the model can't do it at all; it says which and why.
        MemoryError: there is no memory for the check (torch.OutOfMemoryError on a GPU).
    """
    if is_tested(model):
        return
    width = prompt_tokens + response_tokens
    key = _key(model, cached)
    with one_at_a_time():
        if _passed.get(key, 0) >= width:
            return
        fault = _find_fault(model, prompt_tokens, response_tokens, cached)
        if fault is None:
            _passed[key] = width
            return
    config = model.config.get_text_config()
    results = "log-probabilities" if makes_logits(model) else "values"
    raise UnfaithfulModelError(
        f"the {what} can't be used: {type(model).__name__} (model_type {config.model_type!r}) "
        f"{fault.reason}{fault.extent}. Its {results} would be wrong. Take a model of another "
        "architecture (docs/architectures.md lists those that were tested)"
        + (", or fewer tokens (max_prompt_tokens, max_new_tokens)." if fault.extent else ".")
    )


def is_tested(model: Any) -> bool:
    """Whether the tests cover a model's architecture with the settings of its config."""
    config = model.config
    if config.model_type not in TESTED_FAMILIES or type(model).__name__ not in _shell_names(model):
        return False
    if getattr(config, "_attn_implementation", None) not in (None, "sdpa", "eager"):
        return False
    default = type(config)().to_dict()
    for name, value in config.to_dict().items():
        if name in _SIZES | _WITHOUT_EFFECT or name.endswith(("_token_id", "_eps", "_epsilon")):
            continue
        if "dropout" in name or name.endswith("pdrop") or name.startswith("summary_"):
            continue
        if name in _WINDOWS:
            continue
        if name in ("rope_parameters", "rope_scaling"):
            if not _is_plain_rope(value):
                return False
        elif name != "rope_theta" and value != default.get(name):
            return False
    return True


def _shell_names(model: Any) -> tuple[str, ...]:
    """The class name of a model of transformers; empty for user classes: they may do anything."""
    is_transformers = type(model).__module__.startswith("transformers.models.")
    return (type(model).__name__,) if is_transformers else ()


def _is_plain_rope(parameters: Any) -> bool:
    """Whether rotary embeddings are the plain ones, for all layers or for each kind of them."""
    if not parameters:
        return True
    if all(isinstance(entry, dict) for entry in parameters.values()):
        return all(_is_plain_rope(entry) for entry in parameters.values())
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return kind == "default" and not set(parameters) - _PLAIN_ROPE


def _key(model: Any, cached: bool) -> str:
    config = model.config
    described = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "attention": getattr(config, "_attn_implementation", None),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "cached": cached,
        "has_logits": makes_logits(model),
        "config": config.to_dict(),
    }
    return json.dumps(described, sort_keys=True, default=str)


def _find_fault(model: Any, prompt: int, response: int, cached: bool) -> Fault | None:
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _full_float32():
            return StepComparison(_probe(model), prompt, response).fault(cached)
    except Exception as error:  # a model that fails here would fail later anyway
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Fault(f"can't be followed token by token ({reason})")


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever faster format a user has allowed."""
    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.mkldnn.matmul)
    allowed = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, allowed, strict=True):
            kind.fp32_precision = precision


def _probe(model: Any) -> Any:
    """The model that is checked in place of another; see `_PROBE_PARAMETERS`."""
    if sum(parameter.numel() for parameter in model.parameters()) > _PROBE_PARAMETERS:
        return model
    probe = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1.2 / parameter.shape[-1] ** 0.5, generator=generator)
    return probe
