"""Whether a model's cached step is its plain forward: found out before anything relies on it.

A model may derive masks, positions or frequencies from the cache or from the longest sequence so
far, or carry something from step to step that is no key and no value. Then rows of different length
come out wrong, and where actor and reference share the fault even their KL says nothing of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.language_model import one_at_a_time, output_logits, pad_right, trunk_hidden_states
from tokenenv.slot_cache import SlotDecoder

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

_TOLERANCE = 1e-4
"""Of log-probabilities, in nats, in float32: rounding is 1e-5 at the most in the tests' models."""

_MEAN_KL = {torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""In half precision, where rounding makes single log-probabilities differ by more than a fault
would: the mean KL of the cached from the plain distribution, in nats."""

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


@dataclass(frozen=True, slots=True)
class _Fault:
    """What was found.

    Attributes:
        reason: a clause on what the model does.
        size: of the difference in nats; None where there was an error instead.
    """

    reason: str
    size: float | None = None


_passed: dict[str, int] = {}


def check_cached_step(
    model: Any, prompt_tokens: int, response_tokens: int, what: str, cached: bool = True
) -> None:
    """Refuse a model that can't be decoded token by token as its plain forward computes it.

    Three sequences of different length are decoded over the full P+T and compared with the model's
    own forward of each alone, without cache and without padding; so is one forward of all three,
    padded on the right, as updates and deferred scoring compute it. Settings that the tests cover
    are taken as checked (`is_tested`), and so is a model with the config of one that has passed in
    this process at this length or a longer one.

    Args:
        model: a causal LM, or a trunk in a causal LM's shell (a critic).
        prompt_tokens: P.
        response_tokens: T.
        what: what the model is, for the message: `"reference 'gpt2'"`.
        cached: whether its cached step will be used, or whole sequences only.

    Raises:
        UnfaithfulModelError: they differ, or the model can't do it at all; it says which and why.
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
    differs = "" if fault.size is None else f", by {fault.size:.2g} nats at the most"
    raise UnfaithfulModelError(
        f"the {what} can't be used: {type(model).__name__} (model_type {config.model_type!r}) "
        f"{fault.reason}{differs}. Its log-probabilities would be wrong. Take a model of another "
        "architecture (docs/architectures.md lists those that were tested)"
        + (", or fewer tokens (max_prompt_tokens, max_new_tokens)." if fault.size else ".")
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
    """Of transformers' own classes: a subclass by a user may compute anything."""
    own = type(model).__module__.startswith("transformers.models.")
    return (type(model).__name__,) if own else ()


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
        "config": config.to_dict(),
    }
    return json.dumps(described, sort_keys=True, default=str)


# The comparison ----------------------------------------------------------------------------------


def _find_fault(model: Any, prompt: int, response: int, cached: bool) -> _Fault | None:
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return _Comparison(_probe(model), prompt, response).fault(cached)
    except Exception as error:  # a model that fails here would fail later, in its own words
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _Fault(f"can't be followed token by token ({reason})")


def _probe(model: Any) -> Any:
    """What is checked in a model's place; see `_PROBE_PARAMETERS`."""
    if sum(parameter.numel() for parameter in model.parameters()) > _PROBE_PARAMETERS:
        return model
    probe = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1.2 / parameter.shape[-1] ** 0.5, generator=generator)
    return probe


