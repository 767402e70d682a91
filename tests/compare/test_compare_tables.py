"""The tables of the docs, from a comparison whose numbers are known."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from agents.compare.results import summarize_runs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(agent: str, seed: int, score: float, seconds: float) -> dict[str, Any]:
    """Half the score after 100 steps, all of it after 200."""
    return {
        **{"env": "A-v0", "agent": agent, "seed": seed, "measure": "plain return"},
        **{"value": score, "score": score, "is_at_most": False, "explained_variance": None},
        "score_curve": [[0, 0.0], [100, score / 2], [200, score]],
        "curve_cpu_seconds": [0.0, seconds / 2, seconds],
        **{"train_seconds": 1.0, "train_cpu_seconds": seconds, "steps_per_second": 1.0},
    }


def test_tables_hold_scores_steps_and_ratios_of_time(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tables = importlib.import_module("compare_tables")
    runs = [run("ppo", seed, -0.5, 8.0) for seed in (0, 1)]
    runs += [run("token-ppo", 0, 1.0, 4.0), run("token-ppo", 1, 2.0, 4.0)]
    scores = {
        agent: summarize_runs([r for r in runs if r["agent"] == agent], 0.9)
        for agent in ("ppo", "token-ppo")
    }
    report = {
        "settings": {"agents": ["ppo", "a2c", "token-ppo"]},
        "steps": {"A-v0": 2000},
        "scores": {"A-v0": scores},
        "runs": runs,
    }
    (tmp_path / "compare.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--reach", "0.95"])
    tables.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| environment | steps | seeds | ppo | a2c | token-ppo |"
    assert lines[2] == "| `A-v0` | 2,000 | 2 | −0.50 | – | 1.50<br>1.00 … 2.00 |"
    # Two seeds of token-ppo: one reaches 0.95 after 200 steps and 4 s, one after 100 and 2.
    assert lines[6:] == [
        "| `A-v0` | ppo | – | 0 of 2 | – |",
        "| `A-v0` | token-ppo | 100 | 2 of 2 | 1.00 |",
    ]
    assert tables.efficiency_table(report, -0.3, "token-ppo")[2].endswith("| 0 | 2 of 2 | – |")
