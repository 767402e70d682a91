"""What the numbered experiments share: options, processes, intervals, JSON, the look of figures."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# Small models are fastest with one thread each; processes use the other cores. Before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

COLORS = ("#1f6fb2", "#d1662c", "#2a8f4f", "#8c4a9e", "#7f7f7f", "#b8860b")
"""Told apart by readers who see colours differently, blue and orange first."""

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, … degrees of freedom."""


def options(description: str | None) -> argparse.Namespace:
    """`--quick`, `--out` and `--processes` of a script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small version, in half a minute")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of JSON and figure")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def in_parallel(run: Callable[..., Any], jobs: Iterable[tuple], processes: int) -> list[Any]:
    """The results of `run(*job)` for each job, in order; in processes of their own.

    Args:
        run: a function of the script's top level.
        jobs: its arguments.
        processes: how many work at once; 1 works in this one.
    """
    listed = list(jobs)
    if processes <= 1 or len(listed) <= 1:
        return [run(*job) for job in listed]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(listed)), spawn) as pool:
        return [future.result() for future in [pool.submit(run, *job) for job in listed]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some seeds and half the width of its 95 % interval by Student's t.

    NaN for the half where there is one seed alone.
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, T_975[min(n - 2, len(T_975) - 1)] * math.sqrt(variance / n)


def said(values: Sequence[float], form: str = ".3f") -> str:
    """The mean of some seeds with its interval, as a table shows it."""
    mean, half = interval(values)
    return format(mean, form) + ("" if math.isnan(half) else f" ± {half:{form.lstrip('+')}}")


def new_figure(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> Any:
    """A figure and its axes, in one style; nothing needs a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            **{"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False},
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
            **{"grid.alpha": 0.25, "lines.linewidth": 1.6, "axes.axisbelow": True},
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def write(out: Path, name: str, result: Any, figure: Any) -> None:
    """Write `NAME.json` and `NAME.png`, and say so."""
    (out / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    figure.savefig(out / f"{name}.png", dpi=140)
    print(f"written: {out / name}.json, {out / name}.png")
