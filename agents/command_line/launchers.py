"""What trains several runs: processes of this machine, or tasks of ray.

Each run is `tokenrlhf train` in a process of its own, with one thread, and what it prints goes into
a log beside its folder. A signal is passed on once: every run stops and keeps what it has.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenenv.stop_signals import StopSignal, check_signals, hold_signals

__all__ = ["LAUNCHERS", "Job"]

PATIENCE = 60.0
"""Seconds that stopped runs have to write what they keep."""

Job = tuple[list[str], Path]
"""Arguments of `tokenrlhf`, and the file for what it prints."""


def run_local(jobs: Sequence[Job], workers: int | None) -> Iterator[tuple[int, int]]:
    """Do jobs in processes, so many at a time; the index and exit status of each as it ends.

    Args:
        jobs: what to do.
        workers: processes; None: one per core.

    Raises:
        KeyboardInterrupt: a signal came; all have stopped.
    """
    most = workers or _cores()
    waiting, running = list(enumerate(jobs))[::-1], dict[int, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                index, job = waiting.pop()
                with hold_signals():
                    running[index] = _start(job)
            time.sleep(0.1)
            check_signals()
            for index in [i for i, process in running.items() if process.poll() is not None]:
                yield index, running.pop(index).returncode
    finally:
        _stop(list(running.values()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(job: Job) -> subprocess.Popen[bytes]:
    arguments, log = job
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "agents.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,  # a terminal's Ctrl-C is passed on once, and not sent twice
        )


def _environment() -> dict[str, str]:
    """One thread each; modules are found where this process finds them."""
    path = os.pathsep.join(place for place in sys.path if place)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let runs that go on stop as they do at a signal; end those that do not."""
    if not processes:
        return
    number = signal.SIGTERM
    stopped = sys.exc_info()[1]
    if isinstance(stopped, StopSignal):
        number = signal.Signals(stopped.number)
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_ray(jobs: Sequence[Job], workers: int | None) -> Iterator[tuple[int, int]]:
    """Do jobs as tasks of ray, which places them; as `run_local`.

    A cluster is used where ray finds one (RAY_ADDRESS), and else one is started here. Its machines
    must see the folder of the runs, and have this package.

    Raises:
        ValueError: ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("launcher='ray' needs the package ray: pip install 'tokenrlhf[ray]'.")
    import ray

    was_there = ray.is_initialized()
    if not was_there:
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or _cores()}
        ray.init(log_to_driver=False, include_dashboard=False, **own)
    task = ray.remote(num_cpus=1, max_retries=0)(_in_a_task)
    places = {task.remote(job): index for index, job in enumerate(jobs)}
    try:
        while places:
            done, _ = ray.wait(list(places), timeout=0.5)
            check_signals()
            for place in done:
                yield places.pop(place), ray.get(place)
    finally:
        for place in places:
            ray.cancel(place, force=False)  # KeyboardInterrupt in the task
        if places:
            ray.wait(list(places), num_returns=len(places), timeout=PATIENCE)
        if not was_there:
            ray.shutdown()


def _in_a_task(job: Job) -> int:
    process = _start(job)
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        _stop([process])
    return process.returncode


LAUNCHERS: dict[str, Callable[[Sequence[Job], int | None], Iterator[tuple[int, int]]]] = {
    "local": run_local,
    "ray": run_ray,
}
"""Name → what does jobs."""