class _Comparison:
    """One model, a few sequences, and what it makes of them plainly.

    Args:
        model: what is checked.
        prompt: P.
        response: T.
    """

    def __init__(self, model: Any, prompt: int, response: int) -> None:
        self.model = model
        self.width = prompt + response
        self.has_logits = hasattr(model.get_output_embeddings(), "weight")
        vocabulary = model.get_input_embeddings().weight.shape[0]
        rng = np.random.default_rng(0)
        self.prompts = [prompt, -(-prompt // 2), 1]
        self.rows = [rng.integers(0, vocabulary, size=n + response) for n in self.prompts]
        self.plain = [self._plain(row) for row in self.rows]

    def fault(self, cached: bool) -> _Fault | None:
        """What is wrong; None where nothing is."""
        if not all(bool(outputs.isfinite().all()) for outputs in self.plain):
            return None  # weights that have diverged: sampling says so
        size = self._prefixes()
        if size is not None:
            return _Fault(
                "makes something else of a token when others follow it: it is not causal, or its "
                "positions follow the longest sequence",
                size,
            )
        size = self._padded()
        if size is not None:
            return _Fault(
                "makes something else of a sequence in a batch, or does more to its logits than "
                "tokenenv knows",
                size,
            )
        size = self._decoded() if cached else None
        if size is not None:
            return _Fault(
                "makes something else of a sequence token by token: it derives masks, positions "
                "or frequencies from its cache or from the longest sequence",
                size,
            )
        return None

    def _plain(self, row: np.ndarray) -> torch.Tensor:
        """(L, V) log-probabilities by transformers' own forward, or (L, h) hidden states."""
        tokens = torch.as_tensor(row, device=self.model.device)[None]
        if not self.has_logits:
            return self._outputs(trunk_hidden_states(self.model, tokens))[0]
        logits = self.model(input_ids=tokens, use_cache=False).logits[0]
        return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)

    def _outputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same of hidden states, as tokenenv makes them; of states alone, in their units."""
        if self.has_logits:
            return torch.log_softmax(output_logits(self.model, hidden), -1)
        return hidden.float() / hidden.float().abs().max().clamp(min=1.0)

    def _prefixes(self) -> float | None:
        row, plain = self.rows[0], self.plain[0]
        for length in sorted({1, len(row) // 2, len(row) - 1} - {0}):
            size = self._difference(self._plain(row[:length])[-1:], plain[length - 1 : length])
            if size is not None:
                return size
        return None

    def _padded(self) -> float | None:
        tokens, _ = pad_right(self.rows)
        hidden = trunk_hidden_states(self.model, torch.as_tensor(tokens, device=self.model.device))
        outputs = self._outputs(hidden)
        found = torch.cat([outputs[i, : len(row)] for i, row in enumerate(self.rows)])
        return self._difference(found, torch.cat(self.plain))

    def _decoded(self) -> float | None:
        decoder = SlotDecoder(self.model, len(self.rows), self.width, graphs=False)
        found, expected = [], []
        for step, observations in enumerate(self._observations()):
            found.append(self._outputs(decoder.hidden_states(observations)))
            ends = [n + step - 1 for n in self.prompts]
            expected.append(torch.stack([p[e] for p, e in zip(self.plain, ends, strict=True)]))
        return self._difference(torch.cat(found), torch.cat(expected))

    def _observations(self) -> Iterator[np.ndarray]:
        """(3, P+T), one after the other, as an environment would show them."""
        shown = np.full((len(self.rows), self.width), NO_TOKEN, dtype=np.int64)
        start = self.prompts[0]
        for row, sequence, length in zip(shown, self.rows, self.prompts, strict=True):
            row[start - length : start] = sequence[:length]
        yield shown
        for step in range(self.width - start):
            for row, sequence, length in zip(shown, self.rows, self.prompts, strict=True):
                row[start + step] = sequence[length + step]
            yield shown

    def _difference(self, found: torch.Tensor, expected: torch.Tensor) -> float | None:
        """The largest difference, where it is more than rounding; else None."""
        if found.shape != expected.shape:
            raise ValueError(f"{tuple(found.shape)} log-probabilities of {tuple(expected.shape)}")
        size = float((found - expected).abs().max())
        mean_kl = _MEAN_KL.get(self.model.dtype)
        if mean_kl is not None and self.has_logits:
            kl = float((expected.exp() * (expected - found)).sum(-1).mean())
            return None if abs(kl) <= mean_kl and np.isfinite(size) else size
        scale = max(1.0, float(expected.abs().max()) / 20.0)
        return None if size <= _TOLERANCE * scale else size
