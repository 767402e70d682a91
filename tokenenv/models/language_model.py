"""Loading causal language models: frozen ones once per process, trainable ones as copies.

`transformers` models are used through their public parts: the trunk (`base_model`) gives hidden
states, the output embedding turns the ones that are asked for into logits. So logits exist only
where a token is scored.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from tokenenv.json_files import read_json_object
from tokenenv.models.encoding import eos_ids_of, prompt_ids
from tokenenv.models.preparation import check_weights, prepare

__all__ = [
    "LanguageModel",
    "SharedLoader",
    "build_language_model",
    "check_config",
    "check_context",
    "freeze",
    "load_frozen",
    "load_trainable",
    "one_at_a_time",
    "output_folder",
    "output_logits",
    "pad_right",
    "quiet_loading",
    "resolve_device",
    "resolve_dtype",
    "trunk_hidden_states",
]

# A child forked after the parent has run torch hangs in its first parallel region: one thread
# avoids it, and a worker among several should use no more anyway.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

_LOADING = threading.RLock()
os.register_at_fork(
    before=_LOADING.acquire, after_in_parent=_LOADING.release, after_in_child=_LOADING.release
)

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Loaded = TypeVar("Loaded")

_HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?")


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

    def encode(self, text: str) -> np.ndarray:
        """(n,) int64 token ids of a prompt, as `tokenenv.models.encoding` says.

        Raises:
            ValueError: the text has words that the tokenizer does not know, and it can't spell.
        """
        try:
            ids = prompt_ids(self.tokenizer, text, self.eos_token_ids)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(
                f"the prompt {text[:60]!r} can't be encoded by the tokenizer of {self.name!r} "
                f"({error}): use words of its vocabulary, {self._some_words()}."
            ) from error
        return np.asarray(ids, dtype=np.int64)

    def _some_words(self, count: int = 10) -> str:
        words = [self.tokenizer.decode([i]) for i in range(min(count, len(self.tokenizer)))]
        plain = [word for word in words if word not in self.tokenizer.all_special_tokens]
        return ", ".join(plain) + (", …" if len(self.tokenizer) > count else "")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, special tokens left out."""
        listed = np.asarray(ids).tolist()
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


def resolve_device(device: str) -> str:
    """`"auto"` is the GPU where there is one; anything else goes to torch.

    Raises:
        ValueError: torch knows no such device here.
    """
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device={device!r} must be the name of a device: 'auto', 'cpu', 'cuda'.")
    device = str(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds shapes, and computes nothing")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} can't be used here ({reason}); try 'cpu'.") from error
    return device


def resolve_dtype(dtype: str) -> torch.dtype:
    """The torch dtype called `dtype`; ValueError with the allowed names otherwise."""
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown: choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one thread at a time load or build models.

    While transformers loads, it replaces torch's initialisers, its tying of weights and the
    default dtype for the whole process. Two threads that do so at once leave them replaced, and
    models built meanwhile stay uninitialised. A fork waits until nothing is half loaded.
    """
    with _LOADING:
        yield


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' bars and load reports off the console; their warnings are our errors.

    One thread at a time: these settings belong to the process.
    """
    with one_at_a_time():
        verbosity = transformers_logging.get_verbosity()
        had_bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if had_bar:
                transformers_logging.enable_progress_bar()


def output_folder(folder: Any) -> Path:
    """The folder that a model is to be written to; ValueError for an empty or invalid name.

    An empty name is the working directory to Python: an unset variable would fill that.
    """
    if not isinstance(folder, str | os.PathLike) or not str(os.fspath(folder)).strip():
        raise ValueError(f"folder={folder!r}: give the path of a folder to save to.")
    path = Path(os.fspath(folder))
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"folder={str(path)!r} is no folder: give another path to save to.")
    return path


