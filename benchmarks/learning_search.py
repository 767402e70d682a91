"""A search for settings that learn on every one of some tasks, by Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["search", "suggested", "worth"]

N_STEPS = 32


def suggested(trial: Any, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a trial, within the ranges; those of `fixed` are as they are."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "n_envs": trial.suggest_categorical("n_envs", [8, 16, 32, 64]),
        "n_steps": N_STEPS,
        "minibatches": trial.suggest_categorical("minibatches", [1, 2, 4]),
        "n_epochs": trial.suggest_int("n_epochs", 2, 8),
        "vf_coef": trial.suggest_float("vf_coef", 0.05, 2.0, log=True),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.9, 0.95, 0.98, 1.0]),
        "adam_epsilon": trial.suggest_float("adam_epsilon", 1e-8, 1e-5, log=True),
        **fixed,
    }


def worth(points: Sequence[Mapping[str, Any]], goal: float) -> float:
    """How fast and how far a run got: the mean over its points of J on a scale of 0 to 1.

    0 is the untrained J, 1 the `goal`. A run that failed is worth −1.
    """
    if points[-1].get("failed"):
        return -1.0
    start = points[0]["objective"]
    values = [(point["objective"] - start) / (goal - start) for point in points[1:]]
    return float(np.mean(values))


def search(
    trials: int,
    study: Path,
    fixed: Mapping[str, Any],
    goals: Mapping[str, float],
    train: Callable[[str, str, Mapping[str, Any]], list[list[Mapping[str, Any]]]],
) -> None:
    """Make trials and print the best; those of an earlier call with the same file count.

    Args:
        trials: how many more.
        study: file of the journal, which several processes may share.
        fixed: settings that are not searched.
        goals: task → J that is worth 1.
        train: (task, name, settings) → the points of runs with several seeds.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise SystemExit(
            "--search needs Optuna: pip install optuna, or this project with its extra: "
            "pip install -e '.[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(study)))
    made = optuna.create_study(
        storage=storage, study_name="learning", direction="maximize", load_if_exists=True
    )

    def objective(trial: Any) -> float:
        settings = suggested(trial, fixed)
        values = {}
        for task, goal in goals.items():
            runs = train(task, f"trial-{trial.number}", settings)
            values[task] = float(np.mean([worth(points, goal) for points in runs]))
            trial.set_user_attr(task, values[task])
            # Only the worst counts: what is hopeless on one task is not tried on the others.
            if values[task] < _best(made) - 0.3:
                break
        worst = min(values.values())
        shown = ", ".join(f"{task} {value:.3f}" for task, value in values.items())
        print(f"trial {trial.number}: worst {worst:.3f} ({shown}) with {settings}")  # noqa: T201
        return worst

    made.optimize(objective, n_trials=trials)
    print(f"best: {made.best_value:.3f} with {made.best_params}")  # noqa: T201


def _best(study: Any) -> float:
    try:
        return float(study.best_value)
    except ValueError:  # no trial is complete
        return -math.inf
