"""Calls of user functions: errors name the function and the place in the user's file."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from tokenenv.stop_signals import StopSignal, stop_signals_are_handled

__all__ = ["UserCodeError", "user_code"]


class UserCodeError(ValueError):
    """A user function raised; the message names the function, the error and the place.

    The exception of the function is the `__cause__`.
    """


@contextlib.contextmanager
def user_code(name: str, function: Any) -> Iterator[None]:
    """Turn exceptions of `function` in the block into a `UserCodeError`.

    `SystemExit` included, and a `KeyboardInterrupt` where `tokenenv.stop_signals` are handled: then
    it is known that it came from no signal. `GeneratorExit` and signals pass through.

    Args:
        name: its name in the message.
        function: the user's; the place of the error is looked for in its file.
    """
    try:
        yield
    except (StopSignal, GeneratorExit, UserCodeError):
        raise
    except KeyboardInterrupt as error:
        if not stop_signals_are_handled():
            raise
        raise _failed(name, function, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, function, error) from error


def _failed(name: str, function: Any, error: BaseException) -> UserCodeError:
    said = " ".join(str(error).split())
    what = type(error).__name__ + (f": {said}" if said else "")
    return UserCodeError(f"{name} failed with {what} (at {_place(function, error.__traceback__)}).")


def _place(function: Any, raised: TracebackType | None) -> str:
    """`file:line` of the innermost frame in the user's file; of the outermost where none is."""
    frames = traceback.extract_tb(raised)[1:]  # without the block that called it
    try:
        file = inspect.getsourcefile(inspect.unwrap(function)) or ""
    except TypeError:  # an object with __call__
        try:
            file = inspect.getsourcefile(type(function)) or ""
        except TypeError:
            file = ""
    user_frames = [frame for frame in frames if frame.filename == file]
    shown = user_frames[-1:] or frames[:1]
    return f"{shown[0].filename}:{shown[0].lineno}" if shown else "its call"
