"""Doing the jobs of a comparison: in parallel processes, each result kept at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from agents.compare.jobs import Job, run_job
from agents.console import literal
from tokenenv.stop_signals import check_signals, hold_signals

__all__ = ["do_jobs", "libraries_first"]

_steps: Any = None
"""In a worker: the queue that takes (job name, steps)."""


def do_jobs(
    jobs: Sequence[Job],
    root: Path,
    workers: int | None,
    console: Console,
    on_finished: Callable[[], None] = lambda: None,
) -> None:
    """Do all jobs; each writes a file when it is finished.

    Args:
        jobs: what is to do.
        root: folder of the comparison.
        workers: processes; None: one per core. One alone works in this process.
        console: where progress is shown.
        on_finished: called after each job that has left its result.

    Raises:
        KeyboardInterrupt: by Ctrl-C or another signal; what is finished is kept.
        Exception: what went wrong in a job, once the others are finished.
    """
    if not jobs:
        return
    count = min(workers or os.cpu_count() or 1, len(jobs))
    with _Display(jobs, console, on_finished) as display:
        if count == 1:
            for job in jobs:
                run_job(job, root, display.add)
                display.finished(job)
        else:
            with libraries_first():
                _in_processes(jobs, root, count, display)


@contextlib.contextmanager
def libraries_first() -> Iterator[None]:
    """Let new interpreters find no module of the working directory before the libraries'.

    They start with that folder in front until they receive this process's `sys.path`. Python 3.10
    can't avoid it.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _in_processes(jobs: Sequence[Job], root: Path, count: int, display: _Display) -> None:
    """A new interpreter per process: a fork of one that has run torch may hang."""
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    pool = ProcessPoolExecutor(count, context, initializer=_begin_worker, initargs=(steps,))
    try:
        with hold_signals(), _children_without(_ANSWERED):  # a submission may start a process
            futures = {pool.submit(_work, job, root): job for job in jobs}
        for job, future in _as_they_finish(futures, lambda: _drain(steps, display)):
            if future.exception() is None:
                display.finished(job)
            else:
                display.failed(job, future.exception())
    except BaseException:
        with hold_signals():
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()  # a result is written in one step, so none is half there
        raise
    pool.shutdown()
    for future in futures:
        future.result()


_ANSWERED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the parent answers for its workers; a terminal and a scheduler send them to all."""


@contextlib.contextmanager
def _children_without(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Start processes in the block that do not see these signals, not even while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_they_finish(
    futures: dict[Future, Job], between: Callable[[], None]
) -> Iterator[tuple[Job, Future]]:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        between()
        check_signals()
        for future in done:
            yield futures[future], future


def _drain(steps: Any, display: _Display) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            display.add(steps.get_nowait())


def _begin_worker(steps: Any) -> None:
    """Signals are the parent's to answer, and without a parent there is nothing to do."""
    global _steps
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in _ANSWERED:
        signal.signal(number, signal.SIG_IGN)
    _steps = steps


def _end_with_parent() -> None:
    """Exit when the parent is gone, even by SIGKILL: there is no use for the results."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job, root: Path) -> None:
    run_job(job, root, _steps.put)


class _Display:
    """A bar over the steps of all runs; a line per finished job where there is no terminal."""

    def __init__(
        self, jobs: Sequence[Job], console: Console, on_finished: Callable[[], None]
    ) -> None:
        self.console, self.total, self.done = console, len(jobs), 0
        self.on_finished = on_finished
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console,
            )
            work = sum(job.work for job in jobs)
            self._task = self._bar.add_task(self._title(), total=work or None)

    def __enter__(self) -> _Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _title(self) -> str:
        return f"comparing, {self.done} of {self.total} done"

    def add(self, steps: int) -> None:
        """Some run went on by so many steps."""
        check_signals()
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)

    def finished(self, job: Job) -> None:
        """A job is finished, and its result kept."""
        self.on_finished()
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, description=self._title())
        self.console.print(literal(f"{self.done:>4} of {self.total}  {job.name}"))

    def failed(self, job: Job, error: BaseException | None) -> None:
        """A job went wrong; the others go on."""
        said = literal(f" {job.name}: {type(error).__name__}: {error}")
        self.console.print(Text.assemble(("failed:", "red"), said))
