"""Measure everything that docs/reward-models.md shows: its tables and figures, in one command.

    python benchmarks/reward_models_page.py OUT
    python benchmarks/reward_models_page.py OUT --quick
    python benchmarks/reward_models_page.py OUT --only audit hacking
    python benchmarks/reward_models_page.py OUT --into docs

Every step is a command that stands on the page, or a few, in processes of one thread each, and two
at a time (`--workers`). A step whose record in OUT/steps has the same commands, and whose files are
all there, is not made again; those that were interrupted go on where they can, as their commands
do. What fails is said, and the others go on; what needs it is left out. What a step prints is in
OUT/logs. At the end OUT/tables.md has the tables; with `--into` they are put into the page, each
between its two comments, `table: NAME` and `end of table: NAME`, and the figures that the page
shows beside it.

The whole is meant to take less than 90 minutes on two cores; `--quick` some minutes on one, with
sizes at which the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page_steps import ROOT, Step, page_steps
from page_tables import fill_page, tables_of

POLL = 0.1
"""Seconds between two looks at the processes."""


class Record:
    """What is known of the steps in a folder: which are whole, and how long they took.

    Args:
        out: the folder.
        is_quick: whether its sizes are the small ones.

    Raises:
        ValueError: it holds steps of the other sizes.
    """

    def __init__(self, out: Path, is_quick: bool) -> None:
        self.out = out
        for name in ("steps", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)
        kind, place = "quick" if is_quick else "whole", out / "sizes.txt"
        if place.is_file() and (before := place.read_text(encoding="utf-8").strip()) != kind:
            raise ValueError(f"{out} holds the {before} sizes, not the {kind} ones: name another.")
        place.write_text(f"{kind}\n", encoding="utf-8")

    def log(self, step: Step) -> Path:
        """What a step prints."""
        return self.out / "logs" / f"{step.name}.txt"

    def content(self, step: Step) -> dict[str, Any]:
        """What is noted of a step; empty where nothing is."""
        try:
            found = json.loads(self._place(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_whole(self, step: Step) -> bool:
        """Whether a step was made by the same commands, and all that it made is there.

        Files that several steps append to may have grown.
        """
        found, made = self.content(step), self._made(step)
        if made is None or found.get("commands") != self._commands(step):
            return False
        before = found.get("made") or {}
        return set(before) == set(made) and all(made[name] >= before[name] for name in made)

    def note(self, step: Step, seconds: float, cpu_seconds: float) -> None:
        """Note that a step is whole."""
        content = {
            "commands": self._commands(step),
            "made": self._made(step),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
        }
        temporary = self._place(step).with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._place(step))

    def _place(self, step: Step) -> Path:
        return self.out / "steps" / f"{step.name}.json"

    def _commands(self, step: Step) -> list[list[str]]:
        """Without the places of this machine."""
        shorter = {str(self.out): "OUT", sys.executable: "python"}
        return [
            [shorter.get(word, word.replace(str(self.out), "OUT")) for word in command]
            for command in step.commands
        ]

    def _made(self, step: Step) -> dict[str, int] | None:
        """File → its size; None where one is missing."""
        places = [self.out / name for name in step.makes]
        if not all(place.is_file() and place.stat().st_size for place in places):
            return None
        return {name: place.stat().st_size for name, place in zip(step.makes, places, strict=True)}


class Running:
    """A step whose commands run one after the other, in a process of one thread each."""

    def __init__(self, step: Step, record: Record) -> None:
        self.step, self.record = step, record
        self.start, self.cpu_seconds = time.monotonic(), 0.0
        self._left = list(step.commands)
        self._log = record.log(step).open("w", encoding="utf-8")
        self._next()

    def _next(self) -> None:
        command = self._left.pop(0)
        self._log.write(f"$ {' '.join(command)}\n")
        self._log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def status(self) -> int | None:
        """The exit status once all commands are done, or one has failed; None before."""
        process, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not process:
            return None
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        if code == 0 and self._left:
            self._next()
            return None
        self._log.close()
        return code

    def stop(self) -> None:
        """End the process by SIGTERM; a command keeps what it has by then."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait()
        self._log.close()


