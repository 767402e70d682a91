"""What lies beside a run about its reward: reports of reward models, audits, alarms.

A report of a reward model is `report.json` in its folder, that of a bundled one its task's card. An
audit is `audit.json` in the run's folder, or in the reward model's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.reward_quality.audit.files import NAME, read_audit
from agents.runs.folder import RunFolder
from agents.runs.reward_doubts import doubts_about
from tokenenv.addresses import names_server
from tokenenv.json_files import read_json_object
from tokenenv.tasks import is_bundled, load_task

__all__ = ["Accuracy", "RewardFiles", "RewardReport", "read_rewards", "reward_names"]

REPORT = "report.json"
CARD = "card.json"


@dataclass(frozen=True)
class Accuracy:
    """Share of the held-out pairs in the right order.

    Attributes:
        what: whose.
        value: it.
        interval: of 95 %; None where none is known.
    """

    what: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class RewardReport:
    """How good a reward model is on held-out pairs.

    Attributes:
        name: of the reward model, as the run's settings have it.
        source: the file that says it.
        pairs: held-out ones.
        training_pairs: that it learned from; None where it is not said.
        accuracies: its own first, then those of an ensemble's members and of rules.
        loss: −log σ(r_chosen − r_rejected), mean; None where it was not finite.
        calibration_error: expected, of σ(r_a − r_b); the same.
        bins: predicted probability, observed share and number of pairs; empty where unknown.
        notes: caveats, in sentences.
    """

    name: str
    source: Path
    pairs: int
    training_pairs: int | None
    accuracies: list[Accuracy]
    loss: float | None
    calibration_error: float | None
    bins: list[tuple[float, float, float]]
    notes: list[str]


@dataclass(frozen=True)
class RewardFiles:
    """Everything that is known of a run's reward beside its curves.

    Attributes:
        reports: of its reward models.
        audits: path → content.
        alarms: of the monitor of reward hacking: rule, tokens, text.
        missing: what there is not, and why, in sentences.
    """

    reports: list[RewardReport] = field(default_factory=list)
    audits: dict[Path, dict[str, Any]] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def reward_names(config: Mapping[str, Any]) -> list[str]:
    """What a run was trained against: as its settings name it, else the task, which has its own.

    Args:
        config: settings of a run.
    """
    named = config.get("reward_model")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [name for name in names if isinstance(name, str)] or [str(config.get("task"))]


def read_rewards(root: Path, config: Mapping[str, Any]) -> RewardFiles:
    """Read what lies beside a run about its reward; what can't be read is said, not refused.

    Args:
        root: folder of the run.
        config: its settings.
    """
    files = RewardFiles(alarms=_alarms(root))
    for name in dict.fromkeys(reward_names(config)):
        try:
            files.reports.append(_report(name, is_task=not config.get("reward_model")))
        except (OSError, ValueError) as error:
            files.missing.append(str(error))
    names = reward_names(config)
    for path in _audit_places(root, names):
        try:
            content = read_audit(path)
        except (OSError, ValueError) as error:
            files.missing.append(f"An audit can't be shown: {error}")
            continue
        if path.parent == root and not _is_of(content["reward_model"], root, names):
            files.missing.append(
                f"{path} is an audit of {content['reward_model']!r:.80}, and the run was trained "
                f"against {', '.join(map(repr, names)):.200}."
            )
        files.audits[path] = content
    return files


# Reports of reward models ------------------------------------------------------------------------


def _report(name: str, is_task: bool) -> RewardReport:
    """The report of a reward model; ValueError where there is none, saying why."""
    if is_bundled(name):
        source = load_task(name).reward_model
        card = Path(source).parent / CARD if isinstance(source, str) else None
        if card is None or not card.is_file():
            raise ValueError(f"The reward of the task {name!r} has no report of a training.")
        return _parsed(name, card, _of_card)
    if not os.path.isdir(name):
        what = (
            "is no folder here (relative ones are looked for where this command is called)"
            if ":" not in name
            else "is a task of your own"
            if is_task
            else "is on a server"
            if names_server(name)
            else "is a function"
        )
        raise ValueError(
            f"{name!r:.200} {what}: there is no report of a training, so that accuracy and "
            "calibration are not known."
        )
    path = Path(name) / REPORT
    if not path.is_file():
        raise ValueError(
            f"{name!r:.200} has no {REPORT}, which `tokenrlhf reward-model` writes: accuracy and "
            "calibration are not known."
        )
    return _parsed(name, path, _of_report)


def _parsed(name: str, path: Path, parse: Any) -> RewardReport:
    content = read_json_object(path, "the report of a reward model", allow_nan=True)
    try:
        report: RewardReport = parse(name, path, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r:.200} is no report of a reward model that can be read "
            f"({type(error).__name__}: {error})."
        ) from error
    return report


def _of_card(name: str, path: Path, content: dict[str, Any]) -> RewardReport:
    """The bundled reward model of a task: its card has no bins."""
    card = content["reward_model"]
    accuracy = float(card["accuracy"])
    half = 1.96 * float(card["accuracy_standard_error"])
    accuracies = [Accuracy("reward model", accuracy, (accuracy - half, min(1.0, accuracy + half)))]
    if "bayes_accuracy" in card:
        accuracies.append(Accuracy("who knows the annotator", float(card["bayes_accuracy"])))
    numbers = (float(card["loss"]), float(card["calibration_error"]))
    return RewardReport(
        name,
        path,
        int(card["held_out_pairs"]),
        int(card["training_pairs"]),
        accuracies,
        *numbers,
        [],
        [],
    )


def _of_report(name: str, path: Path, content: dict[str, Any]) -> RewardReport:
    """What `tokenrlhf reward-model` has written."""
    details = content["details"]
    members = details.get("members", [])
    own = ("ensemble" if members else "reward model", content["accuracy"])
    said = [(*own, details["accuracy_interval"])]
    said += [
        (f"member {number}", member["accuracy"], member["accuracy_interval"])
        for number, member in enumerate(members, 1)
    ]
    for rule in ("shorter_wins", "longer_wins"):
        if details.get(rule) is not None:
            words = f"the {rule.replace('_', ' ')}"
            said.append((words, details[rule]["accuracy"], details[rule]["interval"]))
    notes = [str(note) for note in content.get("notes", [])] + doubts_about(name)
    if content.get("ended_by") is not None or content.get("finished") is False:
        notes.append(
            f"Its training did not end well: {content.get('ended_by') or 'it was stopped'}"
        )
    return RewardReport(
        name,
        path,
        int(content["pairs"]),
        int(content["training_pairs"]),
        [
            Accuracy(what, float(value), (float(ends[0]), float(ends[1])))
            for what, value, ends in said
            if _finite(value) is not None
        ],
        _finite(content["loss"]),
        _finite(content["calibration_error"]),
        [
            (_number(row["predicted"]), _number(row["observed"]), _number(row["pairs"]))
            for row in details["calibration"]
        ],
        notes,
    )


def _finite(value: Any) -> float | None:
    """A number; None for none and for what is not finite."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _number(value: Any) -> float:
    """A number that is one; ValueError for others."""
    number = _finite(value)
    if number is None:
        raise ValueError(f"{value!r} is no number")
    return number


