"""The ranks that `torchrun` or `accelerate launch` started this process as.

Both set the same variables of the environment. `accelerate` makes the process group of them: NCCL
where every rank has a GPU, gloo elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np

from agents.scaling.ranks import ALONE, AgreedError, RankLost, Ranks
from agents.scaling.watch import PERIOD, Watch

__all__ = ["LaunchedRanks", "is_launched", "launched_ranks", "rank_of_environment"]

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a rank waits for others that are alive: an evaluation takes as long as it takes."""


def rank_of_environment() -> tuple[int, int]:
    """(rank, count) of this process as its launcher says; (0, 1) where there was none.

    Raises:
        ValueError: the variables are no whole numbers, or contradict each other.
    """
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, count = map(int, given)
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise ValueError(
            f"the environment says RANK={given[0]!r} and WORLD_SIZE={given[1]!r}: ranks are 0 to "
            "WORLD_SIZE - 1. Start it with torchrun or accelerate launch, or unset both."
        )
    return rank, count


def is_launched() -> bool:
    """Whether this process is one of several."""
    return rank_of_environment()[1] > 1


def launched_ranks(device: str = "auto") -> Ranks:
    """This process among those that were launched with it; alone, where there are none.

    Args:
        device: of the settings. `"auto"` and `"cuda"` become this rank's own GPU where there are
            GPUs.

    Raises:
        ValueError: `accelerate` is missing, or the device can't be shared out to ranks.
    """
    return LaunchedRanks(device) if is_launched() else ALONE


class LaunchedRanks(Ranks):
    """A process of several.

    Args:
        device: of the settings.
    """

    def __init__(self, device: str) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.count = rank_of_environment()
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        is_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if is_gpu and device not in ("auto", "cuda"):
            raise ValueError(
                f"device={device!r} for {self.count} ranks: each computes on a GPU of its own. "
                "Leave it out, or choose which GPUs there are with CUDA_VISIBLE_DEVICES."
            )
        if is_gpu and local >= torch.cuda.device_count():
            raise ValueError(
                f"rank {self.rank} is number {local} on its host, which has "
                f"{torch.cuda.device_count()} GPUs: start as many processes as GPUs, or pass "
                "--device cpu."
            )
        self.device = f"cuda:{local}" if is_gpu else device if device != "auto" else "cpu"
        self.state = _partial_state(not is_gpu)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.watch = Watch(_own_store(), self.rank, self.count)

    # Values --------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with self.talking():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def of_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        import torch.distributed as dist

        values = [value]
        with self.talking():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """The sums over the ranks, element by element, in float64 and in the order of ranks."""
        import torch
        import torch.distributed as dist

        own = torch.as_tensor(np.asarray(numbers, dtype=np.float64))
        rows = [torch.empty_like(own) for _ in range(self.count)]
        with self.talking():
            dist.all_gather(rows, own.contiguous(), group=self._group)
        return np.sum([row.numpy() for row in rows], axis=0)

    def agree(self, act: Callable[[], T]) -> T:
        """What `act` returns, where it raises on no rank."""
        result: Any = None
        said = ""
        try:
            result = act()
        except (ValueError, OSError) as error:
            said = str(error) or type(error).__name__
        errors = {rank: text for rank, text in enumerate(self.gather(said)) if text}
        if not errors:
            return result
        if len(errors) == self.count and len(set(errors.values())) == 1:
            raise AgreedError(next(iter(errors.values())))
        raise AgreedError(
            " ".join(f"rank {rank} of {self.count}: {text}" for rank, text in errors.items())
        )

    # Ends ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """A block with communication in it: RankLost, with the reason, where another is gone."""
        try:
            yield
        except RankLost:
            raise
        except RuntimeError as error:
            lost = self.watch.verdict(6 * PERIOD)
            if lost is None:
                raise
            raise RankLost(self._sentence(lost)) from error

    def why_stopped(self) -> str | None:
        """What is known of another rank that is gone, in a sentence; None: nothing."""
        lost = self.watch.verdict(4 * PERIOD)
        return None if lost is None else self._sentence(lost)

    def _sentence(self, lost: str) -> str:
        return f"{lost.rstrip('.')}. The other ranks stop."

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank ends, and why; it takes its time to save."""
        self.watch.is_ending = True
        if not isinstance(error, AgreedError | RankLost):
            said = " ".join(str(error).split())
            self.watch.fail(f"{said or type(error).__name__}")

    def leave(self, is_done: bool = True) -> None:
        """Stop watching the others, which know whether this rank has done its part."""
        self.watch.close(is_done)
        if is_done:
            self.state.destroy_process_group()


def _partial_state(cpu: bool) -> Any:
    """`accelerate`'s state of this process, with its process group."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ValueError(
            "several processes train through accelerate, which is not installed: pip install "
            "'tokenrlhf[ranks]' (or accelerate)."
        ) from error
    try:
        return PartialState(cpu=cpu, timeout=PATIENCE)
    except RuntimeError as error:  # of torch.distributed: a port in use, a host that is not there
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the processes can't meet at {place} ({reason}): give the launcher another port "
            "(--master-port; accelerate: --main_process_port), or an address that all hosts reach."
        ) from error


def _own_store() -> Any:
    """A further client of the store that the process group was made with.

    A client serves one request at a time, and that of the process group may wait for long.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    # A launcher that starts ranks again keeps its store, with the end of those before.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"tokenrlhf/{attempt}", store)
