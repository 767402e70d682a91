"""Signals end the work as exceptions at a safe moment, and never get lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tokenenv import stop_signals as module
from tokenenv.stop_signals import StopSignal, check_signals, hold_signals, stop_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


pytestmark = pytest.mark.usefixtures("usual_signals")


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_a_keyboard_interrupt_with_the_status_of_a_shell(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, stop_signals():
        send(number)
    assert isinstance(raised.value, StopSignal)
    assert raised.value.exit_status == 128 + number and str(raised.value) == number.name
    assert signal.getsignal(number) is before


def test_a_held_signal_is_raised_when_the_writing_is_done():
    done = []
    with pytest.raises(StopSignal), stop_signals():
        with hold_signals(), hold_signals():
            send(signal.SIGTERM)
            done.append("written")
        done.append("not reached")
    assert done == ["written"]


def test_a_signal_whose_exception_was_caught_is_raised_at_the_next_check_but_not_by_tidying_up():
    with pytest.raises(StopSignal), stop_signals():
        with contextlib.suppress(BaseException):
            send(signal.SIGTERM)
        with hold_signals():
            pass
        check_signals()
        pytest.fail("not reached")


class Finalized:
    def __del__(self) -> None:
        send(signal.SIGTERM)


def test_a_signal_within_a_finalizer_is_raised_after_the_next_held_block(capfd):
    """Python discards what a finalizer raises, and would print it."""
    done = []
    hook = sys.unraisablehook
    with pytest.raises(StopSignal), stop_signals():
        thing = Finalized()
        del thing
        done.append("after the finalizer")
        with hold_signals():
            done.append("written")
        done.append("not reached")
    assert done == ["after the finalizer", "written"]
    assert capfd.readouterr().err == "" and sys.unraisablehook is hook


def test_other_errors_of_finalizers_are_shown_as_ever(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("of a finalizer")

    with stop_signals():
        thing = Broken()
        del thing
    assert [str(each.exc_value) for each in shown] == ["of a finalizer"]


def test_a_signal_of_an_earlier_block_is_forgotten():
    with pytest.raises(StopSignal), stop_signals():
        send(signal.SIGTERM)
    check_signals()
    assert not module.signal_is_pending()


def test_the_second_of_a_pair_changes_nothing_and_nesting_neither():
    with pytest.raises(StopSignal), stop_signals():
        try:
            with stop_signals():
                send(signal.SIGTERM)
        except StopSignal:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            raise


def test_other_threads_change_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stop_signals(), hold_signals():
            seen.append(signal.getsignal(signal.SIGTERM))
        check_signals()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


WAITS = """
import sys, time
from tokenenv.stop_signals import StopSignal, stop_signals
with stop_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except StopSignal as stop:
        if len(sys.argv) > 1:
            print("saving", flush=True)
            time.sleep(60)
        print("stopped by", stop, flush=True)
        sys.exit(stop.exit_status)
"""


def started(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(list(arguments), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_in_the_background_of_a_script_sigint_is_ignored_and_sigterm_is_not(tmp_path):
    """A shell without job control starts `command &` with SIGINT ignored."""
    (tmp_path / "waits.py").write_text(WAITS)
    script = f'"{sys.executable}" "{tmp_path}/waits.py" & pid=$!; read line; kill -INT $pid; '
    script += "sleep 0.3; kill -0 $pid && kill -TERM $pid; wait $pid; echo $?"
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    out, _ = process.communicate("go\n", timeout=60)
    # 143 alone is also what the shell says of a process that the signal has killed.
    assert out == "stopped by SIGTERM\n143\n"


def test_under_nohup_a_hangup_is_ignored_and_sigterm_is_not(tmp_path):
    process = started("nohup", sys.executable, "-c", WAITS)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_a_second_signal_ends_at_once():
    process = started(sys.executable, "-c", WAITS, "saving")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)  # the same request
    time.sleep(module.DOUBLE_SECONDS + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
