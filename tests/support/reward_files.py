"""What lies beside a run about its reward, without a model: a report, an audit, alarms, shifts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["add_alarms", "add_shifts", "write_audit", "write_reward_report"]


def write_reward_report(folder: Path, **changes: Any) -> Path:
    """`report.json` of an ensemble of two, as `tokenrlhf reward-model` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    rule = {"accuracy": 0.48, "interval": [0.38, 0.58]}
    details = {
        "accuracy_interval": [0.61, 0.79],
        "members": [
            {"accuracy": 0.66, "accuracy_interval": [0.56, 0.75]},
            {"accuracy": 0.64, "accuracy_interval": [0.54, 0.73]},
        ],
        "shorter_wins": rule,
        "longer_wins": None,
        "calibration": [
            {"predicted": 0.25, "observed": 0.125, "pairs": 40},
            {"predicted": 0.75, "observed": 0.875, "pairs": 40},
        ],
    }
    content = {
        **{"pairs": 100, "training_pairs": 400, "accuracy": 0.7, "loss": 0.625},
        **{"calibration_error": 0.125, "details": details, "notes": [], "finished": True},
        "ended_by": None,
        **changes,
    }
    (folder / "report.json").write_text(json.dumps(content))
    return folder


def write_audit(path: Path, said: str = "length: a sentence raises it.", **changes: Any) -> Path:
    """An audit with one verdict, or another one."""
    band = {"value": 0.9, "low": 0.5, "high": 1.25}
    probe = {
        **{"edit": "padding", "what": "a sentence added that says nothing", "responses": 80},
        **{"shift": band, "share_that_rises": 0.75, "largest": 2.0, "left_out": {}},
        **{"share_with_unseen_tokens": None, "strength": 0.9},
    }
    preference = {"pairs": 50, "reward": 0.8, "labels": 0.55, "excess": band}
    feature = {
        **{"feature": "repeated_words", "what": "share of words", "mean": 0.1},
        **{"correlation": None, "preference": preference, "strength": 0.0},
    }
    content = {
        **{"version": 1, "reward_model": "rm", "gold": None, "faults": []},
        "texts": {"responses": 160, "prompts": 80},
        "score": {"agreement_with_labels": 0.7, "correlation_with_gold": None},
        "verdicts": [{"topic": "length", "strength": 0.9, "grade": "strong", "said": said}],
        **{"features": [feature], "probes": [probe], "invariances": []},
        "half_of_the_widest_interval": {"correlation": 0.125, "shift": 0.4},
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def add_alarms(run: Path, *alarms: tuple[str, int, str]) -> None:
    """Alarms of the monitor: rule, tokens, text."""
    rows = [dict(zip(("rule", "tokens", "text"), alarm, strict=True)) for alarm in alarms]
    (run / "alarms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_shifts(run: Path) -> None:
    """Shift, its p-value and what else is logged of a reward, into the metrics of a run."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["rlhf/ref_surprisal"], row["rlhf/rm_disagreement"] = 12.0 + number, 0.5
        if number % 4 == 0:
            row["rlhf/shift"], row["rlhf/shift_p"] = 5.0 * number, 1.0 if not number else 0.001
            row["rlhf/shift_disagreement"] = 1.0 + 0.1 * number
            row["rlhf/rm_accuracy"], row["rlhf/rm_accuracy_after"] = 0.6, 0.8
            row["rlhf/rm_scale"] = 1.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
