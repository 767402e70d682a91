"""From stored results to `compare.json`: scores, aggregates, sample efficiency, fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.compare.environments import CLASSIC
from agents.compare.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    steps_to_reach,
)

__all__ = ["GROUPS", "THRESHOLDS", "aggregate", "summarize_runs"]

GROUPS = (CLASSIC, "text")
"""What scores are pooled over: two kinds with separate scales."""

THRESHOLDS = np.linspace(-1.0, 1.2, 111)
"""τ of the performance profiles."""


def group_of(kind: str) -> str:
    """The pool that a kind of environments belongs to."""
    return CLASSIC if kind == CLASSIC else "text"


def scored(run: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
    """A run with its score and its curve on the scale that it is judged by.

    Args:
        run: a run's record, with env, agent and seed.
        scale: of its environment, for the plain return; a run with J contains its scale.
    """
    ends = run if run["measure"] == "J" else scale
    worst, span = ends["baseline"], ends["top"] - ends["baseline"]
    return {
        **run,
        "score": (run["value"] - worst) / span,
        "is_at_most": bool(ends["is_lower_bound"]),
        "score_curve": [[steps, (value - worst) / span] for steps, value in run["curve"]],
    }


def summarize_runs(runs: list[dict[str, Any]], reach: float) -> dict[str, Any]:
    """What the seeds of one agent in one environment show together.

    Args:
        runs: one or more, as `scored` gives them.
        reach: the score that sample efficiency counts the steps to.
    """
    scores = np.array([run["score"] for run in runs])
    reached = [steps_to_reach(run["score_curve"], reach) for run in runs]
    steps = _median(reached)
    cpu_seconds = _median([_cpu_to_reach(run, reach) for run in runs])
    explained = [run["explained_variance"] for run in runs if run["explained_variance"] is not None]
    return {
        "measure": runs[0]["measure"],
        "is_at_most": runs[0]["is_at_most"],
        "seeds": [run["seed"] for run in runs],
        "scores": scores.tolist(),
        "value": float(interquartile_mean(np.array([run["value"] for run in runs]))),
        "score": float(interquartile_mean(scores)),
        "interval": [float(end) for end in bootstrap_interval([scores])],
        "steps_to_reach": None if steps is None else int(steps),
        "cpu_seconds_to_reach": cpu_seconds,
        "share_that_reached": float(np.mean([step is not None for step in reached])),
        "train_seconds": float(np.median([run["train_seconds"] for run in runs])),
        "train_cpu_seconds": float(np.median([run["train_cpu_seconds"] for run in runs])),
        "steps_per_second": float(np.median([run["steps_per_second"] for run in runs])),
        "explained_variance": float(np.median(explained)) if explained else None,
        "curve": _mean_curve(runs),
    }


def _cpu_to_reach(run: dict[str, Any], reach: float) -> float | None:
    """Seconds of the processor that training took until the score was `reach`."""
    scores = [score for _, score in run["score_curve"]]
    pairs = zip(run["curve_cpu_seconds"], scores, strict=True)
    return next((float(seconds) for seconds, score in pairs if score >= reach), None)


def _median(values: Sequence[float | None]) -> float | None:
    """The median seed's; one that never came so far took longer than any other."""
    ordered = np.sort([np.inf if value is None else value for value in values])
    median = float(ordered[(len(ordered) - 1) // 2])
    return None if np.isinf(median) else median


def _mean_curve(runs: list[dict[str, Any]]) -> list[list[float]]:
    """[steps, IQM, low, high] where all seeds were judged, by position in their curves."""
    length = min(len(run["score_curve"]) for run in runs)
    rows = []
    for position in range(length):
        points = np.array([run["score_curve"][position] for run in runs])
        low, high = bootstrap_interval([points[:, 1]], resamples=500)
        iqm = float(interquartile_mean(points[:, 1]))
        rows.append([float(points[:, 0].mean()), iqm, float(low), float(high)])
    return rows


def aggregate(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Group → agent → interquartile mean over all environments and seeds, and profile.

    Agents are pooled only over the environments that they ran in; `envs` names them. Runs judged by
    J and by the plain return are never pooled: `token-ppo` on text is a group member with a
    separate measure.

    Args:
        runs: as `scored` gives them.
    """
    pooled: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        pools: dict[str, dict[str, list[float]]] = {}
        for run in runs:
            if group_of(run["kind"]) == group:
                pools.setdefault(run["agent"], {}).setdefault(run["env"], []).append(run["score"])
        pooled[group] = {agent: _pooled(pool) for agent, pool in pools.items()}
    return pooled


def _pooled(by_env: dict[str, list[float]]) -> dict[str, Any]:
    strata = [np.array(scores) for scores in by_env.values()]
    together = np.concatenate(strata)
    low, high = bootstrap_interval(strata)
    band = bootstrap_interval(strata, lambda drawn: performance_profile(drawn, THRESHOLDS))
    return {
        "envs": list(by_env),
        "runs": len(together),
        "score": float(interquartile_mean(together)),
        "interval": [float(low), float(high)],
        "profile": performance_profile(together, THRESHOLDS).tolist(),
        "profile_low": band[0].tolist(),
        "profile_high": band[1].tolist(),
    }
