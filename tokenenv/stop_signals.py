"""SIGINT, SIGTERM and SIGHUP end the work in an orderly way: as exceptions, at a safe moment.

While `stop_signals()` is open, each of the three raises `StopSignal` (a `KeyboardInterrupt`) in the
main thread, so that every handler of Ctrl-C handles them all. A signal within a `hold_signals()`
block raises at the block's end, so files written there are whole. A second signal ends the process
at once; one within `DOUBLE_SECONDS` of the first is taken for the same request, since `timeout`,
shells and schedulers often send one twice (to the process and to its group).

An exception can get lost: Python discards one that is raised within a finalizer, and a library may
catch everything. So loops call `check_signals`, which raises a signal again.

SIGINT (`command &` in a script) and SIGHUP (`nohup`) stay ignored where that was inherited. SIGTERM
is then the only way to stop such a process, so it is never ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "DOUBLE_SECONDS",
    "StopSignal",
    "check_signals",
    "hold_signals",
    "signal_has_come",
    "signal_is_pending",
    "stop_signals",
    "stop_signals_are_handled",
]

DOUBLE_SECONDS = 1.0
"""Signals that follow the first within this time are the same request."""


class StopSignal(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        """The exit status of a process that this signal ended, as in shells: 128 + number."""
        return 128 + self.number


class _State:
    """The signal that the process has received, and whether it may be raised now."""

    def __init__(self) -> None:
        self.is_open = False
        self.holds = 0
        self.first: tuple[int, float] | None = None
        self.is_raised = False

    def handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = number, now
            self.raise_first()
        elif now - self.first[1] > DOUBLE_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def raise_first(self) -> None:
        if self.first is not None and not self.is_raised and not self.holds:
            self.is_raised = True
            raise StopSignal(self.first[0])

    def discarded(self, unraisable: Any, show: Callable[[Any], Any]) -> None:
        """Python has discarded an exception: if it was the signal's, it is raised later."""
        if isinstance(unraisable.exc_value, StopSignal):
            self.is_raised = False
        else:
            show(unraisable)


_state = _State()


def stop_signals_are_handled() -> bool:
    """Whether signals raise `StopSignal` now, so that no plain KeyboardInterrupt is a signal's."""
    return _state.is_open


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let the signals raise `StopSignal` in the block.

    In another thread than the main one, or within another such block, it changes nothing.
    """
    if _state.is_open or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.first, _state.is_raised = None, False
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    }
    show = sys.unraisablehook
    try:
        _state.is_open = True
        sys.unraisablehook = lambda unraisable: _state.discarded(unraisable, show)
        for number in before:
            signal.signal(number, _state.handle)
        yield
    finally:
        _state.is_open, _state.first = False, None
        sys.unraisablehook = show
        for number, handler in before.items():
            # None: it was set by other code than Python's
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let a signal that arrives in the block raise at its end; for writing files as a whole.

    An exception of the block itself is passed on instead; `check_signals` then raises the signal.
    One that was raised already is not raised again: the block may be part of the tidying up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.holds += 1
    try:
        yield
    finally:
        _state.holds -= 1
    _state.raise_first()


def signal_is_pending() -> bool:
    """Whether a signal waits for the end of a `hold_signals` block: work may be cut short."""
    return _state.first is not None and not _state.is_raised


def signal_has_come() -> bool:
    """Whether one of the signals has come, held or raised; asked from any thread."""
    return _state.first is not None


def check_signals() -> None:
    """Raise a signal that was held, or whose exception was lost.

    For a loop that a signal would have ended, not for what is done after one: where such a loop
    still runs, the exception that was raised has got lost on its way.
    """
    if threading.current_thread() is threading.main_thread():
        _state.is_raised = False
        _state.raise_first()
