"""Trainings against reward models of known quality, with the remedies for reward hacking.

The reward models are learned from few or many pairs of the reference of `reviews`, labelled by its
annotator, so that the gold reward is known; it is recorded, and no part of the training sees it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents import RLHFCallback, make_vec_env
from agents.atomic_files import write_json
from agents.config import TrainConfig
from agents.evaluation import HeldOut, measure
from agents.reward_quality.hacking.monitor import HackingMonitor
from agents.reward_quality.refresh import (
    OwnRewardModels,
    RefreshCallback,
    RefreshSettings,
    RewardRefresher,
    annotator,
)
from agents.runs.agent import build_agent
from agents.runs.reward_doubts import rules_about
from agents.runs.reward_model_config import RewardTrainingOptions
from tokenenv.rewards import (
    RewardModel,
    RewardTrainingSettings,
    TokenPair,
    evaluate_preferences,
    fit_reward_model,
    new_reward_model,
    train_reward_model,
)
from tokenenv.tasks.reviews import FOLDER
from tokenenv.tasks.reviews.build.measuring import sample_pairs

__all__ = [
    "KL_TARGET",
    "MODELS",
    "REMEDIES",
    "TOKEN_COST",
    "Remedy",
    "Run",
    "read",
    "record",
    "train",
]

MODELS: dict[str, int | None] = {"weak": 150, "middling": 600, "good": None}
"""Reward model → preference pairs it is learned from; None: the one that ships with the task."""

GOOD_PAIRS = 4000
"""Pairs of the further members of an ensemble of good reward models."""

SHARPNESS = 12.0
"""Of the annotator, as in the task's build."""

MEMBERS = 3
"""Reward models of an ensemble: of the same pairs, with other seeds of head and order."""

EVAL_SEED = 7_919
"""Of the responses to held-out prompts: the same for every policy."""

TOKEN_COST = 0.1
"""Of the length penalty, in the unit of the score."""

KL_TARGET = 4.0
"""Of the controlled runs, in nats per response."""


REFRESH = {"refresh_every": 4, "refresh_pairs": 128}
"""Updates between two rounds, and the labels that a round takes."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something against hacking.

    Attributes:
        settings: fields of `TrainConfig`.
        ensemble: whether it needs several reward models.
        costs_tokens: whether every token of a response costs `TOKEN_COST`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    ensemble: bool = False
    costs_tokens: bool = False


REMEDIES: dict[str, Remedy] = {
    "none": Remedy(),
    "length penalty": Remedy(costs_tokens=True),
    "KL target, adaptive": Remedy(
        {"kl_controller": "adaptive", "kl_target": KL_TARGET, "kl_horizon": 500.0}
    ),
    "KL target, dual": Remedy({"kl_controller": "dual", "kl_target": KL_TARGET}),
    "score clipped": Remedy({"score_clip": 1.5}),
    "ensemble, mean": Remedy({"combine": "mean"}, ensemble=True),
    "ensemble, min": Remedy({"combine": "min"}, ensemble=True),
    "ensemble, uncertainty": Remedy({"combine": "uncertainty"}, ensemble=True),
    "monitor raises beta": Remedy({"on_hacking_alarm": "raise-kl"}),
    "refresh": Remedy({**REFRESH, "refresh_epochs": 2}),
    "accuracy measured": Remedy({**REFRESH, "refresh_epochs": 0}),
}
"""Remedies that are trained with. A stop by the monitor needs no run of its own: until then the run
without a remedy is the same. Nor is the last one any: it is no remedy, beside which `refresh`
stands."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Attributes:
        model: key of `MODELS`.
        remedy: key of `REMEDIES`.
        seed: of pairs, reward model and training.
        tokens: response tokens to train on.
        settings: fields of `TrainConfig` that all runs share.
        responses: to each held-out prompt in an evaluation.
        prompts: held-out ones.
        judged: pairs that the reward model's accuracy is of.
    """

    model: str
    remedy: str
    seed: int
    tokens: int
    settings: Mapping[str, Any]
    responses: int = 8
    prompts: int = 64
    judged: int = 1000

    @property
    def key(self) -> str:
        """The same for equal runs."""
        remedy = asdict(REMEDIES[self.remedy])
        content = {**asdict(self), "settings": dict(self.settings), "remedy_settings": remedy}
        return json.dumps(content, sort_keys=True)

    @property
    def missing_option(self) -> str | None:
        """An option of `tokenrlhf train` that the remedy needs and that there is not."""
        known = {one.name for one in dataclasses.fields(TrainConfig)}
        needed = REMEDIES[self.remedy].settings
        return next((name for name in needed if name not in known), None)


# The file ----------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, one JSON line each; a line that was cut off is passed over."""
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            runs.append(json.loads(line))
    return runs


