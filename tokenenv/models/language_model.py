"""Loading causal language models: frozen ones once per process, trainable ones as copies.

`transformers` models are used through their public parts: the trunk (`base_model`) gives hidden
states, the output embedding turns the ones that are asked for into logits. So logits exist only
where a token is scored.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from tokenenv.memory import is_out_of_memory
from tokenenv.models.adapter_files import adapter_base, merge_adapter
from tokenenv.models.chat import ChatTemplate, end_of_turn_id
from tokenenv.models.encoding import eos_ids_of, prompt_ids
from tokenenv.models.forward import output_logits, trunk_hidden_states
from tokenenv.models.loading import (
    SharedLoader,
    check_config,
    check_source,
    check_tokenizer,
    is_adapter,
    load_tokenizer,
    loading_errors,
    one_at_a_time,
    quiet_loading,
    resolve_dtype,
)
from tokenenv.models.preparation import check_weights, prepare

__all__ = [
    "LanguageModel",
    "build_language_model",
    "check_complete",
    "check_context",
    "freeze",
    "load_frozen",
    "load_trainable",
]


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: the folder or hub id that it came from.
        model: the transformers model, dropout off, in eval mode.
        tokenizer: its tokenizer.
        eos_token_ids: the ids that end a response.
    """

    name: str
    model: Any
    tokenizer: Any
    eos_token_ids: tuple[int, ...]

    @property
    def vocabulary_size(self) -> int:
        """V, the rows of the output embedding (vocabularies may be padded)."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.model.device

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template of the tokenizer."""
        return ChatTemplate(self.tokenizer, self.name)

    @cached_property
    def _plain_end_of_turn(self) -> int | None:
        """The token that ends a turn, where the tokenizer does not count it as special."""
        end = end_of_turn_id(self.tokenizer)
        return None if end in self.tokenizer.all_special_ids else end

    def encode(self, text: str) -> np.ndarray:
        """(n,) int64 token ids of a prompt, as `tokenenv.models.encoding` says.

        Raises:
            ValueError: the text has words that the tokenizer does not know, and it can't spell.
        """
        with self._encoding("prompt", text):
            ids = prompt_ids(self.tokenizer, text, self.eos_token_ids)
            if ids and max(ids) >= self.model.get_input_embeddings().weight.shape[0]:
                raise ValueError(f"it gives the id {max(ids)}, which the model has no row for")
        return np.asarray(ids, dtype=np.int64)

    def encode_response(self, text: str) -> np.ndarray:
        """(n,) int64 token ids of a response: no special token before or after them.

        Raises:
            ValueError: the tokenizer does not know its words, or does not give the text back, so
                that the ids are another's.
        """
        with self._encoding("response", text):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        again = self.decode(ids)
        if again != text:
            raise ValueError(
                f"the response {text[:60]!r} comes back from the tokenizer of {self.name!r} as "
                f"{again[:60]!r}: give one that it can give back, with its spaces as the policy "
                "writes them (`tokenrlhf sample` shows some)."
            )
        return np.asarray(ids, dtype=np.int64)

    @contextlib.contextmanager
    def _encoding(self, what: str, text: str) -> Iterator[None]:
        """Errors of the tokenizer as ValueError, with words that it knows."""
        try:
            yield
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(
                f"the {what} {text[:60]!r} can't be encoded by the tokenizer of {self.name!r} "
                f"({error}): use words of its vocabulary, {self._some_words()}."
            ) from error

    def _some_words(self, count: int = 10) -> str:
        words = [self.tokenizer.decode([i]) for i in range(min(count, len(self.tokenizer)))]
        plain = [word for word in words if word not in self.tokenizer.all_special_tokens]
        return ", ".join(plain) + (", …" if len(self.tokenizer) > count else "")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, special tokens and the end of a turn left out."""
        listed = np.asarray(ids).tolist()
        if self._plain_end_of_turn is not None:
            listed = [i for i in listed if i != self._plain_end_of_turn]
        kind = type(self.tokenizer)
        if (kind.decode, kind._decode) == (
            PreTrainedTokenizerFast.decode,
            PreTrainedTokenizerFast._decode,
        ):
            # The same result; `decode` spends most of its time on looking at every id first.
            return self.tokenizer.backend_tokenizer.decode(listed, skip_special_tokens=True)
        return self.tokenizer.decode(
            listed, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@SharedLoader
def load_frozen(name: str, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """The causal LM in `name`, frozen; a second call with the same arguments shares it.

    Args:
        name: a transformers folder or hub id.
        device: a torch device (already resolved).
        dtype: "float32", "float64", "bfloat16" or "float16".

    Raises:
        ValueError: `name` holds no causal language model, or one whose weights are incomplete.
    """
    language_model = _load(name, device, dtype, "reference")
    freeze(language_model.model)
    return language_model


def load_trainable(name: str, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """A copy of the causal LM in `name` to train: never the cached one.

    Raises:
        ValueError: as `load_frozen`.
    """
    with one_at_a_time():
        return _load(name, device, dtype, "actor")


def _load(name: str, device: str, dtype: str, what: str) -> LanguageModel:
    model = _load_model(name, dtype, what)
    tokenizer = load_tokenizer(_with_tokenizer(name, what), what)
    check_tokenizer(tokenizer, model, name, what)
    with loading_errors(name, what):
        eos_ids = eos_ids_of(model, tokenizer)
    language_model = LanguageModel(name, model.to(device), tokenizer, eos_ids)
    prepare(model)
    if not language_model.eos_token_ids:
        raise ValueError(
            f"{what}={name!r} has no EOS token, neither in its config nor its tokenizer."
        )
    _check_logits(language_model, what)
    return language_model


def _load_model(name: str, dtype: str, what: str, adapters: tuple[str, ...] = ()) -> Any:
    """The transformers model in `name`, with all weights; an adapter is merged into its model.

    Args:
        name: folder or hub id.
        dtype: of the weights.
        what: the argument that named it.
        adapters: folders of adapters that led here, each adapting the next.
    """
    check_source(name, what, may_be_adapter=True)
    if os.path.isdir(name) and is_adapter(name):
        if name in adapters or len(adapters) >= MOST_ADAPTERS:
            raise ValueError(
                f"{what}={(adapters or (name,))[0]!r} is an adapter of an adapter, and so on, in a "
                "circle or without end: give one whose config names a model."
            )
        base = adapter_base(name, what)
        return merge_adapter(_load_model(base, dtype, what, (*adapters, name)), name, what)
    with quiet_loading(), loading_errors(name, what):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=resolve_dtype(dtype),
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_complete` refuses them by name
        )
    model, report = loaded
    check_complete(report, name, what)
    check_weights(model, name, what)
    return model


MOST_ADAPTERS = 16
"""Adapters upon each other, at most."""


def _with_tokenizer(name: str, what: str) -> str:
    """The place of a model's tokenizer: an adapter's folder may leave it to its model."""
    while os.path.isdir(name) and is_adapter(name):
        if os.path.isfile(os.path.join(name, "tokenizer_config.json")):
            return name
        name = adapter_base(name, what)
    return name


def build_language_model(config: dict[str, Any], dtype: str = "float32") -> Any:
    """A randomly initialised causal LM of a transformers config dictionary, dropout off.

    Raises:
        ValueError: it is no config of transformers.
    """
    with quiet_loading():
        try:
            check_config(config, "config", "a dictionary")
            made = AutoConfig.for_model(**copy.deepcopy(config))
        except Exception as error:  # of many kinds: whatever the config's class makes of it
            raise ValueError(
                f"config={config!r:.80} is no transformers config ({type(error).__name__}: "
                f"{error!s:.200}): it needs a known 'model_type' and that model's settings."
            ) from error
        model = AutoModelForCausalLM.from_config(
            made, dtype=resolve_dtype(dtype), trust_remote_code=False
        )
    prepare(model)
    return model


def check_complete(
    report: dict[str, Any], name: str, what: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Raise ValueError where a checkpoint leaves weights randomly initialised.

    Args:
        report: transformers' `output_loading_info`.
        name: where the weights came from.
        what: the argument that named it.
        may_miss: prefixes of the weights that may be missing (those of a new head).
    """
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    random = {k for k in [*report["missing_keys"], *mismatched] if not k.startswith(may_miss)}
    if random:
        listed = ", ".join(sorted(random)[:5])
        raise ValueError(
            f"{what}={name!r}: {len(random)} weights are missing from the checkpoint "
            f"or of another shape ({listed}), and would be left random. Give a complete checkpoint."
        )


