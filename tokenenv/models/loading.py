"""What a model's name may be, and loading: one model at a time, quietly, with errors that help."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from tokenenv.json_files import read_json_object
from tokenenv.memory import is_out_of_memory

__all__ = [
    "ADAPTER_CONFIG",
    "SharedLoader",
    "check_config",
    "check_source",
    "check_tokenizer",
    "is_adapter",
    "load_tokenizer",
    "loading_errors",
    "one_at_a_time",
    "output_folder",
    "quiet_loading",
    "resolve_device",
    "resolve_dtype",
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


def check_source(name: str, what: str, may_be_adapter: bool = False) -> None:
    """Raise ValueError where `name` can be neither a model folder nor a hub id.

    Args:
        name: of a model.
        what: the argument that named it.
        may_be_adapter: whether the folder of an adapter will do, which has no model of its own.
    """
    if isinstance(name, torch.nn.Module):
        raise ValueError(
            f"{what} is a {type(name).__name__}, a torch module: save it with save_pretrained, and "
            "give its folder."
        )
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what}={name!r}: give a model's folder or hub id as a string.")
    # Of `os.path`, which answers False where `Path` raises: for names too long, for NUL in them.
    if os.path.isdir(name):
        if is_adapter(name):
            if may_be_adapter:
                return  # its model is checked when it is loaded
            raise ValueError(
                f"{what}={name!r} is the folder of an adapter, which only an actor and a reference "
                "may be: merge it into its model (peft's merge_and_unload), save that, and give "
                "its folder."
            )
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"{what}={name!r} is a folder without config.json: it holds no model.")
        with loading_errors(name, what):
            config = _read_json_of_transformers(Path(name) / "config.json")
        check_config(config, what, name)
    elif os.path.exists(name) or not _HUB_ID.fullmatch(name):
        raise ValueError(f"{what}={name!r} is neither a model's folder nor a hub id.")


ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter of peft, and no model of its own."""
    return os.path.isfile(os.path.join(name, ADAPTER_CONFIG))


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
        if is_out_of_memory(error):
            raise
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


def check_tokenizer(tokenizer: Any, model: Any, name: str, what: str) -> None:
    """Raise ValueError for a tokenizer that has more tokens than the model reads: it is another's.

    Tokens that were added to a tokenizer afterwards are not counted: some have a pad token that the
    model lacks, and that no text holds.

    Args:
        tokenizer: of transformers.
        model: whose input embedding has a row for each token.
        name: where both came from.
        what: the argument that named it.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if int(tokenizer.vocab_size) > rows:
        raise ValueError(
            f"{what}={name!r}: its tokenizer has {tokenizer.vocab_size:,} tokens and its model "
            f"reads {rows:,}: it is the tokenizer of another model. Put the model's own tokenizer "
            "into the folder."
        )


def _folder_version(name: str) -> tuple[tuple[str, int, int], ...]:
    """The version of a model's folder: names, times and sizes of its files.

    Of an adapter, also those of the model that it adapts.
    """
    versions: list[tuple[str, int, int]] = []
    places: list[str] = []
    while os.path.isdir(name) and name not in places:
        places.append(name)
        files = [path for path in sorted(Path(name).iterdir()) if path.is_file()]
        versions += [(f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files]
        if not is_adapter(name):
            break
        try:
            base = json.loads((Path(name) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            base = str(base["base_model_name_or_path"])
        except (OSError, ValueError, LookupError, TypeError):
            break  # loading says what is wrong with it
        name = base if os.path.isdir(base) else os.path.join(name, base)
    return tuple(versions)


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
        self._devices: dict[tuple[str, str], str] = {}
        self._cached = lru_cache(maxsize=16)(
            lambda name, device, dtype, _: load(name, device, dtype)
        )

    def __call__(self, name: str, device: str = "cpu", dtype: str = "float32") -> Loaded:
        """The result of `load` for these arguments, cached or new."""
        if not isinstance(name, str):
            return self._load(name, device, dtype)  # raises: it is no name
        with one_at_a_time():
            loaded = self._cached(name, device, dtype, _folder_version(name))
            self._devices[name, dtype] = device
            return loaded

    def device_of(self, name: str, dtype: str) -> str | None:
        """The device that a model was last loaded to, with this name and dtype; None: to none."""
        return self._devices.get((name, dtype))

    def cache_clear(self) -> None:
        """Forget all models; existing references stay valid."""
        self._cached.cache_clear()
        self._devices.clear()
