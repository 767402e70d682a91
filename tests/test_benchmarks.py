"""Every benchmark runs, and writes the rows that it promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def rows_of(name: str, folder: Path, *arguments: str) -> list[dict]:
    """The rows of `name --quick`; all their ratios are positive."""
    path = folder / "found.json"
    script = str(BENCHMARKS / f"{name}.py")
    subprocess.run(
        [sys.executable, script, "--quick", "--json", str(path), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert all(row["ratio"] > 0 and math.isfinite(row["ratio"]) for row in rows), rows
    return rows


def names(rows: list[dict], table: str) -> list[str]:
    """What stands in the tables whose title begins with `table`."""
    return [row["what"] for row in rows if row["table"].startswith(table)]


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_ppo_compares_whole_updates_and_divides_ours_into_stages(tmp_path, value_head):
    options = ("--value-head", value_head, "--micro-batch-tokens", "50")
    rows = rows_of("bench_ppo", tmp_path, *options)
    compared = names(rows, "whole updates")
    assert compared[:2] == ["TokenPPO", "the sum of parts"]
    assert len(compared) == 3 and "stock PPO" in compared[2]
    stages = [row for row in rows if row["table"].startswith("where the time")]
    assert {"sampling", "scoring", "optimisation"} <= {row["what"] for row in stages}
    whole = ("sampling", "scoring", "advantages and packing", "optimisation")
    assert sum(r["ratio"] for r in stages if r["what"] in whole) == pytest.approx(1.0)


def test_ppo_takes_turns_with_a_peer(tmp_path):
    """The peer is whatever prints tokens per second: here 10,000."""
    script = tmp_path / "peer.py"
    script.write_text('import json; print("log"); print(json.dumps({"tokens_per_second": 1e4}))')
    peer = ("--peer", sys.executable, "--peer-script", str(script))
    rows = rows_of("bench_ppo", tmp_path, *peer)
    found = {row["what"]: row for row in rows if row["table"].startswith("whole updates")}
    assert found["peer, peer"]["tokens/s"] == pytest.approx(1e4)
    ours = found["TokenPPO"]["tokens/s"]
    assert found["peer, peer"]["ratio"] == pytest.approx(ours / 1e4)


def test_rollout_compares_with_generate_for_either_kind_of_lengths(tmp_path):
    rows = rows_of("bench_rollout", tmp_path)
    assert [(r["what"], r["lengths"]) for r in rows] == [
        (what, lengths)
        for lengths in ("all T", "vary")
        for what in ("generate", "policy and env.step")
    ]
    fixed, varied = rows[0], rows[2]
    assert fixed["useful"] == 1.0 and fixed["mean length"] == 12
    assert varied["useful"] < 1.0 and varied["mean length"] < 12


def test_env_stands_beside_cart_pole(tmp_path):
    rows = rows_of("bench_env", tmp_path)
    assert {(r["what"], r["envs"]) for r in rows} == {
        (what, envs)
        for what in ("CartPole-v1, SyncVectorEnv", "TokenVectorEnv", "TokenVecEnv (SB3)")
        for envs in (1, 16)
    }


def test_memory_measures_buffer_peak_and_time(tmp_path):
    picture = tmp_path / "time.png"
    rows = rows_of("bench_memory", tmp_path, "--plot", str(picture))
    assert names(rows, "rollout buffer") == ["T = 8"]
    assert len(names(rows, "peak memory")) == 2  # with micro-batches and without
    assert len(names(rows, "time per token")) == 4  # ours and SB3's, at two T
    assert picture.stat().st_size > 0
