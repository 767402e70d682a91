"""What refreshing a reward model does to its accuracy on the policy's own samples, and to gold.

    python benchmarks/bench_refresh.py RESULTS.jsonl --figure refresh.png
    python benchmarks/bench_refresh.py RESULTS.jsonl --table

PPO on `reviews` at a small β against a reward model of 150 pairs (`weak` of `hacking_runs.py`),
twice from each seed: every four updates 128 fresh pairs of the policy's responses are labelled by
the annotator of the first ones, and the reward model learns them (`refresh`), or is only measured
on them (`accuracy measured`). The accuracy is that of a round's pairs before they are learned.

Every run is appended to RESULTS when it is done, and not made again. One process computes with one
thread, about a minute and a half for a run of 65,536 tokens.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from bench_hacking import QUICK, SETTINGS
from hacking_runs import MODELS, Run, read, record
from reporting import Row, interval, report

WITH, WITHOUT = "refresh", "accuracy measured"
WORDS = {WITH: "refreshed", WITHOUT: "not refreshed"}
PARTS = 4
"""Parts of the training whose rounds are taken together in the table."""


def rounds(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) tokens before each round, and (n,) accuracies on its fresh pairs."""
    found = [r for r in run["rollouts"] if "rlhf/rm_accuracy" in r]
    size = run["rollouts"][0]["tokens"]
    return (
        np.array([r["tokens"] - size for r in found]),
        np.array([r["rlhf/rm_accuracy"] for r in found]),
    )


def rows_of(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each seed and case, and one for the means."""
    rows = [
        _row(WORDS[run["remedy"]], [run], str(run["seed"]))
        for run in sorted(runs, key=lambda run: (run["seed"], run["remedy"] == WITH))
    ]
    for case in (WITHOUT, WITH):
        of_case = [run for run in runs if run["remedy"] == case]
        if len(of_case) > 1:
            rows.append(_row(WORDS[case], of_case, f"all {len(of_case)}"))
    return rows


def _row(what: str, runs: Sequence[dict[str, Any]], seed: str) -> Row:
    accuracies = np.array([_parts(rounds(run)[1]) for run in runs])
    parts = {
        f"part {part + 1}": interval(accuracies[:, part]) for part in range(accuracies.shape[1])
    }
    gold = interval([run["end"]["gold_reward"] for run in runs], "+.2f")
    labels = [r["rlhf/rm_labels"] for r in runs[0]["rollouts"] if "rlhf/rm_labels" in r]
    return {
        "table": "accuracy on the policy's own samples, by quarters of the training",
        "what": what,
        "seed": seed,
        **parts,
        "final gold": gold,
        "KL": f"{np.mean([run['end']['kl'] for run in runs]):.1f}",
        "fresh labels": f"{max(labels):,.0f}",
    }


def _parts(values: np.ndarray) -> list[float]:
    return [float(np.nanmean(part)) for part in np.array_split(values, min(PARTS, len(values)))]


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over training with and without a refresh, a line for each seed; gold beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours = {WITH: "#0072B2", WITHOUT: "#D55E00"}
    for run in runs:
        case = run["remedy"]
        style = {"color": colours[case], "alpha": 0.8, "lw": 1.3}
        first = WORDS[case] if run["seed"] == min(r["seed"] for r in runs) else None
        left.plot(*rounds(run), **style, label=first, marker="o", ms=3)
        gold = [r["rlhf/gold_reward"] for r in run["rollouts"]]
        right.plot([r["tokens"] for r in run["rollouts"]], gold, **style)
    left.axhline(0.5, color="grey", lw=0.8, ls="--")
    left.set(xlabel="tokens", ylabel="accuracy on the policy's own samples", ylim=(0, 1.02))
    right.set(xlabel="tokens", ylabel="gold reward of a rollout")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Make the runs, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON Lines, appended to")
    parser.add_argument("--model", default="weak", choices=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--table", action="store_true", help="make no runs, print what is there")
    parser.add_argument("--figure", type=Path, help="draw accuracy and gold over training here")
    parser.add_argument("--quick", action="store_true", help="tiny runs: does it work at all?")
    parser.add_argument("--json", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    settings, small = dict(SETTINGS), {}
    if arguments.quick:
        arguments.tokens, arguments.seeds = 5_120, arguments.seeds[:1]
        settings |= QUICK
        small = {"responses": 2, "prompts": 8, "judged": 50}
    torch.set_num_threads(1)
    wanted = [
        Run(arguments.model, case, seed, arguments.tokens, settings, **small)
        for seed in arguments.seeds
        for case in (WITHOUT, WITH)
    ]
    for run in () if arguments.table else wanted:
        made, is_new = record(run, arguments.results)
        if is_new:
            accuracies = ", ".join(f"{value:.2f}" for value in rounds(made)[1])
            print(  # noqa: T201
                f"{WORDS[run.remedy]}, seed {run.seed}: gold {made['end']['gold_reward']:.2f}, "
                f"accuracies {accuracies}, {made['cpu_seconds']:.0f} s",
                flush=True,
            )
    keys = {run.key for run in wanted}
    runs = [run for run in read(arguments.results) if run["key"] in keys]
    if not runs:
        raise SystemExit(f"{arguments.results} holds none of these runs: leave --table out.")
    report(rows_of(runs), {"tokens": arguments.tokens, **settings}, arguments.json)
    if arguments.figure is not None:
        draw(runs, arguments.figure)


if __name__ == "__main__":
    main()
