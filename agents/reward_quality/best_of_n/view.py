"""The table of best-of-n, and what to read in it."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agents.console import literal
from agents.reward_quality.best_of_n.measuring import BestOfNReport, Standing

__all__ = ["print_report"]

TIES = (
    "ties: of responses with the same score the first that is drawn, so that they share what falls "
    "to their score in proportion to π_ref."
)


def print_report(console: Console, report: BestOfNReport, run: str | None = None) -> None:
    """Print the table, and what its columns mean.

    Args:
        console: where to.
        report: the numbers.
        run: what the trained policy is called.
    """
    console.print(_exact_table(report) if report.is_exact else _sampled_table(report))
    for line in [*_notes(report), *_verdict(report, run)]:
        console.print(literal(line))


def _exact_table(report: BestOfNReport) -> Table:
    has_gold = report.rows[0].gold_reward is not None
    gold = ["gold"] if has_gold else []
    tilted = ["β′", "tilted\nE[R]", "tilted\nJ"]
    table = _table(report, ["E[R]", *gold, "KL", "KL\nbound", "J", "of J*", *tilted])
    for row in _rows(report):
        share = row.objective_fraction
        table.add_row(
            _name(row),
            _number(row.score),
            *([_number(row.gold_reward)] if has_gold else []),
            _number(row.kl),
            _number(row.kl_upper_bound),
            _number(row.objective),
            "" if share is None else f"{round(100 * share, 1) + 0.0:.1f}%",
            _tilt(row.tilted.kl_coef),
            _number(row.tilted.score),
            _number(row.tilted.objective),
        )
    return table


def _sampled_table(report: BestOfNReport) -> Table:
    has_gold = report.rows[0].gold_reward is not None
    gold = ["gold", "95 %"] if has_gold else []
    table = _table(report, ["E[R]", "95 %", *gold, "KL", "J", "tilted\nE[R]"])
    for row in _rows(report):
        gold = [_number(row.gold_reward), _interval(row, "gold_reward")] if has_gold else []
        at_most, at_least = ("≤ ", "≥ ") if row.kl is None and row.n != 1 else ("", "")
        table.add_row(
            _name(row),
            _number(row.score),
            _interval(row, "score"),
            *gold,
            at_most + _number(row.shown_kl),
            at_least + _number(row.objective),
            _number(row.tilted.score) if row.n == 1 else f"≥ {_number(row.tilted.score)}",
        )
    return table


def _table(report: BestOfNReport, headers: list[str]) -> Table:
    table = Table(title=_title(report), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("n")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _rows(report: BestOfNReport) -> list[Standing]:
    return [*report.rows, *([] if report.policy is None else [report.policy])]


def _title(report: BestOfNReport) -> str:
    number = f"{report.responses_per_prompt:,}"
    if report.is_exact:
        how = f"in closed form: {report.prompts:,} prompts, all {number} responses to each"
    else:
        how = f"by samples: {report.prompts:,} prompts, {number} samples of the reference to each"
    return f"best-of-n {how}; J at β = {report.kl_coef:g}"


def _name(row: Standing) -> str:
    return "policy" if row.n is None else f"{row.n:,}"


def _notes(report: BestOfNReport) -> list[str]:
    if report.is_exact:
        return [
            "KL: KL(q ‖ π_ref) in nats per response, of best-of-n's own distribution q. KL bound: "
            "log n − (n − 1)/n, only an upper bound of it, which holds with equality where no "
            "response has a probability of its own.",
            "of J*: (J − J_ref)/(J* − J_ref). tilted: the optimum π_ref·exp(R/β′) of the same KL, "
            "which no policy of that KL surpasses in E[R]; at β′ = 0 more KL buys nothing.",
            TIES,
        ]
    return [
        "E[R] and gold: unbiased, over all n-subsets of the samples; intervals: 95 %, bootstrap "
        "over prompts. KL of best-of-n: not measured, at most log n − (n − 1)/n, so that J is at "
        "least what is said.",
        "tilted: the optimum π_ref·exp(R/β′) of that KL; from samples a lower bound in "
        "expectation, loose where few of them carry it.",
        TIES,
    ]


def _verdict(report: BestOfNReport, run: str | None) -> list[str]:
    best, at_least = report.best, "" if report.is_exact or report.best.n == 1 else " at least"
    lines = [f"best J: best-of-{best.n:,}, J is{at_least} {_number(best.objective)}"]
    if best.objective_fraction is not None:
        lines[0] += f", {best.objective_fraction:.1%} of the way to J*"
    policy = report.policy
    if policy is not None:
        line = f"policy of {run or 'the run'}: J is {_number(policy.objective)}"
        if policy.intervals.get("objective"):
            line += f" ({_interval(policy, 'objective')})"
        if policy.objective_fraction is not None:
            line += f", {policy.objective_fraction:.1%} of that way"
        lines.append(f"{line}; {_beside(report, policy)}")
    return lines


def _beside(report: BestOfNReport, policy: Standing) -> str:
    """What best-of-n needs for the policy's E[R], in words."""
    as_good = [row for row in report.rows if row.score >= policy.score]
    if not as_good:
        return f"no best-of-n of these reaches its E[R], at a KL of {_number(policy.kl)}"
    row = as_good[0]
    kl = "a KL of" if row.kl is not None else "a KL of at most"
    return (
        f"best-of-{row.n:,} is the first with as much E[R], at {kl} {_number(row.shown_kl)} "
        f"against {_number(policy.kl)}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _tilt(kl_coef: float) -> str:
    return "∞" if math.isinf(kl_coef) else f"{kl_coef:.4g}"


def _interval(row: Standing, name: str) -> str:
    interval = row.intervals.get(name)
    return "" if interval is None else f"{_number(interval[0])}…{_number(interval[1])}"
