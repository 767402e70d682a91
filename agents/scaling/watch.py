"""Watching the other ranks: one that dies or falls silent stops all, in seconds and with a reason.

Every rank has a thread that says it is alive, in the key-value store of `torch.distributed`, and
looks at the next rank: at its process where that is on the same host, at its sign of life
elsewhere. A collective operation may wait for hours, as when the first rank evaluates; a rank that
is gone is noticed all the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

__all__ = ["PERIOD", "SILENCE", "Watch"]

PERIOD = 0.5
"""Seconds between two looks."""

SILENCE = 12.0
"""Seconds without a sign of life after which a rank counts as gone."""

NOTICE = 4.0
"""Seconds in which a rank notices by itself that another is gone, before it gets a signal."""

LAST = 6.0
"""Seconds after the signal in which it may save what it has; then it is ended."""

_STATUS = 75
"""Exit status of a rank that was ended so: EX_TEMPFAIL, as another try may succeed."""


class Watch:
    """The sign of life of this rank, and a look at the next one, until `close`.

    Args:
        store: of `torch.distributed`, a client of this thread's own.
        rank: this one.
        count: of ranks.

    Attributes:
        lost: what is known of a rank that is gone; None: nothing.
        is_noticed: whether the main thread has dealt with it.
        is_ending: whether this rank ends by itself, however long it saves.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self.store, self.rank, self.count = store, rank, count
        self.next = (rank + 1) % count
        self.lost: str | None = None
        self.is_noticed = self.is_ending = False
        self._closed = threading.Event()
        self._found = threading.Event()
        store.set(f"where/{rank}", f"{os.getpid()} {socket.gethostname()}")
        store.set(f"beat/{rank}", "0")
        process, _, host = store.get(f"where/{self.next}").decode().partition(" ")
        self.process, self.host = int(process), host
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    def close(self, is_done: bool = True) -> None:
        """Stop watching; a rank that is done is not missed from now on."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(2 * PERIOD)
        if is_done:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"done/{self.rank}", "1")

    def fail(self, reason: str) -> None:
        """Let the others know that this rank ends, and why; the first reason of all counts."""
        with contextlib.suppress(RuntimeError):
            self.store.compare_set("fault", "", f"rank {self.rank} of {self.count}: {reason}")

    def verdict(self, seconds: float) -> str | None:
        """What is known of a rank that is gone; waits so long for it to be known."""
        self.is_noticed = True
        self._found.wait(seconds)
        if self.lost is None:
            self.is_noticed = False
        return self.lost

    # The thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        beat, seen, since = 0, b"", time.monotonic()
        while not self._closed.wait(PERIOD):
            try:
                beat += 1
                self.store.set(f"beat/{self.rank}", str(beat))
                if self.store.check(["fault"]):
                    self._end(self.store.get("fault").decode())
                    return
                if self.store.check([f"done/{self.next}"]):
                    continue
                last = self.store.get(f"beat/{self.next}")
            except RuntimeError:  # the store is of the launcher, or of the first rank
                self._end(
                    f"rank {self.rank} of {self.count} has lost the launcher's store, with which "
                    "the first rank or its host are gone"
                )
                return
            if last != seen:
                seen, since = last, time.monotonic()
            if reason := self._why_gone(time.monotonic() - since):
                self.store.compare_set("fault", "", reason)
                self._end(reason)
                return

    def _why_gone(self, silent: float) -> str | None:
        """A sentence about the next rank, where it is gone."""
        who = f"rank {self.next} of {self.count} (process {self.process} on {self.host})"
        if self.host == socket.gethostname() and not _is_running(self.process):
            return f"{who} is gone: it ended without a word, as a process does that is killed"
        if silent > SILENCE:
            return f"{who} has been silent for {silent:.0f} s: it hangs, or its host is gone"
        return None

    def _end(self, reason: str) -> None:
        """Let the main thread know; end the process where it does not act."""
        self.lost = reason
        self._found.set()
        if self._closed.wait(NOTICE) or self.is_noticed or self.is_ending:
            return
        from tokenenv.stop_signals import signal_has_come

        if not signal_has_come():  # a second one would not let it save
            os.kill(os.getpid(), signal.SIGTERM)
        if self._closed.wait(LAST) or self.is_noticed or self.is_ending:
            return
        sys.stderr.write(
            f"error: {reason}. Rank {self.rank} waited for it, and ends. A run goes on from its "
            "last checkpoint with --resume.\n"
        )
        sys.stderr.flush()
        os._exit(_STATUS)


def _is_running(process: int) -> bool:
    """Whether a process of this host is running; one that has ended and is not collected is not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # no such files on this system
        return True
