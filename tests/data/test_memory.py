"""A file of a million pairs is read in the memory of a small one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "bench_reading.py"


def added_megabytes(tmp_path, rows, *formats):
    """Peak memory over that of 10,000 pairs, by format."""
    out = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--rows", str(rows), "--json", str(out)]
    subprocess.run([*command, "--formats", *formats], check=True, cwd=ROOT, capture_output=True)
    found = json.loads(out.read_text())
    assert [row["pairs"] for row in found] == [rows] * len(formats)
    return {row["format"]: row["added_megabytes"] for row in found}


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [250_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_million_pairs_add_less_than_50_megabytes_over_ten_thousand(tmp_path, pairs):
    """A quarter of them, read whole, would add more than that as well."""
    pytest.importorskip("pyarrow")
    added = added_megabytes(tmp_path, pairs, "jsonl", "parquet")
    assert max(added.values()) <= 50, added


@pytest.mark.slow
def test_neither_packing_nor_arrays_nor_tables_of_text_are_read_whole(tmp_path):
    """200,000 pairs are 100 MB of text: read whole, they would add more than that."""
    added = added_megabytes(tmp_path, 200_000, "jsonl.gz", "json", "csv")
    assert max(added.values()) <= 30, added
