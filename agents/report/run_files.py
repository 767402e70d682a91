"""What a run has left behind, as far as it came: nothing here is needed but its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.credit import TokenFile
from agents.report.reward_files import RewardFiles, read_rewards
from agents.report.token_tables import read_tables
from agents.runs.folder import RunFolder
from tokenenv.json_files import parse_json, read_json_object

__all__ = ["RunFiles", "read_run"]

_NUMBERS = (
    *("objective", "objective_reference", "optimum", "optimum_lower_bound", "objective_fraction"),
    *("score", "score_reference", "gold_reward", "gold_reward_reference", "kl", "kl_coef"),
    *("response_length", "eos_rate", "tokens", "tokens_per_second", "prompts"),
    *("responses_per_prompt", "least_effective_sample_size"),
)
"""Of a summary, what the page calculates with."""

_INTERVALS = ("optimum_interval", "fraction_interval", "gain_interval")

Check = Callable[[dict[str, Any], str], None]

TOKENS = "time/total_timesteps"
"""Of a row of metrics: response tokens trained on so far."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Attributes:
        root: its folder.
        config: its settings.
        rows: of `metrics.jsonl`; None where a number was not finite.
        samples: of `samples.jsonl`.
        summary: of `summary.json`; empty where there is none.
        tables: token tables, by step.
        rewards: what lies beside it about its reward.
        notes: what is missing or was left out, in sentences.
    """

    root: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: list[TokenFile] = field(default_factory=list)
    rewards: RewardFiles = field(default_factory=RewardFiles)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(os.path.realpath(self.root)).name

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and evaluated."""
        return self.summary.get("finished") is True

    @property
    def tokens(self) -> int:
        """Response tokens trained on, as far as is known."""
        steps = [row[TOKENS] for row in self.rows if TOKENS in row]
        return int(self.summary.get("tokens") or max(steps, default=0))

    @property
    def kl_coef(self) -> float | None:
        """β that the run is judged by: of its summary, its settings, or its first update."""
        first = (row.get("rlhf/kl_coef") for row in self.rows)
        values = (self.summary.get("kl_coef"), self.config.get("kl_coef"), *first)
        return next((float(v) for v in values if isinstance(v, int | float)), None)


def read_run(root: Path, budget: float) -> RunFiles:
    """Read what a run has left behind.

    Args:
        root: its folder.
        budget: bytes that its token tables may take up in a page.

    Raises:
        ValueError: it is no run, or a file in it is broken. A missing file, one that was cut off
            in its last line, and token tables that can't be read are only noted.
        OSError: a file can't be read.
    """
    run = RunFolder(root)
    config = _read_config(run)
    notes: list[str] = []
    rows = _read_rows(run.metrics, _check_metrics, notes)
    samples = _read_rows(run.samples, _check_sample, notes)
    summary = _read_summary(run)
    if not summary:
        notes.append(
            "There is no summary.json: the run is still going on, or was killed. Shown is what "
            "there is so far; J on held-out prompts and the optimum are not among it."
        )
    elif summary.get("finished") is False:
        reason = summary.get("ended_by")
        notes.append(
            f"The run was stopped half-way{f' ({reason})' if reason else ''}: it was not evaluated "
            "after training, so J on held-out prompts and the optimum are missing."
        )
    elif summary.get("evaluated") is False:
        notes.append(
            "The run was not evaluated (--eval-responses 0): J on held-out prompts and the optimum "
            "are missing. `tokenrlhf evaluate` measures them."
        )
    if isinstance(summary.get("ended_early"), str):
        notes.append(f"The training was ended before its time: {summary['ended_early']}")
    tables, table_notes = read_tables(root, budget)
    rewards = read_rewards(root, config)
    return RunFiles(root, config, rows, samples, summary, tables, rewards, [*notes, *table_notes])


def _read_config(run: RunFolder) -> dict[str, Any]:
    if not run.root.is_dir():
        what = "is a file, not a folder" if run.root.exists() else "does not exist"
        raise ValueError(
            f"{str(run.root)!r} {what}: give the folder of a run, which `tokenrlhf train` writes."
        )
    if not run.config.is_file():
        raise ValueError(
            f"{str(run.root)!r} holds no run: {run.config.name} is missing. Give the folder that "
            "`tokenrlhf train` has written."
        )
    config = read_json_object(run.config, "the configuration of a run")
    missing = [name for name in ("task", "seed", "total_tokens") if name not in config]
    if missing:
        raise ValueError(
            f"{str(run.config)!r} is no configuration of a run, {', '.join(missing)} is missing: "
            f"give the folder that `tokenrlhf train` has written ({run.root.parent.name!r} above "
            "it?)."
        )
    _check_number(config, "total_tokens", str(run.config))
    return config


def _read_summary(run: RunFolder) -> dict[str, Any]:
    if not run.summary.is_file():
        return {}
    summary = read_json_object(run.summary, "the summary of a run", allow_nan=True)
    where = str(run.summary)
    for name in _NUMBERS:
        _check_number(summary, name, where)
    for name in _INTERVALS:
        ends = summary.get(name)
        is_interval = isinstance(ends, list) and len(ends) == 2
        if ends is not None and not (is_interval and all(type(v) in (int, float) for v in ends)):
            raise ValueError(f"{where}: {name!r} is {ends!r:.60}, it must be two numbers or null.")
    # Older files have NaN where a number is not known.
    return {name: None if value != value else value for name, value in summary.items()}


def _read_rows(path: Path, check: Check, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, without a last one that was cut off as it was written.

    Raises:
        ValueError: another line is broken.
    """
    if not path.is_file():
        notes.append(f"There is no {path.name}: what is shown from it is missing.")
        return []
    *lines, unended = path.read_bytes().split(b"\n")
    rows = [
        _parsed(line, f"{path}, line {number}", check)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if unended.strip():
        try:
            rows.append(_parsed(unended, f"{path}, line {len(lines) + 1}", check))
        except ValueError:
            notes.append(f"The last line of {path.name} is cut off, and left out here.")
    return rows


def _parsed(line: bytes, where: str, check: Check) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason}).") from error
    row = parse_json(text, where, allow_nan=True)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: needs a JSON object, got {row!r:.80}.")
    check(row, where)
    return row


def _check_number(row: dict[str, Any], name: str, where: str) -> None:
    value = row.get(name)
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{where}: {name!r} is {value!r:.60}, it must be a number or null.")


def _check_metrics(row: dict[str, Any], where: str) -> None:
    drawn = [name for name in row if name.startswith(("rlhf/", "eval/", "train/", TOKENS))]
    for name in drawn:
        _check_number(row, name, where)
    of_a_time = [name for name in drawn if not name.startswith("train/")]
    if of_a_time and row.get(TOKENS) is None:  # the last update has a row of its own, without it
        raise ValueError(f"{where}: {TOKENS!r} is missing, which says when {of_a_time[0]!r} was.")


def _check_sample(row: dict[str, Any], where: str) -> None:
    for name in ("tokens", "score", "gold_reward", "kl"):
        _check_number(row, name, where)
    for name in ("prompt", "response"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{where}: {name!r} is {row.get(name)!r:.60}, it must be a text.")
    if row.get("tokens") is None or row.get("score") is None:
        raise ValueError(f"{where}: tokens and score must be numbers.")
