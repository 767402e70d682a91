"""A long training, watched from outside: does anything grow, and does it become slower?

    python benchmarks/soak.py RESULTS.jsonl --minutes 30 --figure soak.png
    python benchmarks/soak.py RESULTS.jsonl --figure soak.png --table

The run is `tokenrlhf train` with all that it does by default, evaluations, token tables and
checkpoints among it, and further options after `--`. Every few seconds one line is written: the
process's resident memory, open files, threads, processor time, and the tokens that it has trained
on. SIGTERM ends it. Printed are, of the time after the first tenth, in which caches fill:

- resident memory at the end, and its slope in the second half by least squares,
- the range of open files and threads at the start of an update,
- tokens per second of processor time in the last tenth, over those in the second.

The exit status is 1 where memory grows by more than `--growth` MiB per minute in the second half,
files or threads grow, or the last tenth is slower than `--speed` of the second.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agents.atomic_files import append_lines, json_text
from tokenenv.json_files import read_json_lines

EVERY = 5.0
"""Seconds between two samples."""

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def sample(process: int, metrics: Path) -> dict[str, float]:
    """What is known of a process at this moment; Linux only."""
    place = Path("/proc") / str(process)
    fields = place.joinpath("stat").read_text().rpartition(")")[2].split()
    resident = int(place.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
    tokens = json.loads(lines[-1]).get("time/total_timesteps", 0) if lines else 0
    return {
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / TICKS,
        "resident_mib": resident / MIB,
        "files": len(list(place.joinpath("fd").iterdir())),
        "threads": int(fields[17]),
        "tokens": tokens,
    }


def watch(results: Path, minutes: float, options: list[str]) -> None:
    """Train for a while, and append samples to a file."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "agents.cli", "train", "--out", str(run)]
        command += ["--total-tokens", str(10**10), "--device", "cpu", "--num-threads", "1"]
        command += ["--eval-responses", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not (run / "metrics.jsonl").is_file() and process.poll() is None:
                time.sleep(0.2)
            start = time.monotonic()
            while time.monotonic() - start < 60 * minutes and process.poll() is None:
                now = sample(process.pid, run / "metrics.jsonl")
                now["seconds"] = time.monotonic() - start
                append_lines(results, [json_text(now)])
                time.sleep(EVERY)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait()
        if status != 128 + signal.SIGTERM:
            raise SystemExit(f"the training ended with status {status}.")


def verdicts(rows: list[dict[str, float]]) -> dict[str, float]:
    """The numbers that are printed; see the module."""
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    minutes = column["seconds"] / 60
    settled, second_half = minutes > minutes[-1] / 10, minutes > minutes[-1] / 2
    slope = np.polyfit(minutes[second_half], column["resident_mib"][second_half], 1)[0]
    edges = np.quantile(column["cpu_seconds"], [0.1, 0.2, 0.9, 1.0])
    at = np.interp(edges, column["cpu_seconds"], column["tokens"])
    rates = (at[1] - at[0]) / (edges[1] - edges[0]), (at[3] - at[2]) / (edges[3] - edges[2])
    grown = {}
    for name in ("files", "threads"):
        half = np.median(column[name][settled & ~second_half])
        grown[f"{name}_grown"] = float(np.median(column[name][second_half]) - half)
    return {
        "minutes": float(minutes[-1]),
        "tokens": float(column["tokens"][-1]),
        "resident_mib": float(column["resident_mib"][-1]),
        "mib_per_minute": float(slope),
        "speed": float(rates[1] / rates[0]),
        **grown,
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Memory, open files and threads, and the rate of tokens over time."""
    from matplotlib.figure import Figure

    minutes = np.array([row["seconds"] for row in rows]) / 60
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    memory, handles, speed = figure.subplots(3, sharex=True)
    memory.plot(minutes, [row["resident_mib"] for row in rows], color="#1f77b4")
    memory.set_ylabel("resident memory\nMiB")
    memory.set_ylim(bottom=0)
    for name, style in (("files", "-"), ("threads", ":")):
        handles.plot(minutes, [row[name] for row in rows], style, linewidth=2, label=name)
    handles.set_ylabel("open files,\nthreads")
    handles.set_ylim(0, 1.5 * max(row["files"] + row["threads"] for row in rows) / 2)
    handles.legend(loc="lower right", frameon=False)
    cpu, tokens = (np.array([row[name] for row in rows]) for name in ("cpu_seconds", "tokens"))
    edges = np.linspace(cpu[0], cpu[-1], 31)
    rate = np.diff(np.interp(edges, cpu, tokens)) / np.diff(edges)
    middle = np.interp((edges[1:] + edges[:-1]) / 2, cpu, minutes)
    speed.plot(middle, rate / rate.mean(), color="#9467bd", marker=".")
    speed.set_ylabel("tokens per second of\nprocessor time ÷ mean")
    speed.set_ylim(0, 1.3)
    speed.set_xlabel("minutes")
    for axes in (memory, handles, speed):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Watch, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON Lines; must not exist, but for --table")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", action="store_true", help="of what is there; trains nothing")
    parser.add_argument("--growth", type=float, default=0.2, help="MiB per minute")
    parser.add_argument("--speed", type=float, default=0.95)
    arguments, options = parser.parse_known_args()
    if not arguments.table:
        if arguments.results.exists():
            parser.error(f"{arguments.results} exists: name another file, or give --table.")
        watch(arguments.results, arguments.minutes, [word for word in options if word != "--"])
    rows: list[dict[str, Any]] = list(read_json_lines(arguments.results))
    found = verdicts(rows)
    for name, value in found.items():
        print(f"{name:<16}{value:>14,.3f}")  # noqa: T201
    if arguments.figure is not None:
        draw(rows, arguments.figure)
    is_good = (
        found["mib_per_minute"] <= arguments.growth
        and found["speed"] >= arguments.speed
        and max(found["files_grown"], found["threads_grown"]) <= 0
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