def freeze(model: nn.Module) -> None:
    """No gradients, eval mode: for references and reward models."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _check_logits(language_model: LanguageModel, what: str) -> None:
    """Refuse an architecture whose forward does more to its logits than `output_logits` does."""
    model = language_model.model
    tokens = torch.arange(4, device=language_model.device)[None, :] % language_model.vocabulary_size
    try:
        with torch.no_grad():
            expected = model(input_ids=tokens, use_cache=False).logits
            logits = output_logits(model, trunk_hidden_states(model, tokens))
    except Exception as error:  # whatever a forward raises that wants other inputs than token ids
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{what}={language_model.name!r}: {type(model).__name__} has no trunk that makes "
            f"hidden states of token ids, and no linear layer that makes their logits ({reason}); "
            "use a model that has."
        ) from error
    if expected.shape != logits.shape or not torch.allclose(
        expected.to(logits.dtype), logits, rtol=1e-2, atol=1e-2
    ):
        raise ValueError(
            f"{what}={language_model.name!r}: {type(model).__name__} scales its logits in a way "
            "that tokenenv does not know; use a GPT-2, Llama, Qwen, Mistral, Gemma, GPT-NeoX or "
            "OPT model."
        )


def check_context(model: Any, tokens: int, what: str) -> None:
    """Raise ValueError where `tokens` tokens do not fit the positions that `model` knows."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"max_prompt_tokens + max_new_tokens = {tokens} exceeds the {limit} positions of the "
            f"{what}: lower one of them."
        )
