"""What reading preference pairs costs: peak memory over that of a small file, and pairs per second.

A file of many pairs (`--rows`) and one of 10,000 are written in each format; each is read by
`tokenenv.data.iterate_pairs` in a process of its own, which then says the most memory that it held.
A process inherits the peak of the one that started it, so this one stays small: it imports nothing
that is large, and leaves the writing to others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FORMATS = ("jsonl", "jsonl.gz", "json", "csv", "parquet")
SMALL = 10_000

WRITE = """
import csv, gzip, json, os, sys
path, number = sys.argv[1], int(sys.argv[2])
make = {
    "prompt": lambda i: f"Question {i}: how would one go about the thing that is called {i}?",
    "chosen": lambda i: f"One would begin with {i}, and then {os.urandom(90).hex()}",
    "rejected": lambda i: f"Nobody knows about {i}, so {os.urandom(60).hex()}",
}
rows = ({name: column(i) for name, column in make.items()} for i in range(number))
if path.endswith(".parquet"):  # one row group, as pyarrow and pandas write a million rows
    import pyarrow, pyarrow.parquet
    columns = {name: pyarrow.array(map(column, range(number))) for name, column in make.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=number)
elif path.endswith(".csv"):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(make))
        writer.writeheader()
        writer.writerows(rows)
else:
    is_array = path.endswith(".json")
    with (gzip.open if path.endswith(".gz") else open)(path, "wt") as file:
        file.write("[" * is_array)
        for i, row in enumerate(rows):
            file.write("," * (is_array and i > 0) + json.dumps(row) + "\\n")
        file.write("]" * is_array)
"""

READ = """
import json, resource, sys, time
from tokenenv.data import iterate_pairs
start = time.process_time()
number = sum(1 for _ in iterate_pairs(sys.argv[1]))
seconds = time.process_time() - start
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
print(json.dumps({"pairs": number, "megabytes": peak, "pairs_per_second": number / seconds}))
"""


def run(code: str, *arguments: object) -> str:
    """What a Python process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measure(name: str, rows: int, folder: Path) -> dict[str, Any]:
    """The row of one format."""
    found = []
    for number in (SMALL, rows):
        path = folder / f"pairs-{number}.{name}"
        run(WRITE, path, number)
        found.append({**json.loads(run(READ, path)), "file": path.stat().st_size / 2**20})
        path.unlink()
    small, large = found
    return {
        "format": name,
        "pairs": large["pairs"],
        "file_megabytes": large["file"],
        "peak_megabytes_of_10000": small["megabytes"],
        "added_megabytes": large["megabytes"] - small["megabytes"],
        "pairs_per_second": large["pairs_per_second"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="pairs of the large file")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.formats:
            row = measure(name, options.rows, Path(folder))
            rows.append(row)
            sys.stdout.write(
                f"{name:9} {row['pairs']:>9,} pairs, {row['file_megabytes']:6.0f} MB: "
                f"+{max(0, row['added_megabytes']):.0f} MB over the "
                f"{row['peak_megabytes_of_10000']:.0f} MB of 10,000 pairs; "
                f"{row['pairs_per_second']:,.0f} pairs per second of CPU time\n"
            )
            sys.stdout.flush()
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
