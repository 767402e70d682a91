"""Runs whose learning is measured, on one task by one evaluator; `learning_peer.py` has a peer's.

A run is a list of points, one JSON line each, which are appended to a file as they come: tokens,
seconds of training without the evaluations, and J on the same held-out prompts. A run whose last
point is in the file is not made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from agents import make_vec_env
from agents.config import TrainConfig
from agents.evaluation import HeldOut, measure
from agents.ppo import TokenPPO
from agents.runs.agent import build_agent
from tokenenv.models import NonFiniteNumbers, quiet_loading

# At the end: `examples/agents` must not hide the package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from real_task import environment, held_out_of, lexicon_sentiment

__all__ = [
    "BEFORE",
    "Point",
    "Run",
    "Say",
    "build",
    "evaluator",
    "read",
    "record",
    "train",
]

Point = dict[str, Any]
Say = Callable[[Point], None]

EVAL_SEED = 7_919
"""Of the responses that J is measured on: the same at every point of every run."""

BEFORE: Point = {"tokens": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0, "is_last": False}
"""What is known of a run before its training."""

POLICY_ARGUMENTS = "policy_kwargs."
"""Prefix of settings that are arguments of the policy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training to be measured.

    Attributes:
        task: name of a bundled task, or folder of a real one (`examples/real_task.py`).
        name: of the settings.
        seed: of the training.
        settings: fields of `TrainConfig`, arguments of `TokenPPO`, `policy_kwargs.NAME`; and
            `minibatches` per epoch instead of `batch_size`, and `adam_epsilon`.
        tokens: response tokens to train on.
        points: how often J is measured.
        responses: to each held-out prompt, where J is sampled.
        prompts: held-out ones, at most.
    """

    task: str
    name: str
    seed: int
    settings: Mapping[str, Any]
    tokens: int
    points: int = 10
    responses: int = 4
    prompts: int = 128

    @property
    def key(self) -> str:
        """The same for runs that are equal in everything but the settings' name."""
        content = {**dataclasses.asdict(self), "name": None, "settings": dict(self.settings)}
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The task's name."""
        return Path(self.task).name if Path(self.task).is_dir() else self.task


# The file ----------------------------------------------------------------------------------------


def read(path: Path) -> list[list[Point]]:
    """The finished runs of a file, each as its points; a line that was cut off is passed over."""
    runs: dict[str, list[Point]] = {}
    finished = []
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue
        key = f"{point['key']} {point['name']}"
        if point["tokens"] == 0:
            runs[key] = []
        runs.setdefault(key, []).append(point)
        if point["is_last"]:
            finished.append(runs.pop(key))
    return finished


def record(run: Run, make: Callable[[Run, Say], None], path: Path) -> list[Point]:
    """Make a run and append its points to a file, each as soon as it is known.

    Args:
        run: what to make.
        make: called with the run and a function that takes its points.
        path: of the file.

    Returns:
        The points; of the file, where the run is there already.
    """
    for known in read(path):
        if known[0]["key"] == run.key and known[0]["name"] == run.name:
            return known
    fields = {"task": run.label, "name": run.name, "seed": run.seed, "key": run.key}
    made: list[Point] = []

    def say(point: Point) -> None:
        made.append({**fields, "settings": dict(run.settings), **point})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(made[-1], default=str) + "\n")

    make(run, say)
    return made


# J -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evaluator:
    """J on held-out prompts, of any causal LM.

    Attributes:
        held_out: the prompts.
        responses: to each of them.
    """

    held_out: HeldOut
    responses: int

    def __call__(self, actor: Any, responses: int | None = None) -> dict[str, float]:
        """`objective`, `score`, `kl`, and the gold reward where it is known."""
        with torch.random.fork_rng():
            return measure(actor, self.held_out, responses or self.responses, EVAL_SEED)

    @property
    def reference(self) -> Any:
        """The untrained model."""
        return self.held_out.scorer.reference.language_model.model


