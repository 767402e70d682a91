"""`gym.make` in a fresh process costs little beside what plain transformers costs anyway."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_core.py"


@pytest.mark.slow
def test_gym_make_takes_at_most_1_3_times_what_transformers_takes():
    """In CPU time, which other work on the machine hardly changes; where it does, it is thrice."""
    startup = runpy.run_path(str(BENCHMARK))["startup"]
    for repetitions in (1, 3):
        found = {row["what"]: row["found"] for row in startup(repetitions)}
        ratio = found["gym.make in a fresh process / plain transformers, CPU time"]
        if ratio <= 1.3:
            return
    raise AssertionError(found)