def record(run: Run, path: Path) -> tuple[dict[str, Any], bool]:
    """Make a run and append it to a file; returns it, and whether it had to be made."""
    for known in read(path):
        if known["key"] == run.key:
            return known, False
    start = time.process_time()
    made = {"key": run.key, "model": run.model, "remedy": run.remedy, "seed": run.seed}
    made |= train(run, path.with_suffix(".models"))
    made["cpu_seconds"] = time.process_time() - start
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    return made, True


# Reward models -----------------------------------------------------------------------------------


def reward_models(run: Run, members: int, folder: Path) -> list[dict[str, Any]]:
    """Reward models of the same pairs, trained unless they are there: `path` and `accuracy`."""
    pairs, seed = MODELS[run.model], run.seed
    found: list[dict[str, Any]] = []
    if pairs is None:  # beside it stand others of nearly as many pairs, the same for all seeds
        found.append({"path": str(FOLDER / "reward_model"), "accuracy": None})
        pairs, seed = GOOD_PAIRS, 0
    for member in range(len(found), members):
        place = folder / f"{pairs}-pairs-seed-{seed}-member-{member}"
        said = place / f"accuracy-{run.judged}.json"
        if not said.is_file() or not (place / "report.json").is_file():
            accuracy = _train_reward_model(pairs, seed, member, place, run.judged)
            said.write_text(json.dumps({"accuracy": accuracy}), encoding="utf-8")
        facts = json.loads(said.read_text(encoding="utf-8"))
        found.append({"path": str(place), **facts})
    return found


def _labelled(pairs: int, seed: int) -> list[TokenPair]:
    return sample_pairs(FOLDER, "train", pairs, SHARPNESS, 1000 + seed).pairs


def _first_pairs(model: str, seed: int) -> list[TokenPair]:
    """What a reward model has learned from; of the one that ships they are not there."""
    pairs = MODELS[model]
    return [] if pairs is None else _labelled(pairs, seed)


def _train_reward_model(pairs: int, seed: int, member: int, place: Path, judged: int) -> float:
    """As `tokenrlhf reward-model` does, on all pairs; its accuracy is of fresh ones.

    Its report is that of a training which holds out as many pairs as the command does.
    """
    labelled = _labelled(pairs, seed)
    own_seed = seed + 1000 * member
    settings = RewardTrainingSettings(eval_fraction=0.0, early_stopping=False, seed=own_seed)
    model = new_reward_model(str(FOLDER / "reference"), seed=own_seed)
    fit_reward_model(labelled, model, settings)
    sides = [side for pair in labelled for side in (pair.chosen, pair.rejected)]
    model.measure_normalization(model.raw_rewards(sides))
    model.save_pretrained(place)
    write_json(place / "report.json", _report(labelled, settings))
    return _accuracy(model, seed, judged)


def _report(labelled: list[TokenPair], settings: RewardTrainingSettings) -> dict[str, Any]:
    """What a run reads of a reward model's report."""
    model = new_reward_model(str(FOLDER / "reference"), seed=settings.seed)
    fraction = RewardTrainingOptions().report_fraction
    report = train_reward_model(
        labelled, model, dataclasses.replace(settings, report_fraction=fraction)
    )
    interval = report.details["accuracy_interval"]
    details = {"accuracy_interval": list(interval)}
    return {"accuracy": report.accuracy, "pairs": report.pairs, "details": details}


def _accuracy(model: RewardModel, seed: int, count: int) -> float:
    held_out = sample_pairs(FOLDER, "eval", count, SHARPNESS, 2000 + seed).pairs
    chosen, rejected = (
        model.raw_rewards([getattr(pair, side) for pair in held_out])
        for side in ("chosen", "rejected")
    )
    nothing, certain = np.zeros(len(held_out)), np.ones(len(held_out))
    accuracy: float = evaluate_preferences(chosen, rejected, nothing, certain).accuracy
    return accuracy