# Audits and alarms -------------------------------------------------------------------------------


def _audit_places(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """The files of audits that there are: the run's own, then those beside its reward models."""
    seen = set()
    folders = [Path(name) for name in names if os.path.isdir(name)]
    members = [member for folder in folders for member in sorted(folder.glob("member-*"))]
    for folder in [root, *folders, *members]:
        path = folder / NAME
        if path.is_file() and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            yield path


def _is_of(audited: Any, root: Path, names: Sequence[str]) -> bool:
    """Whether an audit's reward is one that a run was trained against, a member, or a copy."""
    if not isinstance(audited, str) or "\0" in audited:
        return False
    place = Path(os.path.realpath(audited))
    folders = [str(RunFolder(root).reward_model), *filter(os.path.isdir, names)]
    return audited in names or any(
        place.is_relative_to(os.path.realpath(folder)) for folder in folders
    )


def _alarms(root: Path) -> list[dict[str, Any]]:
    """The alarms, first ones first; a line that is none is passed over."""
    path = RunFolder(root).alarms
    alarms = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # cut off as it was written
            continue
        if (
            isinstance(row, dict)
            and type(row.get("tokens")) in (int, float)
            and math.isfinite(row["tokens"])
            and all(isinstance(row.get(name), str) for name in ("rule", "text"))
        ):
            alarms.append(row)
    return sorted(alarms, key=lambda row: row["tokens"])
