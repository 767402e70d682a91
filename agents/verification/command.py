"""`tokenrlhf verify`: every check, in a table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.config import VerifyConfig
from agents.files import write_json
from agents.verification.checks import Check
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

__all__ = ["verify"]


def verify(config: VerifyConfig, console: Console) -> bool:
    """Run all checks and print them; returns whether all passed.

    Raises:
        OSError: the JSON file can't be written.
    """
    start = time.perf_counter()
    if config.json is not None:
        write_json(config.json, {"checks": []})  # a place that can't be written is said at once
    with console.status("enumerating the exact task"):
        solution = solve(enumerate_task("exact"))
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
    found: dict[str, list[Check]] = {}
    for section, run in sections.items():
        with console.status(f"checking: {section}"):
            found[section] = _run(run)
    console.print(_table(found))
    checks = [check for section in found.values() for check in section]
    failed = [check for check in checks if not check.passed]
    seconds = time.perf_counter() - start
    verdict = "[green]all passed[/green]" if not failed else f"[red]{len(failed)} failed[/red]"
    console.print(f"{len(checks)} checks in {seconds:.0f} s: {verdict}")
    if config.json is not None:
        rows = [{"section": s, **asdict(c)} for s, own in found.items() for c in own]
        write_json(config.json, {"checks": rows, "passed": not failed, "seconds": seconds})
    return not failed


def _run(section: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a section; one that breaks is a failed check, and the others go on."""
    try:
        return section()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [Check("this section runs", "no error", said, False)]


def _table(found: dict[str, list[Check]]) -> Table:
    table = Table(title="tokenrlhf verify", title_justify="left")
    for header in ("check", "expected", "found"):
        table.add_column(header, overflow="fold")
    table.add_column("pass", justify="center")
    for section, checks in found.items():
        table.add_row(f"[bold]{escape(section)}[/bold]")
        for check in checks:
            mark = "[green]yes[/green]" if check.passed else "[red]NO[/red]"
            row = (f"  {check.name}", check.expected, check.found)
            table.add_row(*map(escape, row), mark)
        table.add_section()
    return table