# Trainings ---------------------------------------------------------------------------------------


class _Recorder(BaseCallback):
    """Keeps the metrics of every rollout."""

    def __init__(self, rlhf: RLHFCallback, monitor: HackingMonitor) -> None:
        super().__init__()
        self.rlhf, self.monitor = rlhf, monitor
        self.rollouts: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        logged = self.logger.name_to_value
        beside = ("rlhf/features/", "rlhf/rm_accuracy", "rlhf/rm_scale", "rlhf/rm_labels")
        features = {k: float(v) for k, v in logged.items() if k.startswith(beside)}
        metrics = {f"rlhf/{name}": float(v) for name, v in self.rlhf.metrics.items()}
        metrics["rlhf/ref_surprisal"] = float(logged.get("rlhf/ref_surprisal", np.nan))
        alarm = {"rlhf/hacking_alarm": float(self.monitor.is_alarmed)}
        self.rollouts.append({"tokens": self.num_timesteps, **metrics, **features, **alarm})


def _refresh(
    run: Run, config: TrainConfig, held_out: HeldOut, env: Any, place: Path
) -> RefreshCallback:
    """Rounds whose labels come from the annotator that the first pairs were labelled by."""
    label = annotator("gold", held_out.scorer, "cpu", 1 / SHARPNESS, run.seed)
    how = RefreshSettings(config.refresh_pairs, config.refresh_epochs, seed=run.seed)
    refresher = RewardRefresher(
        env.inner.settings, held_out.scorer, label, place, how, _first_pairs(run.model, run.seed)
    )
    return RefreshCallback(refresher, config.refresh_every)


def train(run: Run, models: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train with a reward model and a remedy; returns what is recorded of it.

    Args:
        run: what to do.
        models: folder of reward models, which are made where they are missing.
        say: called with the sentence of an alarm.

    Returns:
        `rollouts` (the metrics of each), `alarms`, `start` and `end` (on held-out prompts: score,
        KL, gold reward), `accuracy` of the reward model, and `tokens`.
    """
    remedy = REMEDIES[run.remedy]
    members = reward_models(run, MEMBERS if remedy.ensemble else 1, models)
    paths = [member["path"] for member in members]
    changes: dict[str, Any] = {"reward_model": tuple(paths) if remedy.ensemble else paths[0]}
    if remedy.costs_tokens:
        changes["reward_model"] = (paths[0], "tokenenv.rewards:response_length")
        changes["reward_weights"] = (1.0, -TOKEN_COST)
    changes |= {"total_tokens": run.tokens, "seed": run.seed}
    config = TrainConfig(**{**run.settings, **remedy.settings, **changes})
    with contextlib.ExitStack() as stack:
        environment: dict[str, Any] = config.environment()
        if config.refresh_every:
            environment = stack.enter_context(OwnRewardModels(environment)).environment
        held_out = HeldOut.from_env_kwargs(environment, run.prompts)
        env = stack.enter_context(
            contextlib.closing(make_vec_env(n_envs=config.n_envs, seed=run.seed, **environment))
        )
        agent = build_agent(config, env)
        policy: Any = agent.policy
        start = measure(policy.actor, held_out, run.responses, EVAL_SEED)
        rlhf = RLHFCallback()
        raises = config.on_hacking_alarm == "raise-kl"
        monitor = HackingMonitor(
            rlhf,
            "raise-kl" if raises else "warn",
            rules=rules_about(config),
            say=say,
        )
        recorder = _Recorder(rlhf, monitor)
        refresh = []
        if config.refresh_every:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            refresh.append(_refresh(run, config, held_out, env, place))
        agent.learn(run.tokens, callback=[*refresh, rlhf, monitor, recorder])
        end = measure(policy.actor, held_out, run.responses, EVAL_SEED)
    return {
        "rollouts": recorder.rollouts,
        "alarms": [asdict(alarm) for alarm in monitor.alarms],
        "start": start,
        "end": end,
        "accuracy": [member["accuracy"] for member in members],
        "tokens": agent.num_timesteps,
    }