def task_arguments(task: str) -> dict[str, Any]:
    """The arguments of the environment for a task's name, or for the folder of a real one."""
    return environment(Path(task)) if Path(task).is_dir() else {"task": task}


@cache
def evaluator(task: str, prompts: int, responses: int) -> Evaluator:
    """The evaluator of a task: of ours and of the peer's runs alike."""
    with quiet_loading():
        if Path(task).is_dir():
            gold = lexicon_sentiment if importlib.util.find_spec("vaderSentiment") else None
            return Evaluator(held_out_of(Path(task), prompts, gold), responses)
        arguments = {"task": task, "scoring": "deferred", "device": "cpu"}
        return Evaluator(HeldOut.from_env_kwargs(arguments, prompts), responses)


class Clock:
    """CPU seconds of this process and wall seconds, without the pauses."""

    def __init__(self) -> None:
        self.paused = [0.0, 0.0]
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds of both since the start."""
        cpu, wall = (
            now - start - paused
            for now, start, paused in zip(self._now(), self.start, self.paused, strict=True)
        )
        return {"cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2)}

    def pausing(self, function: Callable[[], Any]) -> Any:
        """What a function returns, whose time is not counted."""
        before = self._now()
        found = function()
        for i, (now, then) in enumerate(zip(self._now(), before, strict=True)):
            self.paused[i] += now - then
        return found


# Ours --------------------------------------------------------------------------------------------


def build(run: Run) -> TokenPPO:
    """The agent of a run.

    Raises:
        ValueError: a setting is unknown or can't be used.
    """
    settings = {"device": "cpu", "seed": run.seed, **task_arguments(run.task), **run.settings}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    minibatches = settings.pop("minibatches", None)
    policy = {
        name.removeprefix(POLICY_ARGUMENTS): settings.pop(name)
        for name in list(settings)
        if name.startswith(POLICY_ARGUMENTS)
    }
    if "adam_epsilon" in settings and "adam_epsilon" not in known:
        policy["optimizer_kwargs"] = {"eps": settings.pop("adam_epsilon")}
    agent = {name: settings.pop(name) for name in list(settings) if name not in known}
    config = TrainConfig(**settings, total_tokens=run.tokens)
    if minibatches is not None:
        size = -(-config.n_envs * config.n_steps // minibatches)
        config = dataclasses.replace(config, batch_size=size)
    env = make_vec_env(n_envs=config.n_envs, seed=config.seed, **config.environment())
    try:
        return build_agent(config, env, policy, **agent)
    except TypeError as error:
        raise ValueError(
            f"{error}: settings are fields of TrainConfig (tokenrlhf train --help), arguments of "
            f"TokenPPO, {POLICY_ARGUMENTS}NAME, minibatches and adam_epsilon."
        ) from error


def train(run: Run, say: Say) -> None:
    """Train, and measure J before it, `run.points` times in between, and at the end.

    A training whose loss is not finite ends with a point that says so in `failed`.

    Args:
        run: the run.
        say: called with each point.
    """
    judge = evaluator(run.task, run.prompts, run.responses)
    with quiet_loading():
        model = build(run)
    untrained = judge(judge.reference)
    say({**BEFORE, **untrained})
    clock, every, count = Clock(), run.tokens / run.points, 0

    def measured(**more: Any) -> None:
        nonlocal count
        count += 1
        seconds = clock.read()
        actor: Any = model.policy.actor  # type: ignore[union-attr]
        numbers = clock.pausing(lambda: judge(actor))
        say({"tokens": model.num_timesteps, **seconds, **numbers, **more})

    def after_update(_: Any) -> None:
        if every * (count + 1) <= model.num_timesteps < run.tokens:
            measured(is_last=False)

    model.on_updated = after_update
    try:
        model.learn(run.tokens)
        measured(is_last=True)
    except NonFiniteNumbers as error:  # nothing can be sampled from such a policy
        lost = dict.fromkeys(untrained, math.nan)
        end = {"tokens": model.num_timesteps, **clock.read(), **lost, "is_last": True}
        say({**end, "failed": str(error)})