def make(steps: Sequence[Step], record: Record, workers: int) -> dict[str, str]:
    """Make the steps that are not whole, in their order as far as one does not wait for another.

    Args:
        steps: what to make.
        record: of the folder.
        workers: processes at a time.

    Returns:
        Name of each step that failed, or was left out → why.
    """
    whole: set[str] = set()
    for step in steps:  # what a step needs stands before it
        if record.is_whole(step) and whole.issuperset(step.needs):
            whole.add(step.name)
            say(f"{step.name}: whole, {_minutes(record, step)}")
    waiting = [step for step in steps if step.name not in whole]
    failed: dict[str, str] = {}
    running: list[Running] = []
    try:
        while waiting or running:
            for step in list(waiting):
                missing = step.missing or next((n for n in step.needs if n in failed), None)
                if missing is not None:
                    waiting.remove(step)
                    failed[step.name] = f"left out: {missing}"
                    say(f"{step.name}: {failed[step.name]}")
                elif len(running) < workers and not set(step.needs) - whole:
                    waiting.remove(step)
                    say(f"{step.name}: started; {step.what}")
                    running.append(Running(step, record))
            time.sleep(POLL)
            for one in list(running):
                code = one.status()
                if code is not None:
                    running.remove(one)
                    _ended(one, code, whole, failed)
    except BaseException:
        for one in running:
            one.stop()
        raise
    return failed


def _ended(one: Running, code: int, whole: set[str], failed: dict[str, str]) -> None:
    """Note how a step ended."""
    step, record = one.step, one.record
    seconds = time.monotonic() - one.start
    if code == 0:
        record.note(step, seconds, one.cpu_seconds)
        if record.is_whole(step):
            whole.add(step.name)
            say(f"{step.name}: done, {_minutes(record, step)}")
            return
    lines = record.log(step).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = f"exit status {code}" if code else f"it did not make all of {', '.join(step.makes)}"
    if code < 0:
        said = f"ended by {signal.Signals(-code).name}"
    failed[step.name] = f"{said}; its last line: {lines[-1][:200]}"
    say(f"{step.name}: failed after {seconds / 60:.1f} minutes, {failed[step.name]}")


def _minutes(record: Record, step: Step) -> str:
    found = record.content(step)
    return f"{found['seconds'] / 60:.1f} minutes, {found['cpu_seconds'] / 60:.1f} of CPU time"


def say(text: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)  # noqa: T201


def selected(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps that are named, with those that they need; a group's name means all of it.

    Raises:
        ValueError: a name is none.
    """
    by_name = {step.name: step for step in steps}
    groups = {step.group for step in steps}
    wrong = [name for name in only if name not in by_name and name not in groups]
    if wrong:
        raise ValueError(f"--only {wrong[0]}: there are {', '.join([*by_name, *groups])}.")
    names: set[str] = set()
    ahead = [step.name for step in steps if step.name in only or step.group in only or not only]
    while ahead:
        name = ahead.pop()
        if name not in names:
            names.add(name)
            ahead += by_name[name].needs
    return [step for step in steps if step.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing; the exit status is 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the results, and of what is resumed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all?")
    parser.add_argument("--only", nargs="+", default=[], help="names or groups of steps")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true", help="say what the steps are, make none")
    parser.add_argument(
        "--into", type=Path, help="folder of the page: put tables and figures there"
    )
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers}: 1 or more")
    if given.quick and given.into is not None:
        parser.error("--into: the numbers of --quick belong on no page")
    out = given.out.absolute()
    try:
        steps = selected(page_steps(out, given.quick), given.only)
        if given.list:
            for step in steps:
                print(f"{step.name}: {step.what}")  # noqa: T201
                for command in step.commands:
                    print(f"    {' '.join(command)}")  # noqa: T201
            return 0
        record = Record(out, given.quick)
    except ValueError as error:
        parser.error(str(error))
    start = time.monotonic()
    try:
        failed = make(steps, record, given.workers)
    except KeyboardInterrupt:
        say("stopped: the same command goes on.")
        return 130
    everything = page_steps(out, given.quick)  # with what other calls have made
    tables = tables_of(out, [step for step in everything if record.is_whole(step)])
    text = "\n".join(f"<!-- table: {name} -->\n\n{table}\n" for name, table in tables.items())
    (out / "tables.md").write_text(text, encoding="utf-8")
    if given.into is not None:
        for line in fill_page(given.into / "reward-models.md", tables, out):
            say(line)
    say(f"{(time.monotonic() - start) / 60:.1f} minutes in all; tables in {out / 'tables.md'}")
    for name, why in failed.items():
        say(f"{name}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
