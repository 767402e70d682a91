"""Interquartile means, bootstrap intervals and profiles against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from agents.compare.environments import CLASSIC, RAW_TOKENS
from agents.compare.results import aggregate, scored, summarize_runs
from agents.compare.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    steps_to_reach,
)


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    # 0 … 7: two at each end go, (2 + 3 + 4 + 5)/4 = 3.5; order is no matter.
    assert interquartile_mean(np.array([7, 0, 3, 5, 2, 6, 1, 4])) == 3.5
    # Five values: ⌊5/4⌋ = 1 goes at each end, so an outlier is without weight.
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 1e9])) == 3.0
    # Three values: none goes.
    assert interquartile_mean(np.array([0.0, 0.0, 3.0])) == 1.0
    rows = np.array([[1.0, 2.0, 3.0, 4.0], [8.0, 6.0, 4.0, 2.0]])
    assert interquartile_mean(rows).tolist() == [2.5, 5.0]
    with pytest.raises(ValueError, match="at least one"):
        interquartile_mean(np.array([]))


def test_bootstrap_of_two_values_has_its_known_distribution():
    # Of {0, 1} a resample's mean is 0, ½, 1 with chances ¼, ½, ¼: the middle 40 % are all ½.
    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean(axis=-1)

    assert bootstrap_interval([np.array([0.0, 1.0])], mean, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([np.array([0.0, 1.0])], mean, level=0.95) == (0.0, 1.0)


def test_bootstrap_is_stratified():
    """Half of every resample comes from each environment: equal runs within one leave no doubt."""
    low, high = bootstrap_interval([np.zeros(4), np.ones(4)])
    assert low == high == 0.5
    unstratified = bootstrap_interval([np.repeat([0.0, 1.0], 4)])
    assert unstratified[0] < 0.25 < 0.75 < unstratified[1]
    with pytest.raises(ValueError, match="every stratum"):
        bootstrap_interval([np.ones(2), np.array([])])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for number in range(200):
        sample = rng.normal(size=30)
        low, high = bootstrap_interval([sample], resamples=300, seed=number)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_performance_profile_counts_what_lies_strictly_above():
    scores = np.array([0.0, 0.5, 1.0, 1.0])
    found = performance_profile(scores, np.array([-1.0, 0.0, 0.75, 1.0]))
    assert found.tolist() == [1.0, 0.75, 0.5, 0.0]
    # Its area over [0, 1] is the mean of scores in that range.
    grid = np.linspace(0.0, 1.0, 10_001)
    assert performance_profile(scores, grid).mean() == pytest.approx(scores.mean(), abs=1e-3)


def test_steps_to_reach_is_the_first_step_of_the_curve_there():
    curve = [[0, -1.0], [100, 0.9], [200, 0.5], [300, 1.0]]
    assert steps_to_reach(curve, 0.9) == 100
    assert steps_to_reach(curve, 0.95) == 300
    assert steps_to_reach(curve, 1.01) is None


def run(seed: int, value: float, **more: object) -> dict:
    return {
        "env": "A",
        "kind": CLASSIC,
        "agent": "ppo",
        "seed": seed,
        "measure": "plain return",
        "value": value,
        "curve": [[0, -200.0], [1000, value]],
        "curve_cpu_seconds": [0.0, 2.0 + seed],
        "train_seconds": 1.0,
        "train_cpu_seconds": 2.0 + seed,
        "steps_per_second": 1000.0,
        "explained_variance": None,
        **more,
    }


SCALE = {"baseline": -200.0, "top": -100.0, "is_lower_bound": False}


def test_scores_lie_between_baseline_and_top():
    found = scored(run(0, -150.0), SCALE)
    assert found["score"] == 0.5
    assert found["score_curve"] == [[0, 0.0], [1000, 0.5]]
    # J brings the scale of its own, and where its optimum is a bound the score is at most that.
    own = {"measure": "J", "baseline": 1.0, "top": 3.0, "is_lower_bound": True}
    found = scored(run(0, 2.5, kind=RAW_TOKENS, **own), SCALE)
    assert (found["score"], found["is_at_most"]) == (0.75, True)


def test_seeds_that_never_came_so_far_took_longest():
    runs = [scored(run(seed, value), SCALE) for seed, value in enumerate((-100.0, -105.0, -190.0))]
    found = summarize_runs(runs, reach=0.9)
    assert found["steps_to_reach"] == 1000  # the median of 1000, 1000, never
    assert found["cpu_seconds_to_reach"] == 3.0  # of 2, 3, never
    assert found["train_cpu_seconds"] == 3.0  # of 2, 3, 4
    assert summarize_runs(runs[2:], reach=0.9)["cpu_seconds_to_reach"] is None
    assert found["share_that_reached"] == pytest.approx(2 / 3)
    assert found["interval"][0] <= found["score"] <= found["interval"][1]
    assert found["curve"][-1][:2] == [1000.0, pytest.approx((1.0 + 0.95 + 0.1) / 3)]
    assert summarize_runs(runs[2:], reach=0.9)["steps_to_reach"] is None
    assert summarize_runs(runs[1:], reach=0.9)["steps_to_reach"] == 1000


def test_agents_are_pooled_within_classic_control_and_within_text():
    runs = [
        scored(run(0, -100.0), SCALE),
        scored(run(0, -200.0, env="B"), SCALE),
        scored(run(0, -50.0, env="C", kind=RAW_TOKENS), SCALE),
    ]
    found = aggregate(runs)
    assert found[CLASSIC]["ppo"]["envs"] == ["A", "B"]
    assert found[CLASSIC]["ppo"]["score"] == 0.5
    assert found["text"]["ppo"]["score"] == 1.5
    profile = found[CLASSIC]["ppo"]["profile"]
    assert (profile[0], profile[-1]) == (1.0, 0.0)
