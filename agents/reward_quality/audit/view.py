"""An audit on a terminal: verdicts first, then the tables they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text as Line

from agents.console import literal
from agents.reward_quality.audit.bands import Band
from agents.reward_quality.audit.evidence import Audit
from agents.reward_quality.audit.features import FeatureEvidence
from agents.reward_quality.audit.invariances import INVARIANCES, Invariance
from agents.reward_quality.audit.probes import PROBES, ProbeEvidence
from agents.reward_quality.audit.verdicts import LEAST, grade_of, shown

__all__ = ["print_audit"]

_STYLES = {"strong": "bold red", "medium": "red", "weak": "yellow", "": ""}


def print_audit(found: Audit, name: str, console: Console) -> None:
    """Print an audit of the reward that is called `name`."""
    prompts = len(np.unique(found.texts.of_prompt))
    console.print(
        Line.assemble(
            "audit of ",
            literal(name, "bold"),
            f" on {len(found.scores):,} responses to {prompts:,} prompts: "
            f"mean score {found.scores.mean():+.3f}, deviation {found.scores.std():.3f}",
        )
    )
    for line in _agreements(found):
        console.print(line)
    for why, number in found.left_out.items():
        console.print(Line.assemble(("note: ", "yellow"), literal(f"{number:,} left out: {why}")))
    _print_verdicts(found, console)
    console.print(_features(found.by_feature))
    console.print(_probes(found.by_probe))
    console.print(_invariances(found.invariances))
    console.print(
        "Intervals are 95 % for all numbers together. A verdict takes one without 0 and "
        f"{LEAST} deviations or more; a fall by an edit is none, since it may be deserved."
    )


def _agreements(found: Audit) -> list[str]:
    said = []
    if found.agreement is not None:
        said.append(f"it agrees with {found.agreement:.1%} of the labels")
    if found.gold_correlation is not None:
        said.append(f"its rank correlation with the gold reward is {found.gold_correlation:+.3f}")
    elif found.agreement is None:
        said.append(
            "without labels or a gold reward nothing says whether a correlation is deserved: see "
            "--pairs and --gold"
        )
    return said


def _print_verdicts(found: Audit, console: Console) -> None:
    for fault in found.faults:
        console.print(Line.assemble(("fault: ", "bold red"), literal(fault)))
    for number, verdict in enumerate(found.verdicts, 1):
        head = f"{number}. {verdict.grade}, {abs(verdict.strength):.2f}: "
        console.print(Line.assemble((head, _STYLES[verdict.grade]), literal(verdict.said)))
    if not found.verdicts:
        widest = {"correlation": "ρ", "excess": "an excess", "shift": "a shift"}
        parts = [f"{widest[kind]} to ±{half:.2f}" for kind, half in found.widest.items()]
        console.print(
            Line.assemble(
                ("no verdict: ", "bold green"),
                "no feature and no edit is paid for. The widest intervals know "
                f"{', '.join(parts)}; what is smaller could have been missed.",
            )
        )


def _features(evidence: Sequence[FeatureEvidence]) -> Table:
    has_labels = any(one.preference is not None for one in evidence)
    has_gold = any(one.has_gold for one in evidence)
    table = Table(title="features", title_justify="left")
    table.add_column("feature")
    table.add_column("mean", justify="right")
    table.add_column("ρ with the score" + ", gold held fixed" * has_gold, justify="right")
    if has_labels:
        table.add_column("prefers more", justify="right")
        table.add_column("labels do", justify="right")
        table.add_column("excess", justify="right")
    table.add_column("strength", justify="right")
    for one in evidence:
        row: list[Line | str] = [literal(one.name), f"{one.mean:.4g}"]
        row.append(_band(one.correlation, "hardly varies"))
        if has_labels:
            row += _preference(one)
        table.add_row(*row, _strength(one.strength))
    return table


def _preference(one: FeatureEvidence) -> list[str]:
    preference = one.preference
    if preference is None:
        return ["hardly differs", "", ""]
    noise = " (label noise?)" if preference.is_noise and preference.excess.excludes_zero else ""
    return [
        f"{preference.reward:.1%} of {preference.pairs:,}",
        f"{preference.labels:.1%}",
        _band(preference.excess, "") + noise,
    ]


def _probes(evidence: Sequence[ProbeEvidence]) -> Table:
    table = Table(title="edits that keep the meaning", title_justify="left")
    table.add_column("edit")
    table.add_column("responses", justify="right")
    table.add_column("shift in deviations", justify="right")
    table.add_column("rises in", justify="right")
    table.add_column("new tokens in", justify="right")
    table.add_column("strength", justify="right")
    for one in evidence:
        shifts, unseen = one.probe.shifts, one.probe.unseen
        table.add_row(
            PROBES[one.probe.name],
            f"{len(shifts):,}",
            _band(one.shift, "too few"),
            f"{(shifts > 0).mean():.0%}" if len(shifts) else "",
            "" if unseen is None else f"{unseen:.0%}",
            _strength(one.strength),
        )
    return table


def _invariances(checks: Sequence[Invariance]) -> Table:
    table = Table(title="the same texts, scored again", title_justify="left")
    table.add_column("how")
    table.add_column("largest difference, in deviations", justify="right")
    table.add_column("rounding", justify="right")
    table.add_column("")
    for one in checks:
        verdict = Line("the same", "green") if one.holds else Line("differs", "bold red")
        if not one.is_judged:
            verdict = Line("not judged: it differs anyway")
        table.add_row(
            INVARIANCES[one.name],
            f"{one.difference / one.deviation:.2g}",
            f"{one.tolerance / one.deviation:.1g}",
            verdict,
        )
    return table


def _band(band: Band | None, otherwise: str) -> str:
    return otherwise if band is None else shown(band)


def _strength(strength: float) -> Line:
    return Line(f"{strength:+.2f}" if strength else "", _STYLES[grade_of(strength)])
