"""Responses for the page: before and after, the best and the worst, score against length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.credit import TokenFile
from agents.report.run_files import RunFiles

__all__ = ["before_and_after", "best_and_worst", "correlation", "score_against_length"]

SHOWN = 4
"""Responses at either end of a ranking."""


FEWEST = 8
"""Pairs below which a correlation is not worth a number."""


def before_and_after(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """To each prompt the first response and the last one.

    The first are from before the first update: the untrained model's.

    Args:
        samples: of `samples.jsonl`, in its order.

    Returns:
        Objects with prompt, before and after; after is None where there is one response only.
    """
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    return [
        {
            "prompt": prompt,
            "before": responses[0],
            "after": responses[-1] if responses[-1]["tokens"] > responses[0]["tokens"] else None,
        }
        for prompt, responses in by_prompt.items()
    ]


def best_and_worst(run: RunFiles) -> dict[str, Any] | None:
    """The responses with the highest and the lowest score, of the end of a run.

    Of the last token tables where there are any, which have more responses; else of the samples of
    the second half of the training.

    Args:
        run: its files.

    Returns:
        An object with `source` (in words), `best` and `worst`; None where there are no responses.
    """
    if run.tables:
        table = run.tables[-1]
        responses = _whole_responses(table)
        source = f"{len(responses)} responses in the token tables after {table.step:,} tokens"
    else:
        last = max((sample["tokens"] for sample in run.samples), default=0)
        responses = [sample for sample in run.samples if 2 * sample["tokens"] > last]
        source = f"{len(responses)} samples of the second half of the training"
    if not responses:
        return None
    ranked = sorted(responses, key=lambda response: response["score"])
    count = min(SHOWN, len(ranked) // 2 or 1)
    worst = ranked[:count] if len(ranked) > 1 else []
    return {"source": source, "best": ranked[-count:][::-1], "worst": worst}


def _whole_responses(table: TokenFile) -> list[dict[str, Any]]:
    """Finished ones, which have a score; fixed responses are none of this policy's."""
    return [r for r in table.responses if r["kind"] != "fixed" and r["score"] is not None]


def score_against_length(run: RunFiles) -> dict[str, Any] | None:
    """Score and length of every response that is known, at the first and at the last step.

    In tokens where there are token tables; else in words, which is all that samples show.

    Args:
        run: its files.

    Returns:
        An object with `unit` and `series` of label, x, y and the correlation r (None where it is
        not defined); None where there are no responses.
    """
    if run.tables:
        unit = "tokens"
        steps = [
            (
                table.step,
                [(r["tokens"], r["score"]) for r in _whole_responses(table)],
            )
            for table in run.tables
        ]
    else:
        unit = "words"
        by_step: dict[int, list[tuple[int, float]]] = {}
        for sample in run.samples:
            point = (len(sample["response"].split()), float(sample["score"]))
            by_step.setdefault(int(sample["tokens"]), []).append(point)
        steps = sorted(by_step.items())
    steps = [(step, points) for step, points in steps if points]
    if not steps:
        return None
    ends = steps if len(steps) == 1 else [steps[0], steps[-1]]
    series = []
    for step, points in ends:
        x, y = (list(column) for column in zip(*points, strict=True))
        r = correlation(np.array(x), np.array(y))
        series.append({"label": f"after {step:,} tokens", "x": x, "y": y, "r": r})
    return {"unit": unit, "series": series}


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's r; None for fewer than `FEWEST` pairs, or where either does not vary.

    Args:
        one: (n,).
        other: (n,).
    """
    if len(one) < FEWEST or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
