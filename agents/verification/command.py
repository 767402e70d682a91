"""`tokenrlhf verify`: every check, in a table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from agents.atomic_files import write_json
from agents.console import literal
from agents.verification.checks import Check
from agents.verification.config import VerifyConfig
from agents.verification.environment import environment_checks
from agents.verification.estimate import estimate_checks
from agents.verification.learning import ENV_ID, learning_checks
from agents.verification.mathematics import (
    advantage_checks,
    controller_checks,
    kl_checks,
    optimum_checks,
    task_checks,
)
from tokenenv.optimum import enumerate_task, solve
from tokenenv.stop_signals import hold_signals

__all__ = ["verify"]

WIDEST = 150
"""Columns of the widest table."""


def verify(config: VerifyConfig, console: Console) -> bool:
    """Run all checks and print them; returns whether all passed.

    Raises:
        ValueError: there is no place for the JSON file.
        OSError: it can't be written.
        KeyboardInterrupt: by Ctrl-C or another signal, after a report of what was checked.
    """
    start = time.perf_counter()
    _check_place(config.json)
    try:
        with console.status("enumerating the exact task"):
            solution = solve(enumerate_task("exact"))
    except Exception as error:
        return _report({"the exact task": [_broken(error)]}, start, config.json, console)
    sections: dict[str, Callable[[], list[Check]]] = {
        "the exact task": lambda: task_checks(solution),
        "optimum": lambda: optimum_checks(solution),
        "environment": lambda: environment_checks(solution.tree, ENV_ID),
        "KL estimators": lambda: kl_checks(solution),
        "KL controllers": controller_checks,
        "advantages": lambda: advantage_checks(solution),
        "sampled estimate of the optimum": lambda: estimate_checks(solution),
    }
    if config.learning:
        sections["learning"] = lambda: learning_checks(solution, config.seed)
    results: dict[str, list[Check]] = {}
    try:
        for section, run in sections.items():
            with console.status(f"checking: {section}"):
                results[section] = _run(run)
    except KeyboardInterrupt:
        with hold_signals():
            _report({**results, section: [_STOPPED]}, start, config.json, console)
        raise
    return _report(results, start, config.json, console)


def _check_place(path: Path | None) -> None:
    """Raise ValueError where the table can't be written, before the work."""
    if path is not None and (path.is_dir() or not path.name or not path.parent.is_dir()):
        raise ValueError(
            f"json={str(path)!r} is no place for a file: give a file's path in a folder."
        )


def _report(
    results: dict[str, list[Check]], start: float, path: Path | None, console: Console
) -> bool:
    """Print and write what was found; returns whether all passed."""
    console.print(_table(results, min(console.width, WIDEST)))
    checks = [check for section in results.values() for check in section]
    failed = [check for check in checks if not check.passed]
    seconds = time.perf_counter() - start
    verdict = "[green]all passed[/green]" if not failed else f"[red]{len(failed)} failed[/red]"
    console.print(f"{len(checks)} checks in {seconds:.0f} s: {verdict}")
    if path is not None:
        rows = [
            {"section": s, **asdict(c)}
            for s, section_checks in results.items()
            for c in section_checks
        ]
        write_json(path, {"checks": rows, "passed": not failed, "seconds": seconds})
    return not failed


def _run(section: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a section; one that breaks is a failed check, and the others go on."""
    try:
        return section()
    except Exception as error:
        return [_broken(error)]


_STOPPED = Check("this section runs", "to its end", "stopped by a signal", False)


def _broken(error: Exception) -> Check:
    return Check("this section runs", "no error", f"{type(error).__name__}: {error}", False)


def _table(results: dict[str, list[Check]], width: int) -> Table:
    table = Table(title="tokenrlhf verify", title_justify="left", box=SIMPLE, width=width)
    for header, ratio in (("check", 5), ("expected", 3), ("found", 3)):
        table.add_column(header, overflow="fold", ratio=ratio)
    table.add_column("pass", justify="center", min_width=4)
    for section, checks in results.items():
        table.add_row(literal(section, "bold"))
        for check in checks:
            mark = "[green]yes[/green]" if check.passed else "[red]NO[/red]"
            row = (check.name, check.expected, check.found)
            table.add_row(*map(literal, row), mark)
        table.add_section()
    return table
