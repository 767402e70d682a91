"""Wrong calls of the command line, by the hundred: each is refused with its name, none breaks.

There are thousands: every setting of every command with every value that is wrong for it.
`make test-long` makes all of these calls; the slow test makes `PART` of them, the same each time.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

import pytest
from support.hostile import ESCAPES, SURROGATE, acting, sample, time_limit

from agents.cli import main
from agents.compare.config import CompareConfig
from agents.config import TrainConfig
from agents.inspection.config import DataConfig
from agents.labelling.config import LabelsAskConfig, SamplePairsConfig
from agents.plan.config import PlanConfig
from agents.play.config import PlayConfig
from agents.report.config import ReportConfig
from agents.reward_quality.audit.config import AuditConfig
from agents.reward_quality.best_of_n.config import BestOfNConfig
from agents.reward_quality.labels.config import LabelsCurveConfig, LabelsSelectConfig
from agents.runs.config import (
    EvaluateConfig,
    ExplainConfig,
    RewardModelConfig,
    SampleConfig,
)
from agents.serving.config import ServeRewardConfig
from agents.sft.config import SFTConfig
from agents.verification.config import VerifyConfig
from agents.zoo.config import ZooConfig

LONG = "x" * 5000

NO_WHOLE_NUMBERS = (
    *("-1", "1.5", "1e3", "nan", "inf", "", "abc", "0x10", "true", "1" + "0" * 20, "9" * 5000),
    *("1,000", ESCAPES, SURROGATE),
)
NO_NUMBERS = ("-1", "nan", "-inf", "", "abc", "1,5", "0x1p3", ESCAPES, SURROGATE)
OUT_OF_RANGE = ("-1", "-inf", "nan", "1" + "0" * 20)
"""Those of the numbers that the parser takes: it is the setting that refuses them."""
NO_CHOICES = ("", "nope", "None,", "GAE", "K1", ESCAPES, SURROGATE, LONG, "fixed ")
NO_NAMES = (
    *("/nowhere", "/dev/null", "a\0b", LONG, "no:where", ":", "os:", ":path", "os:nothing"),
    *("math:inf", "os.path:sep", ESCAPES, "a" + SURROGATE, "../..", "....:x", "-", "a b c", "::"),
)
NO_PLACES = ("a\0b", LONG, "/dev/null", "/dev/null/x", "/proc/nothing", "a" + SURROGATE)


class Call(NamedTuple):
    """A call that must be refused.

    Attributes:
        arguments: of the command line.
        named: the answer must hold one of these, apart from case and hyphens: the setting, or what
            was given for it.
    """

    arguments: tuple[str, ...]
    named: tuple[str, ...] = ("",)


REQUIRED: dict[type, dict[str, str]] = {
    TrainConfig: {"out": "OUT", "total-tokens": "64", "task": "exact", "device": "cpu"},
    EvaluateConfig: {"": "/nowhere"},
    SampleConfig: {"": "/nowhere", "prompt": "x"},
    ExplainConfig: {"": "/nowhere", "prompt": "x"},
    PlayConfig: {"task": "exact", "device": "cpu"},
    PlanConfig: {"model": "exact", "gpu-memory": "1", "max-new-tokens": "4", "device": "cpu"},
    RewardModelConfig: {"pairs": "PAIRS", "base": "exact", "out": "OUT"},
    LabelsCurveConfig: {"pairs": "PAIRS", "base": "exact", "out": "OUT", "seeds": "1"},
    LabelsAskConfig: {"": "POOL"},
    LabelsSelectConfig: {"pool": "POOL", "k": "1", "out": "NEW", "by": "random"},
    AuditConfig: {"": "exact", "pairs": "PAIRS", "device": "cpu"},
    SFTConfig: {"model": "exact", "data": "TEXT", "out": "OUT", "device": "cpu"},
    SamplePairsConfig: {"model": "exact", "prompts": "exact", "out": "NEW", "device": "cpu"},
    DataConfig: {"": "PAIRS"},
    BestOfNConfig: {"task": "exact", "device": "cpu"},
    ServeRewardConfig: {"": "/nowhere", "port": "0", "device": "cpu"},
    VerifyConfig: {"json": "/nowhere/x", "no-learning": ""},
    CompareConfig: {"out": "FILE", "envs": "CartPole-v1", "seeds": "1", "steps": "64"},
    ReportConfig: {"": "RUN"},
    ZooConfig: {"": "nope"},
}
"""Command → what it is called with. OUT is a new folder, FILE is a file where a folder must be,
PAIRS are some pairs, POOL one without a label, TEXT is a text, NEW a file that is not there, RUN
has what a report needs."""

COMMANDS = {
    TrainConfig: "train",
    EvaluateConfig: "evaluate",
    SampleConfig: "sample",
    ExplainConfig: "explain",
    PlayConfig: "play",
    PlanConfig: "plan",
    RewardModelConfig: "reward-model",
    LabelsCurveConfig: "labels curve",
    LabelsAskConfig: "labels ask",
    LabelsSelectConfig: "labels select",
    AuditConfig: "audit",
    SFTConfig: "sft",
    SamplePairsConfig: "sample-pairs",
    DataConfig: "data inspect",
    BestOfNConfig: "best-of-n",
    ServeRewardConfig: "serve-reward",
    VerifyConfig: "verify",
    CompareConfig: "compare",
    ReportConfig: "report",
    ZooConfig: "zoo",
}

NAMES = {
    **dict.fromkeys(("task", "actor", "reference", "reward_model", "prompts", "critic"), NO_NAMES),
    **dict.fromkeys(
        (
            *("pool", "reward_models", "exclude", "ppo_config"),
            *("base", "pairs", "run", "runs", "tokenizer", "model", "data", "reward", "labels"),
            *("gold", "word_lists", "probe_sentences"),
        ),
        NO_NAMES,
    ),
    "shift_pairs": NO_NAMES,  # and no --shift-every
    **dict.fromkeys(("refresh_labels", "refresh_old_pairs"), NO_NAMES),  # and no --refresh-every
    "sizes": NO_WHOLE_NUMBERS,
    "sweep": ("", "=", "nope=1", "seed=1,2", "gamma=", "gamma=1,,2", "gamma=1,1", ESCAPES, LONG),
    "lora_target_modules": ("", " ", "q_proj"),  # and no rank
    "config": ("", "/nowhere/x.yaml", "/", ESCAPES, LONG, "a\0b", SURROGATE, "zoo:", "zoo:x"),
    "zoo": ("/nowhere", "/dev/null", "a\0b", LONG, ESCAPES, SURROGATE),
    "name": ("nope", "/", "../exact", ESCAPES, LONG, "zoo:"),
    "tracker": ("", "no_such_module", "json", ".", "a/b", ESCAPES, LONG),
    "resume": ("", "/nowhere", "/dev/null", "a\0b", LONG, ESCAPES, SURROGATE),
    "tracker_project": (),
    "device": ("", "quantum", "cuda:-1", "cpu:x", "meta:9", ESCAPES, LONG),
    "out": NO_PLACES,
    "json": ("a\0b", LONG, "/", "/nowhere/x", "/dev/null/x", ""),
    "envs": (
        "",
        "Nope-v0",
        "a:b",
        "Pendulum-v1",
        "no.such:Env-v0",
        ESCAPES,
        LONG,
        "a/b/c-v0",
        "-v0",
    ),
    "columns": (
        "",
        "=",
        "a",
        "prompt=",
        "=x",
        "promt=x",
        "prompt=nothing",
        ESCAPES,
        SURROGATE,
        LONG,
    ),
    "host": ("", "no host", "256.1.1.1", "1.2.3.4.5", ESCAPES, LONG, "a/b"),
    "replies": ("a\0b", "/", "/dev/null/x", "/proc/nothing/x", LONG),
    "prompt": (),
    "documents": (),
    "file": tuple(name for name in NO_NAMES if "\0" not in name and SURROGATE not in name),
    "response": (),
    "figures": (),  # read after the run, which comes first
    "figure": ("a\0b", LONG, "/", "x.jpg", "/nowhere/x.png", "/dev/null/x", ""),
}
"""Settings that are texts → texts that can't be right."""


