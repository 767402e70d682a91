"""The tables of docs/classic-control.md and docs/zoo.md, from a finished or unfinished comparison.

    tokenrlhf compare --out runs/compare
    python benchmarks/compare_tables.py runs/compare

Scores are interquartile means over seeds with their intervals. The second table has the median
seed's steps to a score, and the processor time that its training took until then, as a ratio to
that of one agent of the same environment: absolute times are the machine's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from agents.compare.results import summarize_runs

DASH = "–"


def score(summary: dict[str, Any] | None) -> str:
    """A score, and its interval where it has a width."""
    if summary is None:
        return DASH
    low, high = (f"{end:.2f}".replace("-", "−") for end in summary["interval"])
    text = f"{summary['score']:.2f}".replace("-", "−")
    text = ("≤ " if summary["is_at_most"] else "") + text
    text += " (J)" if summary["measure"] == "J" else ""
    return text if low == high else f"{text}<br>{low} … {high}"


def scores_table(report: dict[str, Any]) -> list[str]:
    """Environment × agent, with each environment's budget and number of seeds."""
    agents = report["settings"]["agents"]
    lines = [_row(["environment", "steps", "seeds", *agents]), _row(["---"] * (3 + len(agents)))]
    for env, by_agent in report["scores"].items():
        seeds = sorted({len(by_agent[agent]["seeds"]) for agent in by_agent})
        counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        cells = [score(by_agent.get(agent)) for agent in agents]
        lines.append(_row([f"`{env}`", f"{report['steps'][env]:,}", counted, *cells]))
    return lines


def efficiency_table(report: dict[str, Any], reach: float, to: str) -> list[str]:
    """What it takes to a score: steps, and processor time relative to that of agent `to`."""
    lines = [
        _row(["environment", "agent", f"steps to {reach:g}", "seeds there", f"CPU time, {to} = 1"]),
        _row(["---"] * 5),
    ]
    for env in report["scores"]:
        by_agent = {
            agent: summarize_runs(
                [r for r in report["runs"] if (r["env"], r["agent"]) == (env, agent)], reach
            )
            for agent in report["scores"][env]
        }
        unit = by_agent[to]["cpu_seconds_to_reach"] if to in by_agent else None
        for agent, found in by_agent.items():
            steps, taken = found["steps_to_reach"], found["cpu_seconds_to_reach"]
            lines.append(
                _row(
                    [
                        f"`{env}`",
                        agent,
                        DASH if steps is None else f"{steps:,}",
                        f"{round(found['share_that_reached'] * len(found['seeds']))} of "
                        f"{len(found['seeds'])}",
                        DASH if taken is None or not unit else f"{taken / unit:.2f}",
                    ]
                )
            )
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument("--reach", type=float, default=0.95, help="a score")
    parser.add_argument("--to", default="token-ppo", help="agent whose time is 1")
    arguments = parser.parse_args()
    report = json.loads((arguments.folder / "compare.json").read_text(encoding="utf-8"))
    lines = [*scores_table(report), "", *efficiency_table(report, arguments.reach, arguments.to)]
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
