"""The parts of a decode step (one new token for all slots) apart from the cache.

Inputs at fixed addresses, masks made on the device, and the capture of a step: on a GPU a CUDA
graph, one launch instead of some hundred; elsewhere steps run eagerly.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

__all__ = [
    "WIDTH_STEP",
    "CapturedSteps",
    "CudaGraphCapture",
    "StepCapture",
    "StepInputs",
    "attention_masks",
    "attention_windows",
    "autocast_state",
    "bucket_width",
    "eager_capture",
    "graph_capture",
    "no_capture",
    "sampling_mode",
    "storage_addresses",
    "to_device",
]

logger = logging.getLogger(__name__)

WIDTH_STEP = 64
"""Captured steps see a multiple of this many columns; GPU attention wants aligned masks as well."""

_WARM_UPS = 3


def bucket_width(columns: int) -> int:
    """`columns`, rounded up to a multiple of `WIDTH_STEP`."""
    return -(-columns // WIDTH_STEP) * WIDTH_STEP


def autocast_state(device_type: str) -> tuple[bool, torch.dtype]:
    """Whether autocast is on for a type of device, and in which dtype."""
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


def sampling_mode(trunk: torch.nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """The fastest mode without gradients that a trunk may run in.

    `inference_mode`, unless the trunk stores tensors of a forward (rotary embeddings that grow with
    the sequence): a training forward could not use inference tensors.
    """
    kinds = [str(getattr(module, "rope_type", "")) for module in trunk.modules()]
    grows = any("dynamic" in kind or "longrope" in kind for kind in kinds)
    return torch.no_grad if grows else torch.inference_mode


def storage_addresses(tensors: Iterable[torch.Tensor]) -> tuple[Any, ...]:
    """Identity of the memory of weights: it changes when a tensor moves, not when it is trained.

    Args:
        tensors: parameters and buffers.
    """
    return tuple((t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device, without the host waiting for the device."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def attention_windows(config: Any) -> dict[str, int | None]:
    """Layer type → sliding window (None: sees everything), for the layer types of a text config.

    Raises:
        ValueError: it has other kinds of attention.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types:
        layer_types = {"sliding_attention"} if window else {"full_attention"}
    unknown = layer_types - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"{config.model_type} has layers of type {', '.join(sorted(unknown))}, which the slot "
            "cache does not support; it supports full and sliding attention."
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(layer_types)}


def attention_masks(
    positions: torch.Tensor, width: int, windows: Mapping[str, int | None], dtype: torch.dtype
) -> Any:
    """Attention masks of a new token per slot, one for all layers or one per layer type.

    Nothing here waits for the device or reads from the host, so it can be captured. The masks are
    additive (0 or the lowest number of the dtype), because SDPA would convert a boolean mask in
    every layer.

    Args:
        positions: (N, 1) int64, each slot's newest column.
        width: columns of the cache that attention sees.
        windows: layer type → sliding window; None sees everything.
        dtype: dtype of the queries and keys.

    Returns:
        (N, 1, 1, width), or a dictionary of them where there are several layer types.
    """
    column = torch.arange(width, device=positions.device)[None, :]  # (1, width)
    masks = {}
    for layer_type, window in windows.items():
        is_hidden = column > positions  # (1, width) against (N, 1) → (N, width)
        if window is not None:
            is_hidden = is_hidden | (column <= positions - window)  # (N, width)
        mask = torch.zeros(is_hidden.shape, dtype=dtype, device=positions.device)
        mask.masked_fill_(is_hidden, torch.finfo(dtype).min)  # (N, width)
        masks[layer_type] = mask[:, None, None, :]  # (N, 1, 1, width)
    return masks if len(masks) > 1 else next(iter(masks.values()))


class StepInputs:
    """The inputs of a decode step, at addresses that never change.

    Args:
        num_slots: N.
        device: where the step runs.

    Attributes:
        tokens: (N, 1) int64 on the device, the newest token of each slot.
        positions: (N, 1), their positions.
        columns: (N, 1), where their keys and values go.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        with torch.inference_mode(False):  # inference tensors can't be written in other modes
            self._host = torch.zeros((3, num_slots), dtype=torch.int64, pin_memory=is_cuda)
            self._on_device = torch.zeros((3, num_slots), dtype=torch.int64, device=device)
            # Views: (3, N) → (3, N, 1) → three of (N, 1).
            self.tokens, self.positions, self.columns = self._on_device[:, :, None].unbind()
        self._values = self._host.numpy()  # (3, N), the memory of `_host`
        self._device = device
        self._uploaded = torch.cuda.Event() if is_cuda else None

    def upload(self, tokens: np.ndarray, positions: np.ndarray, columns: np.ndarray) -> None:
        """Fill all three, (N,) each, with one copy; the host does not wait for it."""
        if self._uploaded is not None and not self._uploaded.query():
            self._uploaded.synchronize()  # the copy before this one still reads the host's memory
        self._values[0], self._values[1], self._values[2] = tokens, positions, columns
        self._on_device.copy_(self._host, non_blocking=True)
        if self._uploaded is not None:
            self._uploaded.record(torch.cuda.current_stream(self._device))


class StepCapture(ABC):
    """Turns a step into one that can be replayed.

    A step reads and writes tensors that stay where they are, and gives the same when run twice.
    """

    @abstractmethod
    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats the work of `step`; an exception means: it can't be captured."""


