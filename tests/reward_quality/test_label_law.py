"""The law of learning curves, the price of the next point, means and rank correlations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.reward_quality.labels.curve_report import curve_report, sentences
from agents.reward_quality.labels.law import (
    PowerLaw,
    bootstrap_laws,
    fit_power_law,
    interval_of,
    pairs_for,
)
from agents.reward_quality.labels.statistics import mean_interval, rank_correlation

SIZES = [50, 100, 200, 400, 800, 1600]


@pytest.mark.parametrize(
    ("limit", "scale", "exponent"), [(0.9, 2.0, 0.5), (0.75, 0.8, 0.3), (0.99, 40.0, 1.2)]
)
def test_a_fit_recovers_planted_numbers(limit, scale, exponent):
    planted = PowerLaw(limit, scale, exponent)
    law = fit_power_law(SIZES, planted(np.array(SIZES)))
    assert law.limit == pytest.approx(limit, abs=1e-4)
    assert law.exponent == pytest.approx(exponent, rel=1e-3)
    assert law.scale == pytest.approx(scale, rel=1e-2)
    assert law.error < 1e-6 and not law.is_at_a_bound


def test_a_fit_stays_within_its_bounds_and_says_where_it_ends():
    rising = fit_power_law(SIZES, np.linspace(0.5, 0.99, 6))  # a line in log n has no limit ≤ 1
    assert 0 <= rising.limit <= 1 and rising.is_at_a_bound
    falling = fit_power_law(SIZES, np.linspace(0.7, 0.6, 6))
    assert falling.scale >= 0 and falling.limit == pytest.approx(0.65, abs=1e-3)
    with pytest.raises(ValueError, match="3 sizes: a law of three numbers is fitted to 4"):
        fit_power_law([1, 2, 3], [0.5, 0.6, 0.7])
    with pytest.raises(ValueError, match="not finite"):
        fit_power_law(SIZES, [math.nan] * 6)


def test_the_price_of_a_gain_is_the_closed_form():
    """0.9 − 2/√400 = 0.8; 0.85 = 0.9 − 2/√n has n = (2/0.05)² = 1600: 1200 more."""
    law = PowerLaw(0.9, 2.0, 0.5)
    assert float(law(400)) == pytest.approx(0.8)
    assert pairs_for(law, 400, 0.05) == pytest.approx(1200)
    cost = pairs_for(law, 400)
    assert float(law(400 + cost)) - float(law(400)) == pytest.approx(0.01)


def test_a_gain_beyond_the_limit_is_out_of_reach():
    law = PowerLaw(0.9, 2.0, 0.5)
    assert math.isinf(pairs_for(law, 400, 0.1)) and math.isinf(pairs_for(law, 40_001))
    assert math.isinf(pairs_for(PowerLaw(0.9, 0.0, 0.5), 400))


def test_intervals_hold_what_is_infinite_as_it_is():
    assert interval_of([1.0, 2.0, math.inf]) == (1.0, math.inf)
    assert interval_of(np.arange(1, 1001)) == pytest.approx((25, 975), abs=1)


def test_the_bootstrap_draws_whole_seeds():
    """Seeds that differ by a shift alone: every resample has the planted exponent."""
    planted = PowerLaw(0.8, 1.0, 0.4)(np.array(SIZES))
    laws = bootstrap_laws(SIZES, planted + np.array([[-0.02], [0.0], [0.02]]), resamples=20)
    assert [law.exponent for law in laws] == pytest.approx([0.4] * 20, abs=0.01)
    assert 0.779 <= min(law.limit for law in laws) < max(law.limit for law in laws) <= 0.822
    assert bootstrap_laws(SIZES, planted[None]) == []


def test_a_mean_has_students_interval():
    """Of 1, 2, 3: 2 ± t(0.975, 2)·1/√3 = 2 ± 4.303·0.5774."""
    mean, interval = mean_interval([1, 2, 3])
    assert mean == 2 and interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert mean_interval([1.0]) == (1.0, None)


def test_rank_correlation_is_of_the_order_alone():
    """1 − 6·Σd²/(n³ − n): of ranks 1 2 3 4 and 1 3 2 4 it is 1 − 12/60 = 0.8."""
    rho, (low, high) = rank_correlation([1, 2, 3, 4], [1, 30, 2, 400])
    assert rho == pytest.approx(0.8) and -1 <= low <= rho <= high <= 1
    assert rank_correlation([1, 2, 3], [9, 4, 1])[0] == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3])[0])
    with pytest.raises(ValueError, match="three or more"):
        rank_correlation([1, 2], [1, 2])


def points(law: PowerLaw, sizes: list[int], scatter: float, seeds: int = 5) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "size": size,
            "seed": seed,
            "accuracy": float(law(size)) + scatter * rng.normal(),
            "loss": 0.5,
            "calibration_error": 0.1,
        }
        for seed in range(seeds)
        for size in sizes
    ]


def test_a_report_has_the_law_the_price_and_their_intervals():
    law = PowerLaw(0.9, 2.0, 0.5)
    report = curve_report(points(law, SIZES, 0.002), SIZES)
    price = report["next_point"]
    assert price["from_pairs"] == 1600 and price["accuracy"] == pytest.approx(0.85, abs=0.003)
    assert price["interval"][0] <= price["more_pairs"] <= price["interval"][1]
    assert price["more_pairs"] == pytest.approx(pairs_for(law, 1600), rel=0.3)
    assert report["law"]["limit_interval"][0] < 0.9 < report["law"]["limit_interval"][1]
    assert report["notes"] == []
    assert "more pairs (95 % interval: " in sentences(report)[-1]
    assert len(report["law"]["curve"]["low"]) == len(report["law"]["curve"]["pairs"])


def test_a_report_says_what_it_can_not_say():
    flat = curve_report(points(PowerLaw(0.6, 0.0, 1.0), SIZES, 0.01), SIZES)
    assert "not shown to be better than the smallest" in flat["notes"][0]
    near = curve_report(points(PowerLaw(0.9, 8.0, 1.0), SIZES, 0.0, seeds=1), SIZES)
    assert "is out of reach: the law's limit is below it" in sentences(near)[-1]
    assert near["next_point"]["interval"] is None and "one seed" in near["notes"][-1]
    few = curve_report(points(PowerLaw(0.9, 2.0, 0.5), SIZES[:3], 0.0), SIZES[:3])
    assert few["law"] is None and "fitted to 4 or more" in few["notes"][0]