def check_source(name: str, what: str) -> None:
    """Raise ValueError where `name` can be neither a model folder nor a hub id."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what}={name!r}: give a model's folder or hub id as a string.")
    # Of `os.path`, which answers False where `Path` raises: for names too long, for NUL in them.
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"{what}={name!r} is a folder without config.json: it holds no model.")
        with loading_errors(name, what):
            config = _read_json_of_transformers(Path(name) / "config.json")
        check_config(config, what, name)
    elif os.path.exists(name) or not _HUB_ID.fullmatch(name):
        raise ValueError(f"{what}={name!r} is neither a model's folder nor a hub id.")


MOST_LAYERS = 10_000
"""Limit for a config: transformers builds every layer before it reads weights."""


def check_config(config: dict[str, Any], what: str, name: str) -> None:
    """Raise ValueError for a config with so many layers that building them would never end.

    Args:
        config: as JSON or `to_dict` of a transformers config holds it.
        what: the argument that named it.
        name: where it is from.
    """
    for key, value in config.items():
        if isinstance(value, dict):  # of a part of the model
            check_config(value, what, name)
        elif "layer" in str(key) and isinstance(value, int | float) and value > MOST_LAYERS:
            raise ValueError(
                f"{what}={name!r} can't be loaded: its config says {key}={value!r:.40}, more than "
                f"the {MOST_LAYERS:,} that a model may have. Give a config of a real model."
            )


@contextlib.contextmanager
def loading_errors(name: str, what: str) -> Iterator[None]:
    """Turn errors of transformers for a bad source into a ValueError with the remedy."""
    try:
        yield
    except Exception as error:  # a broken folder raises the error of a file's parser
        reason = _broken_file(name) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{what}={name!r} can't be loaded: {reason} Give the folder of a transformers model, "
            "or a hub id that this machine has or can reach."
        ) from error


_READ_BY_TRANSFORMERS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""JSON objects in the folder of a model; other files there don't matter for loading."""


def _read_json_of_transformers(file: Path) -> dict[str, Any]:
    """The object in a file written by transformers: Infinity is a number there, as in Mamba's."""
    return read_json_object(file, "what transformers writes", allow_nan=True)


def _broken_file(name: str) -> str | None:
    """The defect of the first broken file that transformers reads in a model's folder, if any."""
    for file in (Path(name) / file for file in _READ_BY_TRANSFORMERS):
        if not os.path.exists(file):
            continue
        try:
            _read_json_of_transformers(file)
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"{str(file)!r} can't be read ({error.strerror})."
    return None


def load_tokenizer(name: str, what: str) -> Any:
    """The tokenizer in `name`; ValueError where there is none."""
    with quiet_loading(), loading_errors(name, what):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _folder_version(name: str) -> tuple[tuple[str, int, int], ...]:
    """The version of a model's folder: names, times and sizes of its files."""
    folder = Path(name)
    if not os.path.isdir(folder):
        return ()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats)


class SharedLoader(Generic[Loaded]):
    """The process-level cache of a loader: one model per name, device and dtype.

    A folder that has changed since is loaded again. If several threads request the same model, one
    loads it and the others wait.

    Args:
        load: (name, device, dtype) → the shared object.
    """

    def __init__(self, load: Callable[[str, str, str], Loaded]) -> None:
        update_wrapper(self, load)
        self._load = load
        self._cached = lru_cache(maxsize=16)(
            lambda name, device, dtype, _: load(name, device, dtype)
        )

    def __call__(self, name: str, device: str = "cpu", dtype: str = "float32") -> Loaded:
        """The result of `load` for these arguments, cached or new."""
        if not isinstance(name, str):
            return self._load(name, device, dtype)  # raises: it is no name
        with one_at_a_time():
            return self._cached(name, device, dtype, _folder_version(name))

    def cache_clear(self) -> None:
        """Forget all models; existing references stay valid."""
        self._cached.cache_clear()


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
    check_source(name, what)
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
    tokenizer = load_tokenizer(name, what)
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


def trunk_hidden_states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The trunk's last hidden states.

    Args:
        model: a transformers model with a trunk (`base_model`).
        tokens: (B, L) int64, sequences from column 0 and **right**-padded with any token: a causal
            trunk computes the same for the real tokens whatever stands behind them, with positions
            0, 1, …

    Returns:
        (B, L, h).
    """
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def output_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(…, V) logits of (…, h) hidden states, as the forward of the model computes them.

    They are float32, or float64 where the model is; under autocast the output layer still
    computes in the precision of its weights.
    """
    layer = model.get_output_embeddings()
    if torch.is_autocast_enabled(hidden.device.type):
        with torch.autocast(hidden.device.type, enabled=False):
            logits = layer(hidden.to(getattr(layer, "weight", hidden).dtype))
    else:
        logits = layer(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _check_logits(language_model: LanguageModel, what: str) -> None:
    """Refuse an architecture whose forward does more to its logits than `output_logits` does."""
    model = language_model.model
    tokens = torch.arange(4, device=language_model.device)[None, :] % language_model.vocabulary_size
    try:
        with torch.no_grad():
            expected = model(input_ids=tokens, use_cache=False).logits
            logits = output_logits(model, trunk_hidden_states(model, tokens))
    except Exception as error:  # whatever a forward raises that wants other inputs than token ids
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


def pad_right(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) int64 with each sequence from column 0, and their (B,) lengths.

    Each row is filled up with its first token: no pad token is needed, none can be mistaken.
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    tokens = np.empty((len(sequences), int(lengths.max(initial=1))), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row] = sequence[0]
        tokens[row, : len(sequence)] = sequence
    return tokens, lengths
