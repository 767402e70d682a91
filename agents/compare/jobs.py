"""The work of a comparison in pieces, each of which writes a separate file.

`runs/ENV--AGENT--SEED.json`, `scales/ENV.json`, `fingerprints/ENV.json`: written in one step when
the piece is finished, with everything that its result depends on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents.atomic_files import write_json
from agents.compare.config import CompareConfig
from agents.compare.environments import CLASSIC, make_env
from agents.compare.evaluators import LearningCurve, ObjectiveEvaluator, ReturnEvaluator
from agents.compare.fingerprints import measure_fingerprint
from agents.compare.kept_results import check_result
from agents.compare.learners import build_learner, is_judged_by_objective, learner_settings
from agents.compare.scales import measure_scale
from agents.zoo import environment_settings
from tokenenv.json_files import read_json_object

__all__ = ["Job", "read_result", "run_job", "steps_of"]


def steps_of(config: CompareConfig, env: str) -> int:
    """The steps of a run in an environment: those asked for, else the budget of its file."""
    return config.steps or environment_settings(env, config.zoo).steps


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        what: `"run"`, `"scale"` or `"fingerprint"`.
        env: id.
        kind: of the environment.
        settings: everything else that the result depends on; JSON only.
    """

    what: str
    env: str
    kind: str
    settings: dict[str, Any]

    @classmethod
    def run(cls, config: CompareConfig, env: str, kind: str, agent: str, seed: int) -> Job:
        """Training and judging one agent."""
        names = ("evaluations", "episodes" if kind == CLASSIC else "prompts")
        settings = {name: getattr(config, name) for name in names}
        settings["steps"] = steps_of(config, env)
        learner = learner_settings(agent, env, kind, config.zoo)
        return cls("run", env, kind, {"agent": agent, "seed": seed, **settings, "learner": learner})

    @classmethod
    def scale(cls, config: CompareConfig, env: str, kind: str) -> Job:
        """Measuring what is 0 and what is 1."""
        names = ("episodes", "prompts")
        return cls("scale", env, kind, {name: getattr(config, name) for name in names})

    @classmethod
    def fingerprint(cls, config: CompareConfig, env: str, kind: str) -> Job:
        """Measuring what kind of MDP it is."""
        return cls("fingerprint", env, kind, {"episodes": config.fingerprint_episodes})

    @property
    def work(self) -> int:
        """Steps that progress is counted in."""
        return int(self.settings["steps"]) if self.what == "run" else 0

    @property
    def name(self) -> str:
        """The name that is displayed."""
        if self.what == "run":
            return f"{self.settings['agent']} on {self.env}, seed {self.settings['seed']}"
        return f"{self.what} of {self.env}"

    def path(self, root: Path) -> Path:
        """The file of its result in the folder of a comparison."""
        env = self.env.replace("/", "-").replace(":", "-")
        if self.what == "run":
            env = f"{env}--{self.settings['agent']}--{self.settings['seed']}"
        return root / f"{self.what}s" / f"{env}.json"


def read_result(job: Job, root: Path) -> dict[str, Any] | None:
    """The result of an earlier run; None where the job has not been done.

    Raises:
        ValueError: it was done with other settings, or its file is broken.
    """
    path = job.path(root)
    if not path.is_file():
        return None
    try:
        content = read_json_object(path, "a result of a comparison")
        earlier, result = content.get("settings"), content.get("result")
        if not (isinstance(earlier, dict) and isinstance(result, dict)):
            raise ValueError("it holds two objects, 'settings' and 'result'")
    except ValueError as error:
        raise _no_result(path, error) from error
    changed = _changed(earlier, json.loads(json.dumps(job.settings)))  # lists where tuples were
    if changed:
        raise ValueError(
            f"{str(root)!r} holds {job.name} with other settings ({'; '.join(changed)}): results "
            "of both can't be compared. Give the same settings, choose another --out, or pass "
            "--overwrite to remove them."
        )
    try:
        check_result(job.what, result)
    except ValueError as error:
        raise _no_result(path, error) from error
    return result


def _changed(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different, by name; of the agent's settings those that are."""
    changed = []
    for name in dict.fromkeys([*earlier, *now]):
        was, is_now = earlier.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            changed += [f"the {name}'s {one}" for one in _changed(was, is_now)]
        elif was != is_now:
            changed.append(f"{name} was {was!r}, now {is_now!r}")
    return changed


def _no_result(path: Path, error: ValueError) -> ValueError:
    return ValueError(
        f"{str(path)!r} is no result of a comparison ({str(error).rstrip('.')}): remove it, or "
        "choose another --out."
    )


def run_job(job: Job, root: Path, on_steps: Callable[[int], None] = lambda _: None) -> None:
    """Do a piece of work and write its file.

    Args:
        job: which.
        root: folder of the comparison.
        on_steps: called with the number of steps since the last call.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and the same numbers come of any number
    try:
        result = _DO[job.what](job, on_steps)
    finally:
        torch.set_num_threads(threads)
    path = job.path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": job.settings, "result": result})


def _scale(job: Job, on_steps: Callable[[int], None]) -> dict[str, Any]:
    return asdict(measure_scale(job.env, job.settings["episodes"], job.settings["prompts"]))


def _fingerprint(job: Job, on_steps: Callable[[int], None]) -> dict[str, Any]:
    env = make_env(job.env)
    try:
        return asdict(measure_fingerprint(env, job.settings["episodes"]))
    finally:
        env.close()


def _run(job: Job, on_steps: Callable[[int], None]) -> dict[str, Any]:
    settings = job.settings
    agent, seed, steps = settings["agent"], settings["seed"], settings["steps"]
    learner = settings["learner"]
    model = build_learner(agent, job.env, job.kind, seed, learner)
    is_classic = job.kind == CLASSIC
    count = settings["episodes" if is_classic else "prompts"]
    evaluator: ReturnEvaluator | ObjectiveEvaluator
    if is_judged_by_objective(agent, job.kind):
        evaluator = ObjectiveEvaluator(job.env, count)
    else:
        evaluator = ReturnEvaluator(
            learner.get("env_id", job.env),
            count,
            max(1, count // (5 if is_classic else 4)),
            learner.get("env_kwargs"),
            learner.get("frame_stack", 1),
        )
    curve = LearningCurve(evaluator, steps, settings["evaluations"], on_steps)
    callbacks: list[BaseCallback] = [curve]
    if isinstance(curve.evaluator, ObjectiveEvaluator):
        callbacks.insert(0, curve.evaluator.metrics)
    start = time.perf_counter()
    model.learn(steps, callback=callbacks)
    seconds = time.perf_counter() - start - curve.seconds
    cpu_seconds = curve.cpu_until_now()
    explained = model.logger.name_to_value.get("train/explained_variance")
    assert model.env is not None
    model.env.close()
    final = curve.evaluator.final(model)
    return {
        **final,
        "curve": [*curve.points, [model.num_timesteps, final["value"]]],
        "curve_cpu_seconds": [*curve.cpu_at, cpu_seconds],
        "steps": model.num_timesteps,
        "train_seconds": seconds,
        "train_cpu_seconds": cpu_seconds,
        "steps_per_second": model.num_timesteps / seconds,
        "explained_variance": None if explained is None else float(explained),
    }


_DO: dict[str, Callable[[Job, Callable[[int], None]], dict[str, Any]]] = {
    "run": _run,
    "scale": _scale,
    "fingerprint": _fingerprint,
}
