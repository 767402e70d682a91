"""What the page says of a run's reward in words and tables: accuracy, audits, alarms, shift."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.report.reward_files import RewardReport, reward_names
from agents.report.run_files import RunFiles

__all__ = ["audit_command", "reward_context"]

_TONES = {"strong": "bad", "medium": "warning", "weak": "warning"}
_MISSED = {"correlation": "ρ", "excess": "an excess", "shift": "a shift"}


def reward_context(run: RunFiles) -> dict[str, Any]:
    """What the template shows of a run's reward.

    Args:
        run: its files.
    """
    missing, audits = list(run.rewards.missing), []
    if run.config.get("refresh_every") and run.rewards.reports:
        missing.append(
            "The reward model learned on during the training (--refresh-every): what is said of "
            "its accuracy is of the one that it began with."
        )
    for path, content in run.rewards.audits.items():
        try:
            audits.append(_audit(path, content))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            missing.append(f"{path} is no audit that can be shown ({type(error).__name__}).")
    return {
        "models": [_model(report) for report in run.rewards.reports],
        "audits": audits,
        "audit_command": audit_command(run),
        "alarms": [
            {**alarm, "at": f"{alarm['tokens']:,.0f} tokens"} for alarm in run.rewards.alarms
        ],
        "no_alarms": _no_alarms(run.config),
        "has_shift": any(row.get("rlhf/shift") is not None for row in run.rows),
        "missing": missing,
    }


def _model(report: RewardReport) -> dict[str, Any]:
    learned = "" if report.training_pairs is None else f"learned from {report.training_pairs:,}"
    facts = [f"{report.pairs:,} held-out pairs", learned]
    if report.loss is not None:
        facts.append(f"loss {report.loss:.3f} nats a pair (0.693 knows nothing)")
    if report.calibration_error is not None:
        facts.append(f"expected calibration error {report.calibration_error:.3f}")
    if not report.bins:
        facts.append("no bins of the calibration are known")
    return {
        "name": report.name,
        "source": str(report.source),
        "facts": ", ".join(fact for fact in facts if fact),
        "rows": [
            {
                "what": one.what,
                "accuracy": f"{one.value:.3f}",
                "interval": ""
                if one.interval is None
                else f"{one.interval[0]:.3f} … {one.interval[1]:.3f}",
            }
            for one in report.accuracies
        ],
        "notes": report.notes,
    }


def audit_command(run: RunFiles) -> str:
    """The command that makes an audit of a run's reward and leaves it where the page finds it.

    Args:
        run: its files.
    """
    config = run.config
    name, place = reward_names(config)[0], str(run.root)
    if len(reward_names(config)) > 1 and os.path.isdir(name):
        place = name  # each beside its reward model
    if os.path.isdir(os.path.join(name, "member-1")):  # of an ensemble, one is audited
        name = os.path.join(name, "member-1")
    words = ["tokenrlhf", "audit", name, "--prompts", str(config.get("prompts") or config["task"])]
    if config.get("prompts") or config.get("reference"):
        words += ["--reference", str(config.get("reference") or config["task"])]
    return shlex.join([*words, "--out", place])


def _no_alarms(config: Mapping[str, Any]) -> str:
    """What it means that there are no alarms."""
    setting = config.get("on_hacking_alarm")
    if setting is None:
        return "Whether there was a monitor is not known: the run is older than that setting."
    if setting == "ignore":
        return "Nobody looked: the monitor was off (--on-hacking-alarm ignore)."
    return "None was raised. That says as much as the monitor's rules see."


# Audits ------------------------------------------------------------------------------------------


def _audit(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """An audit for the template; KeyError and the like where its content is another one."""
    texts, score = content["texts"], content["score"]
    facts = [f"{texts['responses']:,} responses to {texts['prompts']:,} prompts"]
    if score["agreement_with_labels"] is not None:
        facts.append(f"it agrees with {score['agreement_with_labels']:.1%} of the labels")
    if score["correlation_with_gold"] is not None:
        facts.append(
            f"rank correlation with the gold reward {_signed(score['correlation_with_gold'])}"
        )
    missed = [
        f"{_MISSED[kind]} up to ±{float(half):.2f}"
        for kind, half in content["half_of_the_widest_interval"].items()
        if kind in _MISSED
    ]
    return {
        "of": str(content["reward_model"]),
        "source": str(path),
        "facts": ", ".join(facts),
        "faults": [str(fault) for fault in content["faults"]],
        "verdicts": [
            {
                "tone": _TONES.get(one["grade"], "note"),
                "head": f"{one['grade']}, {abs(one['strength']):.2f} deviations of the score",
                "said": str(one["said"]),
            }
            for one in content["verdicts"]
        ],
        "missed": ", ".join(missed),
        "probes": [_probe(one) for one in content["probes"]],
        "features": [_feature(one) for one in content["features"]],
        "has_labels": any(one["preference"] is not None for one in content["features"]),
        "has_gold": content["gold"] is not None,
    }


def _probe(one: Mapping[str, Any]) -> dict[str, str]:
    return {
        "what": str(one["what"]),
        "responses": f"{one['responses']:,}",
        "shift": _band(one["shift"], "too few"),
        "rises": _share(one["share_that_rises"]),
        "unseen": _share(one["share_with_unseen_tokens"]),
        "strength": _signed(one["strength"]) if one["strength"] else "",
    }


def _feature(one: Mapping[str, Any]) -> dict[str, str]:
    preference = one["preference"]
    return {
        "what": str(one["what"]),
        "name": str(one["feature"]).replace("_", " "),
        "correlation": _band(one["correlation"], "hardly varies"),
        "reward": "" if preference is None else _share(preference["reward"]),
        "labels": "" if preference is None else _share(preference["labels"]),
        "excess": "hardly differs" if preference is None else _band(preference["excess"], ""),
        "strength": _signed(one["strength"]) if one["strength"] else "",
    }


def _band(band: Mapping[str, Any] | None, otherwise: str) -> str:
    """A number with its interval."""
    if band is None:
        return otherwise
    return f"{_signed(band['value'])} ({_signed(band['low'])} … {_signed(band['high'])})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}".replace("%", " %")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