def wrong_values(name: str, hint: Any) -> tuple[str, ...]:
    """Values of a setting that can't be right, as arguments."""
    optional = typing.get_origin(hint) in (Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if optional else {hint}
    if kinds - {type(None)} == {bool}:  # `json` of one command is a file, of another a flag
        return ("=maybe",)
    if name in NAMES:
        return NAMES[name]
    if kinds & {int, tuple[int, ...]}:
        return NO_WHOLE_NUMBERS
    if float in kinds or tuple[float, ...] in kinds:
        return NO_NUMBERS
    if any(typing.get_origin(kind) is Literal for kind in kinds) or "agents" in name:
        return NO_CHOICES
    raise AssertionError(f"the suite knows no wrong values for {name}: {hint}")


def call(config: type, name: str, value: str) -> Call:
    """A call of a command with one wrong value."""
    required = dict(REQUIRED[config])
    option = "run" if name == "runs" else name.replace("_", "-")  # as messages call it
    is_positional = name in ("run", "runs", "file", "name", "reward_model") and "" in required
    if is_positional:
        required[""] = value
    elif value.startswith("=") and value != "":
        required[f"{option}{value}"] = ""
    else:
        required.pop(option, None)
    arguments = COMMANDS[config].split()
    for key, known in required.items():
        arguments += [f"--{key}"] * bool(key) + [known] * bool(known)
    if not is_positional and not value.startswith("="):
        arguments.append(f"--{option}={value}")
    is_telling = len(without_marks(value)) > 3
    return Call(tuple(arguments), (option, value[:40]) if is_telling else (option,))


def single_mistakes() -> list[tuple[Call, bool]]:
    """Every setting of every command with every value that is wrong for it.

    With each, whether it is of the part that the slow test makes: numbers out of their range, which
    every setting checks for itself, and of the values that are refused for their kind every eighth,
    the n-th setting's from its n-th value on. So no setting is left out, and commands meet all
    kinds of values.
    """
    calls = []
    for config in COMMANDS:
        hints = typing.get_type_hints(config)
        for number, field in enumerate(dataclasses.fields(config)):
            values = wrong_values(field.name, hints[field.name])
            is_unnamed = config in (AuditConfig, ServeRewardConfig)  # no option names it there
            if is_unnamed and field.name == "reward_model":
                values = tuple(v for v in values if "\0" not in v and SURROGATE not in v)
            step = min(8, max(1, len(values)))
            for place, value in enumerate(values):
                is_of_part = (place - number) % step == 0 or value in OUT_OF_RANGE
                calls.append((call(config, field.name, value), is_of_part))
    return calls


STRUCTURE = [
    Call(arguments)
    for arguments in (
        *((), ("",), ("-",), ("--",), ("trian",), ("train", "train"), ("--train",), (LONG,)),
        *((ESCAPES,), (SURROGATE,), ("help",), ("train", "--seed")),
        *(("train", "--sede", "1"), ("train", "-seed", "1"), ("train", "seed=1")),
        *(("train", "extra"), ("train", "--seed", "1", "2"), ("train", "--seed=1=2")),
        *(("train", "--overwrite", "yes"), ("train", f"--{LONG}"), ("train", f"--{ESCAPES}=1")),
        *(("evaluate",), ("evaluate", "a", "b"), ("evaluate", "--run", "a"), ("sample", "a")),
        *(("sample", "--prompt", "x"), ("sample", "a", "--prompt"), ("reward-model",)),
        *(("sft",), ("sft", "--model", "x"), ("sft", "a"), ("sample-pairs", "--ask")),
        *(("sample-pairs", "-n"), ("sample-pairs", "--model", "x", "--ask", "yes")),
        *(("labels",), ("labels", "curve"), ("labels", "buy"), ("labels", "select", "-k", "1")),
        *(("reward-model", "--pairs", "a"), ("verify", "extra"), ("compare", "--agents")),
        *(("play", "extra"), ("play", "--prompt"), ("play", "--run", "a", "--task", "exact")),
        *(("play", "--prompt-json"), ("play", "--prompt", "[1]", "--prompt-json")),
        *(("best-of-n", "extra"), ("best-of-n", "-n"), ("best-of-n", "-n", "2", "2")),
        *(("best-of-n", "-n", "9", "--samples", "8"), ("best-of-n", "--run", "a", "--task", "x")),
        *(("compare", "--agents", "ppo", "ppo"), ("compare", "--envs"), ("evaluate", "")),
        *(("sample", "", "--prompt", "x"), ("compare", "--envs", "CartPole-v1", "CartPole-v1")),
        *(
            ("report",),
            ("report", "a", "a"),
            ("report", "a", "--out"),
            ("report", "--megabytes", "1"),
            ("data",),
            ("data", "look", "a"),
            ("data", "inspect"),
            ("data", "inspect", "a", "b"),
        ),
    )
]


def without_marks(text: str) -> str:
    """Letters and digits alone: a box may break a line, options are written in two ways."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


MISTAKES = single_mistakes()
CALLS = [*STRUCTURE, *(call for call, _ in MISTAKES)]
PART = [*STRUCTURE, *(call for call, is_of_part in MISTAKES if is_of_part)]


def check(wrong: Call, folder: Path, capsys: Any) -> str | None:
    """What is wrong with the answer to a call; None where nothing is."""
    (folder / "file").write_text("")
    pairs = [{"prompt": p, "chosen": " do", "rejected": " re"} for p in ("do", "re", "mi")]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    pool = {"prompt": "do", "response_a": " do", "response_b": " re"}
    (folder / "pool.jsonl").write_text(json.dumps(pool))
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "config.json").write_text('{"task": "x", "seed": 0, "total_tokens": 1}')
    (folder / "text").write_text("do re mi\n")
    (folder / "pairs-to-be").unlink(missing_ok=True)
    places = {
        "OUT": "new",
        "TEXT": "text",
        "NEW": "pairs-to-be",
        "FILE": "file",
        "PAIRS": "pairs.jsonl",
        "POOL": "pool.jsonl",
        "RUN": "run",
    }
    places = {name: str(folder / place) for name, place in places.items()}
    arguments = [places.get(argument, argument) for argument in wrong.arguments]
    capsys.readouterr()
    try:
        with time_limit():
            status = main(arguments)
    except SystemExit as stopped:  # refused by the argument parser
        status = stopped.code
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    captured = capsys.readouterr()
    said = captured.err + captured.out
    if status != 2:
        return f"status {status}"
    if "Traceback" in said or acting(said):
        return f"a traceback or controls in {said!r:.300}"
    if not captured.err.strip():
        return "no word of explanation"
    if not any(without_marks(name) in without_marks(captured.err) for name in wrong.named):
        return f"{wrong.named!r} is not named in {captured.err!r:.600}"
    return None


def failures(calls: list[Call], folder: Path, capsys: Any) -> list[str]:
    """The calls whose answer is wrong, with why."""
    found = []
    for wrong in calls:
        fault = check(wrong, folder, capsys)
        if fault is not None:
            found.append(f"{[a[:60] for a in wrong.arguments]}: {fault}")
    return found


def test_there_are_as_many_wrong_calls_as_promised():
    assert len({c.arguments for c in CALLS}) >= 600
    assert len({c.arguments for c in PART}) >= 600


def test_the_part_has_every_setting_of_every_command():
    whole = {(call.arguments[0], call.named[0]) for call, _ in MISTAKES}
    assert {(c.arguments[0], c.named[0]) for c, is_of_part in MISTAKES if is_of_part} == whole


def test_wrong_calls_are_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")
    is_of_names = {call: call.named[0].replace("-", "_") in NAMES for call in CALLS}
    parsed = [call for call in CALLS if not is_of_names[call]]  # refused before a model is loaded
    named = [call for call in CALLS if is_of_names[call]]
    found = failures([*sample(parsed, 30), *sample(named, 4)], tmp_path, capsys)
    assert not found, "\n".join(found)


def refuse(calls: list[Call], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Make the calls, and fail with those whose answer is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")
    found = failures(calls, tmp_path, capsys)
    assert not found, f"{len(found)} of {len(calls)}:\n" + "\n".join(found)


@pytest.mark.slow
def test_a_part_of_all_wrong_calls_is_refused_by_name(tmp_path, monkeypatch, capsys):
    refuse(PART, tmp_path, monkeypatch, capsys)


@pytest.mark.long
@pytest.mark.parametrize("quarter", range(4))
def test_all_wrong_calls_are_refused_by_name(quarter, tmp_path, monkeypatch, capsys):
    refuse(CALLS[quarter::4], tmp_path, monkeypatch, capsys)
