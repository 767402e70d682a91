"""Gold against proxy over √KL: planted laws are recovered, with errors that say how well."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.reward_quality.hacking.figure import draw_gold_against_proxy
from agents.reward_quality.hacking.law import FEWEST_POINTS, fit_law, start_of
from agents.reward_quality.hacking.points import Points, points_of

D = np.linspace(0.0, 6.0, 25)


def law_by_hand(d: np.ndarray, start: float, alpha: float, beta: float) -> np.ndarray:
    """R₀ + d(α − β·log d) as the paper writes it, and R₀ at 0."""
    return np.array([start + (x * (alpha - beta * math.log(x)) if x else 0.0) for x in d])


@pytest.mark.parametrize("start, alpha, beta", [(-0.1, 0.5, 0.4), (0.0, 1.2, 0.1), (0.3, 0.2, -1)])
def test_planted_numbers_are_recovered_without_noise(start, alpha, beta):
    law = fit_law([D], [law_by_hand(D, start, alpha, beta)])
    assert law is not None
    np.testing.assert_allclose((law.start, law.alpha, law.beta), (start, alpha, beta), atol=1e-12)
    assert law.residual < 1e-12 and law.beta_error < 1e-10
    np.testing.assert_allclose(law(D), law_by_hand(D, start, alpha, beta), atol=1e-12)


def test_a_start_that_was_measured_is_kept():
    """Two numbers for two points: from 1, with α = 0.5 and β = 0.25 at d = 1 and e."""
    d = np.array([0.0, 1.0, math.e, 0.0])
    r = np.array([1.0, 1.5, 1.0 + math.e * 0.25, 1.0])
    law = fit_law([D], [law_by_hand(D, 1.0, 0.5, 0.25)], start=1.0)
    assert (law.start, law.start_error) == (1.0, 0.0)
    np.testing.assert_allclose((law.alpha, law.beta), (0.5, 0.25), atol=1e-12)
    np.testing.assert_allclose(law(d), r, atol=1e-12)
    # Noise far out pulls a free start away, and leaves one that is given where it is.
    bent = law_by_hand(D, 1.0, 0.5, 0.25) + np.where(D > 5, 3.0, 0.0)
    assert abs(fit_law([D], [bent]).start - 1.0) > 0.2
    assert fit_law([D] * 3, [bent] * 3, start=1.0)(0.0) == 1.0
    assert start_of([D, D[::-1], D[:0]], [D + 1, D[::-1] + 3, D[:0]]) == 2.0


def test_the_greatest_value_is_where_the_derivative_is_0():
    """α = 0.5, β = 0.4: d* = exp(0.25) = 1.284, R* = R₀ + β·d* = −0.1 + 0.5136."""
    law = fit_law([D], [law_by_hand(D, -0.1, 0.5, 0.4)])
    distance, reward = law.peak
    assert distance == pytest.approx(math.exp(0.25)) and reward == pytest.approx(0.41361, abs=1e-5)
    near = law(np.array([distance - 1e-3, distance, distance + 1e-3]))
    assert near[1] > near[0] and near[1] > near[2]
    assert "greatest at d = 1.28" in law.words("gold")
    rising = fit_law([D], [law_by_hand(D, 0.0, 2.0, 0.1)])  # d* = exp(19)
    assert "no greatest value up to d = 6" in rising.words("gold")
    assert fit_law([D], [law_by_hand(D, 0.0, 1.0, -0.1)]).peak is None


@pytest.mark.parametrize("runs", [1, 5])
def test_errors_cover_the_planted_numbers_as_often_as_they_say(runs):
    """Noise of 0.1 at every point, in the runs' own levels where there are several.

    About 95 % of 200 fits lie within 2 standard errors (2.8 with 5 runs: Student's t of 4).
    """
    rng, width = np.random.default_rng(0), 2.0 if runs == 1 else 2.78
    truth = law_by_hand(D, 0.0, 0.8, 0.3)
    covered = 0
    for _ in range(200):
        levels = rng.normal(0, 0.0 if runs == 1 else 0.3, runs)
        rewards = [truth + D * level + rng.normal(0, 0.1, len(D)) for level in levels]
        law = fit_law([D] * runs, rewards)
        covered += abs(law.beta - 0.3) < width * law.beta_error
    assert 0.88 <= covered / 200 <= 0.99


def test_too_few_different_points_are_fitted_by_nothing():
    assert fit_law([], []) is None
    assert fit_law([np.zeros(50)], [np.zeros(50)]) is None
    few = np.arange(FEWEST_POINTS - 1.0)
    assert fit_law([few], [few]) is None
    assert fit_law([few, few + 0.5], [few, few]) is not None


def test_wrong_numbers_are_refused_by_name():
    with pytest.raises(ValueError, match=r"rewards have .* points"):
        fit_law([D], [D[1:]])
    with pytest.raises(ValueError, match=r"distances holds -1\.0"):
        fit_law([np.array([1.0, -1.0])], [np.zeros(2)])
    with pytest.raises(ValueError, match="rewards holds nan"):
        fit_law([np.ones(2)], [np.array([0.0, math.nan])])


def test_points_are_the_rollouts_with_a_kl_and_a_score():
    rows = [
        {"rlhf/kl": 4.0, "rlhf/score": 1.0, "rlhf/gold_reward": 0.5, "eval/kl": 9.0},
        {"train/loss": 1.0},
        {"rlhf/kl": -0.01, "rlhf/score": 0.0, "rlhf/gold_reward": 0.1},
        {"rlhf/kl": None, "rlhf/score": 2.0, "rlhf/gold_reward": 0.1},
    ]
    points = points_of(rows)
    assert points.distance.tolist() == [2.0, 0.0] and points.score.tolist() == [1.0, 0.0]
    assert points.gold.tolist() == [0.5, 0.1]
    del rows[0]["rlhf/gold_reward"]
    assert points_of(rows).gold is None and len(points_of(rows)) == 2
    assert len(points_of(rows, held_out=True)) == 0


def test_the_figure_is_drawn_with_and_without_gold(tmp_path):
    gold = law_by_hand(D, 0.0, 0.5, 0.4)
    groups = {"weak": [Points(D, D, gold), Points(D, D, gold + 0.1)], "blind": [Points(D, D, None)]}
    laws = draw_gold_against_proxy(groups, tmp_path / "curve.png", {"weak": [1.0]})
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert laws["weak"][1].beta == pytest.approx(0.4) and laws["weak"][1].runs == 2
    assert laws["blind"][1] is None and laws["blind"][0].alpha == pytest.approx(1.0)
    with pytest.raises(ValueError, match="groups is empty"):
        draw_gold_against_proxy({}, tmp_path / "none.png")
