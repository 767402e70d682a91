"""`compare`, `reward-model` and `verify` end by a signal in good order, and leave nobody behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import save_language_model

from tokenenv.rewards.reward_model import load_reward_model

pytestmark = pytest.mark.usefixtures("usual_signals")

LONG = 300.0
"""Seconds that a loaded machine may need for what takes one or two."""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A command in the background of a script: with SIGINT ignored."""
    command = [sys.executable, "-m", "agents.cli", *arguments]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            ["sh", "-c", '"$@" & echo $! > pid; wait $!', "sh", *command],
            cwd=folder,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "500", "PYTHONPATH": ROOT},
        )


ROOT = str(Path(__file__).resolve().parents[2])


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def own_pid(folder: Path) -> int:
    until(lambda: (folder / "pid").is_file() and (folder / "pid").read_text().strip(), "the pid")
    return int((folder / "pid").read_text())


def children(pid: int) -> list[int]:
    """Processes below one, at any depth."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, level = [], [pid]
    while level:
        level = [child for child, parent in pairs if parent in level]
        found += level
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


COMPARE = [
    *("compare", "--out", "out", "--envs", "CartPole-v1", "--agents", "ppo", "--seeds", "2"),
    *("--steps", "100000000", "--episodes", "5", "--fingerprint-episodes", "6", "--workers", "2"),
]


def end_of_comparison(folder: Path, number: signal.Signals, results: int) -> str:
    """Send a signal when so many results are there; what was said when all processes have gone."""
    process = start(folder, *COMPARE)
    pid, workers = own_pid(folder), []
    try:
        until(lambda: len(list((folder / "out").glob("*/*.json"))) >= results, "results")
        until(lambda: len(children(pid)) >= 3, "the workers")  # and multiprocessing's tracker
        workers = children(pid)
        os.kill(pid, number)
        assert process.wait(timeout=LONG) == 128 + number
        until(lambda: not any(map(is_alive, workers)), "the workers' end")
    finally:
        for left in filter(is_alive, [pid, *workers]):
            os.kill(left, signal.SIGKILL)
    for path in (folder / "out").glob("*/*.json"):
        assert json.loads(path.read_text())["result"]
    return (folder / "said.txt").read_text()


@pytest.mark.slow
def test_the_workers_of_a_comparison_end_when_it_is_killed(tmp_path):
    end_of_comparison(tmp_path, signal.SIGKILL, results=0)


@pytest.mark.slow
def test_a_comparison_in_the_background_ends_by_sigterm_with_a_report(tmp_path):
    said = end_of_comparison(tmp_path, signal.SIGTERM, results=2)
    assert "Traceback" not in said and "stopped: 2 of 4 pieces of work are kept" in said
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(report["missing"]) == 2
    assert not list((tmp_path / "out").rglob(".*"))


def pairs(folder: Path, count: int = 200) -> None:
    rows = [
        {"prompt": f"w{4 + i % 30} w{4 + i // 30}", "chosen": "w4 w5", "rejected": "w6"}
        for i in range(count)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
def test_a_reward_model_that_is_stopped_is_written_with_what_it_has_learned(tmp_path):
    save_language_model(tmp_path / "base")
    pairs(tmp_path)
    arguments = ["reward-model", "--pairs", "pairs.jsonl", "--base", "base", "--out", "out"]
    # The held-out loss falls for as long as anyone waits: nothing else ends the training.
    arguments += ["--epochs", "100000", "--batch-size", "8", "--learning-rate", "1e-2"]
    process = start(tmp_path, *arguments, "--device", "cpu")
    pid = own_pid(tmp_path)
    until(lambda: (tmp_path / "out" / ".lock").is_file(), "the folder")
    time.sleep(1.0)
    os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=LONG) == 143
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said
    if not (tmp_path / "out").is_dir():  # it was still loading
        assert "stopped." in said
        return
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["finished"] is False and 0 <= report["accuracy"] <= 1
    assert load_reward_model(str(tmp_path / "out")).std > 0
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_a_verification_that_is_stopped_reports_what_it_has_checked(tmp_path):
    process = start(tmp_path, "verify", "--json", "report.json")
    pid = own_pid(tmp_path)
    time.sleep(8.0)
    os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=LONG) == 143
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said and "stopped" in said
    if (tmp_path / "report.json").is_file():
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["passed"] is False
        assert report["checks"][-1]["found"] == "stopped by a signal"
        assert all(check["passed"] for check in report["checks"][:-1])


def test_a_report_through_the_standard_output_is_whole_and_leaves_the_device(tmp_path):
    """As `verify --json /dev/stdout > file`, without the time that checking takes."""
    code = (
        "import sys; from pathlib import Path; from agents.atomic_files import write_json\n"
        "print('before'); write_json(Path('/dev/stdout'), {'a': 1}); print('after')"
    )
    before = os.lstat("/dev/stdout")
    with (tmp_path / "out.txt").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=LONG)
    assert (tmp_path / "out.txt").read_text() == 'before\n{\n  "a": 1\n}\nafter\n'
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert piped.stdout == 'before\n{\n  "a": 1\n}\nafter\n'
    assert os.lstat("/dev/stdout").st_ino == before.st_ino
