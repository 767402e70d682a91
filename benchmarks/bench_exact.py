"""What every agent reaches on the exact task, by enumeration: `make exact`, half an hour.

All agents get the same tokens from the same environment; the optimum is known, so nothing of the
result is estimated. `tokens to 0.95` is where the exact curve first reaches that fraction, measured
every third rollout.

Rounding makes two runs of one seed part after some updates, so that what a seed reaches differs
between processors. A claim is one over seeds and kernels: run this under several
(`ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE` are those of an old
processor), each with `--json`, and `--table A.json B.json` prints the spread of all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reporting import processor
from rich.console import Console
from rich.table import Table

from agents import RLHFCallback
from agents.verification.learning import AGENTS, TOKENS, ExactCurve, TopFive, exact_agent
from tokenenv.optimum import Solution, enumerate_task, solve


def run(name: str, seed: int, solution: Solution, tokens: int, every: int) -> dict[str, Any]:
    """One agent's training; the seconds are those of it without the evaluations."""
    model = exact_agent(name, seed)
    curve = ExactCurve(solution, every)
    start = time.perf_counter()
    model.learn(tokens, callback=[RLHFCallback(), curve])
    seconds = time.perf_counter() - start - curve.seconds
    found, five = curve.measure(), TopFive.of(model.policy, solution)
    return {
        "processor": processor(),
        "agent": name,
        "seed": seed,
        "objective_fraction": found.objective_fraction,
        "kl_to_optimum": found.kl_to_optimum,
        "gold_reward": found.gold_reward,
        "prompts_in_order": five.in_order,
        "largest_factor": five.largest_factor,
        "largest_misordered_factor": five.largest_misordered_factor,
        "tokens_to_0.95": curve.tokens_to(0.95) if len(curve.points) > 2 else None,
        "seconds": seconds,
    }


COLUMNS: dict[str, Callable[[list[Any]], str]] = {
    "objective_fraction": lambda x: f"{min(x):.4f} {statistics.median(x):.4f} {max(x):.4f}",
    "kl_to_optimum": lambda x: f"{statistics.median(x):.4f} {max(x):.4f}",
    "prompts_in_order": lambda x: f"{sum(x)} of {5 * len(x)}",
    "largest_factor": lambda x: f"{statistics.median(x):.2f} {max(x):.2f}",
    "largest_misordered_factor": lambda x: f"{statistics.median(x):.2f} {max(x):.2f}",
    "tokens_to_0.95": lambda x: (
        f"{statistics.median(math.inf if t is None else t for t in x):,.0f}"
    ),
    "seconds": lambda x: f"{statistics.median(x):.0f}",
}
"""What of a run is shown, and how that of many: least, median and largest as far as they count."""


def table(rows: list[dict[str, Any]], tokens: int) -> Table:
    """A line per agent and processor, over its seeds."""
    shown = Table(title=f"the exact task, {tokens:,} tokens each: median and worst over seeds")
    for header in ("agent", "kernels", "seeds", *(name.replace("_", " ") for name in COLUMNS)):
        shown.add_column(header)
    for agent in AGENTS:
        for kernels in dict.fromkeys(row["processor"] for row in rows):
            of_both = [r for r in rows if (r["agent"], r["processor"]) == (agent, kernels)]
            if of_both:
                cells = (said([row[name] for row in of_both]) for name, said in COLUMNS.items())
                shown.add_row(agent, kernels, str(len(of_both)), *cells)
    return shown


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=AGENTS)
    parser.add_argument("--curve-every", type=int, default=3, help="rollouts; many saves time")
    parser.add_argument("--json", type=Path, help="write the runs here too")
    parser.add_argument("--table", type=Path, nargs="+", help="only print these files' runs")
    arguments = parser.parse_args()
    console, rows = Console(width=None if Console().is_terminal else 180), []
    if arguments.table:
        rows = [row for path in arguments.table for row in json.loads(path.read_text())]
        console.print(table(rows, arguments.tokens))
        return
    torch.set_num_threads(1)  # the models are too small to gain from more
    solution = solve(enumerate_task("exact"))
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.agents:  # in turns, so that a slow machine slows all
            rows.append(run(name, seed, solution, arguments.tokens, arguments.curve_every))
            found = rows[-1]
            console.print(
                f"{name}, seed {seed}: {found['objective_fraction']:.4f}, misordered "
                f"{found['largest_misordered_factor']:.2f}, in {found['seconds']:.0f} s"
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console.print(table(rows, arguments.tokens))


if __name__ == "__main__":
    main()