@lru_cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams for warm-ups and captures: two per process, since each has a cuBLAS workspace."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


_CAPTURING = threading.Lock()
"""One capture at a time: how torch answers to waits for the device is a setting of the process."""


class CudaGraphCapture(StepCapture):
    """CUDA graphs that share one memory pool: only one of them may run at a time.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._warm_up_stream, self._capture_stream = _side_streams(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """The replay of a graph of `step`, captured after warm-up runs on a separate stream.

        The graph casts weights itself under autocast: cached casts are freed when it ends.
        """
        with _CAPTURING:
            return self._captured(step)

    def _captured(self, step: Callable[[], None]) -> Callable[[], None]:
        kind = self._device.type
        enabled, dtype = autocast_state(kind)
        with (
            torch.cuda.device(self._device),
            torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False),
        ):
            current = torch.cuda.current_stream()
            self._warm_up(step, current)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            random_state = generator.clone_state()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._capture_stream,
                    capture_error_mode="thread_local",  # other threads may use the device meanwhile
                ):
                    step()
            except Exception:
                # After a failed capture torch keeps its stream as the current one, and the state
                # of the generator still says that a capture is running.
                torch.cuda.set_stream(current)
                generator.graphsafe_set_state(random_state)
                raise
        return graph.replay

    def _warm_up(self, step: Callable[[], None], current: torch.cuda.Stream) -> None:
        """Run `step` on a side stream; the last run raises at waits for the device.

        A wait is the usual reason why a capture fails, and an error before the capture needs no
        cleaning up.
        """
        self._warm_up_stream.wait_stream(current)
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(self._warm_up_stream):
            for _ in range(_WARM_UPS - 1):
                step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(self._warm_up_stream)


def graph_capture(device: torch.device) -> StepCapture | None:
    """CUDA graphs on a CUDA device; None elsewhere: steps run eagerly."""
    return CudaGraphCapture(device) if device.type == "cuda" else None


def no_capture(device: torch.device) -> StepCapture | None:
    """None: steps run eagerly on every device."""
    return None


class _EagerSteps(StepCapture):
    """Steps that run as they are, at the widths that captured ones have: with the same result."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step itself."""
        return step


def eager_capture(
    capture: Callable[[torch.device], StepCapture | None],
) -> Callable[[torch.device], StepCapture | None]:
    """Like `capture`, but where that would capture steps they run eagerly, with the same shapes.

    For decoders that live for an episode, which is over before a capture has paid for itself.
    """
    return lambda device: None if capture(device) is None else _EagerSteps()


class CapturedSteps:
    """The captured steps of one decoder, by their width.

    Attributes:
        works: whether captures succeed; after the first failure no more are tried.
    """

    def __init__(self) -> None:
        self.works = True
        self._capture: StepCapture | None = None
        self._replays: dict[int, Callable[[], None]] = {}

    def reset(self, capture: StepCapture | None) -> None:
        """Drop all captured steps and capture new ones with `capture`; None: capture none."""
        self._replays.clear()
        self._capture = capture if self.works else None

    def fork(self) -> CapturedSteps:
        """Steps for a copy of the decoder, which writes to other memory: eager, of one shape."""
        twin = CapturedSteps()
        twin.works = self.works
        twin._capture = None if self._capture is None else _EagerSteps()
        return twin

    def run(self, width: int, step: Callable[[], None]) -> bool:
        """Replay the step of a width, captured from `step` the first time.

        Returns:
            Whether it worked. If not, running `step` eagerly still gives the right result.
        """
        if self._capture is None:
            return False
        replay = self._replays.get(width)
        if replay is None:
            try:
                replay = self._capture.capture(step)
            except Exception as error:  # an error of the model appears again in the eager forward
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning(
                    "the decode step can't be captured and runs eagerly from now on: %s", reason
                )
                self.works = False
                self.reset(None)
                return False
            self._replays[width] = replay
        replay()
        return True
