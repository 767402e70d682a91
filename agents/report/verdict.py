"""What a run has come to, in plain words: rules over its numbers, each of them stated.

A rule says what it is about, and answers whether it holds, with the numbers that it looked at; or
nothing, where they are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agents.report.curves import Curve, curve, objective_curve
from agents.report.run_files import RunFiles

__all__ = ["Answer", "Evidence", "Finding", "Rule", "Tone", "evidence_of", "judge"]

Tone = Literal["bad", "warning", "good", "note"]

_CURVES = {
    **{
        name: f"rlhf/{name}"
        for name in ("score", "gold_reward", "kl", "entropy", "response_length", "eos_rate")
    },
    **{name: f"train/{name}" for name in ("explained_variance", "clip_fraction")},
}


@dataclass(frozen=True)
class Evidence:
    """What rules look at.

    Attributes:
        curves: name → curve: objective, score, gold_reward, kl, entropy, response_length, eos_rate,
            explained_variance, clip_fraction.
        summary: of `summary.json`; empty where there is none.
        lost: names in `metrics.jsonl` that were not finite at some time.
    """

    curves: Mapping[str, Curve]
    summary: Mapping[str, Any]
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a rule says of a run.

    Attributes:
        holds: whether what its title says is so.
        numbers: those it looked at, as a sentence.
    """

    holds: bool
    numbers: str


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        title: what is so where it holds.
        tone: how good or bad that is.
        statement: when it holds.
        check: the rule itself: a pure function; None where it can't be judged.
    """

    title: str
    tone: Tone
    statement: str
    check: Callable[[Evidence], Answer | None]


@dataclass(frozen=True)
class Finding:
    """A rule beside its answer; None where it can't be judged."""

    rule: Rule
    answer: Answer | None


def evidence_of(run: RunFiles) -> Evidence:
    """What the rules look at, of a run."""
    curves = {name: curve(run.rows, key) for name, key in _CURVES.items()}
    curves["objective"] = objective_curve(run.rows, run.kl_coef)
    drawn = ("rlhf/", "train/", "eval/")
    lost = {
        name
        for row in run.rows
        for name, value in row.items()
        if name.startswith(drawn) and (value is None or value != value)
    }
    return Evidence(curves, run.summary, tuple(sorted(lost)))


def judge(evidence: Evidence, rules: tuple[Rule, ...]) -> list[Finding]:
    """Every rule's answer, in the order of the rules.

    Args:
        evidence: of a run.
        rules: to go through.
    """
    return [Finding(rule, rule.check(evidence)) for rule in rules]
