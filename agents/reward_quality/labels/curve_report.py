"""What the points of a learning curve say: means, the law, the price of the next point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from agents.reward_quality.labels.law import (
    FEWEST_SIZES,
    PowerLaw,
    bootstrap_laws,
    fit_power_law,
    interval_of,
    pairs_for,
)
from agents.reward_quality.labels.policies import POLICY_NUMBERS
from agents.reward_quality.labels.statistics import mean_interval

__all__ = ["GAIN", "curve_report", "print_curve"]

GAIN = 0.01
"""The next point: one percentage point of accuracy."""

FAR = 4.0
"""Times the largest size beyond which a law is extrapolated far."""

BAND = 41
"""Numbers of pairs at which the figure draws the law and its band."""

Points = Sequence[dict[str, Any]]


def curve_report(points: Points, sizes: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """The report on a learning curve, for JSON.

    Args:
        points: one for each size and seed, with `size`, `seed`, `accuracy`, and perhaps `policy`.
        sizes: K numbers of pairs, in ascending order.
        seed: of the bootstrap.

    Returns:
        `sizes` (means with intervals), `law`, `next_point`, `notes` and the `points`.
    """
    rows = [_row([point for point in points if point["size"] == size], size) for size in sizes]
    best = [point["best_accuracy"] for point in points if "best_accuracy" in point]
    law, next_point, notes = _law(points, sizes, seed)
    return {
        "sizes": rows,
        "best_accuracy": float(np.mean(best)) if best else None,
        "law": law,
        "next_point": next_point,
        "notes": notes,
        "points": list(points),
    }


def _row(points: Points, size: int) -> dict[str, Any]:
    row: dict[str, Any] = {"size": size, "seeds": len(points)}
    for name in ("accuracy", "loss", "calibration_error"):
        row[name], row[f"{name}_interval"] = mean_interval([point[name] for point in points])
    policies = [point["policy"] for point in points if point.get("policy")]
    if policies:
        row["policy"] = {}
        for name in POLICY_NUMBERS:
            mean, interval = mean_interval([policy[name] for policy in policies])
            row["policy"][name] = {"mean": mean, "interval": interval}
        untrained = [policy["untrained"]["gold"] for policy in policies]
        row["policy"]["untrained_gold"] = float(np.mean(untrained))
    return row


def _law(
    points: Points, sizes: Sequence[int], seed: int
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[str]]:
    if len(sizes) < FEWEST_SIZES:
        few = f"{len(sizes)} sizes: a law of three numbers is fitted to {FEWEST_SIZES} or more."
        return None, None, [few]
    seeds = sorted({point["seed"] for point in points})
    known = {(point["seed"], point["size"]): point["accuracy"] for point in points}
    accuracies = np.array([[known[one, size] for size in sizes] for one in seeds])  # (S, K)
    law = fit_power_law(sizes, accuracies.mean(axis=0))
    laws = bootstrap_laws(sizes, accuracies, seed=seed)
    grid = np.geomspace(sizes[0], FAR * sizes[-1], BAND)
    content: dict[str, Any] = {
        **{name: getattr(law, name) for name in ("limit", "scale", "exponent", "error")},
        "is_at_a_bound": law.is_at_a_bound,
        "limit_interval": None,
        "exponent_interval": None,
        "curve": {"pairs": grid.tolist(), "accuracy": law(grid).tolist()},
    }
    if laws:
        content["limit_interval"] = interval_of([one.limit for one in laws])
        content["exponent_interval"] = interval_of([one.exponent for one in laws])
        band = np.quantile(np.stack([one(grid) for one in laws]), [0.025, 0.975], axis=0)
        content["curve"] |= {"low": band[0].tolist(), "high": band[1].tolist()}
    next_point = _next_point(law, laws, sizes[-1])
    _, rise = mean_interval(accuracies[:, -1] - accuracies[:, 0])
    return content, next_point, _notes(law, next_point, len(seeds), rise)


def _next_point(law: PowerLaw, laws: Sequence[PowerLaw], size: int) -> dict[str, Any]:
    """What one more percentage point costs at the largest size; ∞ is null in JSON."""
    costs = [pairs_for(one, size, GAIN) for one in laws]
    return {
        "gain": GAIN,
        "from_pairs": size,
        "accuracy": float(law(size)),
        "more_pairs": pairs_for(law, size, GAIN),
        "interval": interval_of(costs) if costs else None,
        "share_out_of_reach": float(np.mean(np.isinf(costs))) if costs else None,
    }


def _notes(
    law: PowerLaw, next_point: dict[str, Any], seeds: int, rise: tuple[float, float] | None
) -> list[str]:
    notes = []
    if rise is not None and rise[0] <= 0:
        notes.append(
            "the largest size is not shown to be better than the smallest (95 % interval of the "
            f"rise: {_interval(rise)}): law and price say nothing. Measure larger sizes, more "
            "seeds, or train better (--epochs, --learning-rate)."
        )
    if law.is_at_a_bound:
        notes.append(
            "the fit ended at a bound of what is allowed: these sizes do not show where the curve "
            "bends, so that limit and price are guesses. Measure more sizes or more seeds."
        )
    more, size = next_point["more_pairs"], next_point["from_pairs"]
    if math.isfinite(more) and more + size > FAR * size:
        notes.append(
            f"{more + size:,.0f} pairs are more than {FAR:.0f} times the largest size: the law is "
            "extrapolated far, and the price is an order of magnitude."
        )
    if seeds < 2:
        notes.append("one seed shows no scatter: there are no intervals. Give two seeds or more.")
    elif seeds < 5:
        notes.append(f"{seeds} seeds: the bootstrap's intervals are too narrow. Give five or more.")
    return notes


# Terminal -----------------------------------------------------------------------------------------


def print_curve(report: dict[str, Any], console: Console) -> None:
    """The report as tables and sentences."""
    rows = report["sizes"]
    headers = ["pairs", "seeds", "accuracy", "95 % interval", "loss"]
    table = _table("held-out accuracy by the number of pairs", headers)
    for row in rows:
        cells = [f"{row['size']:,}", str(row["seeds"]), f"{row['accuracy']:.3f}"]
        table.add_row(*cells, _interval(row["accuracy_interval"]), f"{row['loss']:.3f}")
    console.print(table)
    if any("policy" in row for row in rows):
        headers = ["pairs", "gold", "95 % interval", "J of gold", "score", "KL", "J"]
        table = _table("after PPO, on held-out prompts", headers)
        for row in rows:
            policy = row["policy"]
            gold = policy["gold"]
            cells = [f"{row['size']:,}", f"{gold['mean']:+.3f}", _interval(gold["interval"])]
            names = ("gold_objective", "score", "kl", "objective")
            table.add_row(*cells, *(f"{policy[name]['mean']:.2f}" for name in names))
        console.print(table)
    for line in sentences(report):
        console.print(literal(line))
    for note in report["notes"]:
        console.print(Text.assemble(("note: ", "yellow"), literal(note)))


def _table(title: str, headers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def sentences(report: dict[str, Any]) -> list[str]:
    """The law, and the price of the next point."""
    law, next_point = report["law"], report["next_point"]
    lines = []
    if report["best_accuracy"] is not None:
        lines.append(
            f"whoever knows the annotator reaches {report['best_accuracy']:.3f} on these pairs."
        )
    for row in report["sizes"][:1]:
        if "policy" in row:
            lines.append(f"gold reward of the reference: {row['policy']['untrained_gold']:+.3f}")
    if law is None:
        return lines
    lines.append(
        f"law: accuracy(n) = {law['limit']:.3f} − {law['scale']:.3g}·n^(−{law['exponent']:.2f}), "
        f"limit {_or_none(law['limit_interval'])}, exponent {_or_none(law['exponent_interval'])} "
        f"(95 %), root mean squared error {law['error']:.4f}"
    )
    return [*lines, _price(next_point)]


def _price(price: dict[str, Any]) -> str:
    start = (
        f"one more percentage point than the law's {price['accuracy']:.3f} at "
        f"{price['from_pairs']:,} pairs"
    )
    interval = ""
    if price["interval"] is not None:
        low, high = (_pairs(end) for end in price["interval"])
        interval = (
            f" (95 % interval: {low} to {high}; out of reach in "
            f"{price['share_out_of_reach']:.0%} of the resamples)"
        )
    if math.isinf(price["more_pairs"]):
        return f"{start} is out of reach: the law's limit is below it{interval}."
    return f"{start} costs {_pairs(price['more_pairs'])} more pairs{interval}."


def _pairs(number: float) -> str:
    return "out of reach" if math.isinf(number) else f"{float(f'{number:.2g}'):,.0f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _or_none(interval: Sequence[float] | None) -> str:
    return "without interval" if interval is None else _interval(interval)
