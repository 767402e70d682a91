"""What the benchmarks share: turns, medians, tables, JSON and the command line's common part.

A row is a dictionary with `table` (the title it is printed under), `what`, `ratio`, and whatever
stands beside it as context. Only ratios of one run mean anything: absolute times are those of the
machine at that moment.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from scipy import stats

__all__ = [
    "Row",
    "arguments_parser",
    "interval",
    "medians",
    "processor",
    "report",
    "seconds_of",
    "take_turns",
    "with_versions",
]

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


def arguments_parser(description: str | None, repetitions: int) -> argparse.ArgumentParser:
    """A parser with `--repetitions`, `--quick` and `--json`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=repetitions, help="medians are of these")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    return parser


def seconds_of(function: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of one call; a GPU is waited for at both ends."""
    waits = device.startswith("cuda")
    if waits:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if waits:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(
    cases: Mapping[Name, Callable[[], float]], repetitions: int
) -> dict[Name, list[float]]:
    """What each case found, `repetitions` times, one after the other within every repetition.

    A machine that slows down slows all of them; where it does so in the middle of a repetition the
    medians leave it out.

    Args:
        cases: name → a function that gives one measurement.
        repetitions: how often all of them are measured.
    """
    found: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, measure in cases.items():
            found[name].append(measure())
    return found


def medians(found: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """The median of each case."""
    return {name: statistics.median(values) for name, values in found.items()}


def interval(values: Sequence[float], form: str = ".2f") -> str:
    """Mean with Student's 95 % interval, as in `"0.52 ± 0.04"`; "" of nothing.

    Args:
        values: of the seeds.
        form: of the mean.
    """
    if not len(values):
        return ""
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:{form}}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:{form}} ± {half:.2f}"


def processor() -> str:
    """Vendor and widest vector unit, as in `"AuthenticAMD, AVX2"`: what kernels are chosen by."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vendor = said.get("vendor_id") or platform.processor() or platform.machine()
    has_amx = "amx_tile" in said.get("flags", "").split()
    return f"{vendor}, {'AMX' if has_amx else torch.backends.cpu.get_cpu_capability()}"


def with_versions(setting: Mapping[str, Any]) -> dict[str, Any]:
    """`setting`, the processor, the number of threads, and the versions of what computes."""
    return {
        **setting,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def report(rows: Sequence[Row], setting: Mapping[str, Any], path: Path | None) -> None:
    """Print a table per title, and write JSON where `path` says.

    Args:
        rows: those of one title have the same keys.
        setting: what was measured; the versions and the number of threads are added.
        path: of the JSON, or None.
    """
    setting = with_versions(setting)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(", ".join(f"{name} {value}" for name, value in setting.items()))
    for title in dict.fromkeys(row["table"] for row in rows):
        console.print(_table(title, [row for row in rows if row["table"] == title]))
    if path is not None:
        found = {"setting": setting, "rows": list(rows)}
        text = json.dumps(found, indent=2, ensure_ascii=False, default=str)
        path.write_text(text + "\n", encoding="utf-8")


def _table(title: str, rows: Sequence[Row]) -> Table:
    shown = Table(title=title, title_justify="left")
    headers = [name for name in rows[0] if name != "table"]
    for header in headers:
        shown.add_column(header, justify="left" if header == "what" else "right")
    for row in rows:
        shown.add_row(*(_cell(row[header]) for header in headers))
    return shown


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
