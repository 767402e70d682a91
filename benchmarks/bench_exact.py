"""What every agent reaches on the exact task, by enumeration: `make exact`, a quarter of an hour.

All agents get the same tokens from the same environment; the optimum is known, so nothing of the
result is estimated. `tokens to 0.95` is where the exact curve first reaches that fraction, measured
every third rollout.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents import RLHFCallback
from agents.verification.learning import AGENTS, TOKENS, ExactCurve, exact_agent, top_five_in_order
from tokenenv.optimum import Solution, enumerate_task, solve


def run(name: str, seed: int, solution: Solution, tokens: int) -> dict[str, Any]:
    """One agent's training; the seconds are those of it without the evaluations."""
    model = exact_agent(name, seed)
    curve = ExactCurve(solution, every=3)
    start = time.perf_counter()
    model.learn(tokens, callback=[RLHFCallback(), curve])
    seconds = time.perf_counter() - start - curve.seconds
    found = curve.measure()
    return {
        "agent": name,
        "seed": seed,
        "objective_fraction": found.objective_fraction,
        "kl_to_optimum": found.kl_to_optimum,
        "gold_reward": found.gold_reward,
        "top_five_in_order": top_five_in_order(model.policy, solution),
        "tokens_to_0.95": curve.tokens_to(0.95),
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]], tokens: int) -> Table:
    """A line per agent, over its seeds."""
    shown = Table(title=f"the exact task, {tokens:,} tokens each")
    headers = ("agent", "fraction, worst", "median", "KL(π‖π*), worst", "top 5 in order")
    for header in (*headers, "tokens to 0.95, median", "time / TokenPPO"):
        shown.add_column(header, justify="left" if header == "agent" else "right")
    by_agent = {name: [row for row in rows if row["agent"] == name] for name in AGENTS}
    unit = statistics.median([r["seconds"] for r in by_agent[AGENTS[0]]] or [math.nan])
    for name, own in by_agent.items():
        if own:
            fractions = [row["objective_fraction"] for row in own]
            tokens_to = [row["tokens_to_0.95"] for row in own]
            reached = [math.inf if found is None else found for found in tokens_to]
            shown.add_row(
                name,
                f"{min(fractions):.4f}",
                f"{statistics.median(fractions):.4f}",
                f"{max(row['kl_to_optimum'] for row in own):.4f}",
                f"{sum(row['top_five_in_order'] for row in own)} of {len(own)}",
                f"{statistics.median(reached):,.0f}",
                f"{statistics.median(row['seconds'] for row in own) / unit:.2f}",
            )
    return shown


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=AGENTS)
    parser.add_argument("--json", type=Path, help="write the runs here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small to gain from more
    solution = solve(enumerate_task("exact"))
    console, rows = Console(), []
    for seed in range(arguments.seeds):  # agents take turns, so that a slow machine slows all
        for name in arguments.agents:
            rows.append(run(name, seed, solution, arguments.tokens))
            found = rows[-1]
            console.print(
                f"{name}, seed {seed}: {found['objective_fraction']:.4f} in "
                f"{found['seconds']:.0f} s"
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console.print(table(rows, arguments.tokens))


if __name__ == "__main__":
    main()
