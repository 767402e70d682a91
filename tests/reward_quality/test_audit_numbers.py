"""The numbers of an audit, each by hand or by a second way; how often its intervals miss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import rankdata, spearmanr

from agents.reward_quality.audit.bands import (
    Clusters,
    Estimates,
    ratio_estimates,
    simultaneous_bands,
    weighted_midranks,
)
from agents.reward_quality.audit.features import (
    FeatureStatistics,
    strength_of_correlation,
    strength_of_preference,
)
from agents.reward_quality.audit.probes import draw_probed
from agents.reward_quality.audit.texts import Labels

RNG = np.random.default_rng(0)


def of_prompts(prompts: int, texts: int, resamples: int = 1000) -> Clusters:
    return Clusters(np.repeat(np.arange(prompts), texts), resamples, seed=0)


def rho(statistics: FeatureStatistics, weights: np.ndarray | None = None) -> np.ndarray:
    weights = statistics.clusters.whole() if weights is None else weights
    return np.tanh(statistics.correlations(weights).values)


def test_weighted_ranks_are_those_of_the_resample_written_out():
    values = RNG.integers(0, 5, size=20).astype(float)
    weights = RNG.integers(0, 4, size=(3, 20)).astype(float)
    for row, ranks in zip(weights, weighted_midranks(values, weights), strict=True):
        times = row.astype(int)
        expected = (rankdata(np.repeat(values, times)) - 0.5) / times.sum() - 0.5
        np.testing.assert_allclose(np.repeat(ranks, times), expected, atol=1e-12)


def test_with_one_text_a_prompt_it_is_spearmans_correlation():
    score, feature = RNG.normal(size=60), RNG.integers(0, 4, size=60).astype(float)
    statistics = FeatureStatistics(score, {"f": feature}, of_prompts(60, 1))
    assert not statistics.is_within
    assert rho(statistics)[0, 0] == pytest.approx(spearmanr(score, feature).statistic, abs=1e-12)
    weights = next(statistics.clusters.weights())[:1]
    times = weights[0].astype(int)
    drawn = spearmanr(np.repeat(score, times), np.repeat(feature, times)).statistic
    assert rho(statistics, weights)[0, 0] == pytest.approx(drawn, abs=1e-12)


def test_what_differs_between_prompts_alone_is_no_correlation():
    """Both rise from prompt to prompt; within 27 of 30 one rises where the other falls."""
    prompt = np.repeat(np.arange(30.0), 2)
    within = np.tile([0.0, 0.5], 30)
    score, feature = prompt + within, prompt - within * np.where(prompt < 27, 1, -1)
    statistics = FeatureStatistics(score, {"f": feature, "p": prompt}, of_prompts(30, 2))
    assert statistics.correlated == ["f"]  # "p" never differs within a prompt
    ranks = [rankdata(x).reshape(30, 2) for x in (score, feature)]
    s, f = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    by_hand = (s * f).sum() / np.sqrt((s**2).sum() * (f**2).sum())
    assert rho(statistics)[0, 0] == pytest.approx(by_hand, abs=1e-12)
    assert by_hand < -0.7


def test_a_feature_that_good_texts_have_is_no_bias():
    """Gold and feature go together; the score is gold, bent, and noise: ρ given gold is near 0."""
    gold = RNG.normal(size=4000)
    feature = gold + 0.5 * RNG.normal(size=4000)
    score = np.tanh(2 * gold) + 0.3 * RNG.normal(size=4000)
    biased = score + 0.5 * feature
    clusters = of_prompts(2000, 2)
    plain = rho(FeatureStatistics(score, {"f": feature}, clusters))[0, 0]
    given = rho(FeatureStatistics(score, {"f": feature}, clusters, gold))[0, 0]
    assert plain > 0.7 and abs(given) < 0.04
    assert rho(FeatureStatistics(biased, {"f": feature}, clusters, gold))[0, 0] > 0.1


def test_of_a_score_that_is_gold_nothing_is_left():
    gold = RNG.normal(size=200)
    statistics = FeatureStatistics(np.exp(gold), {"f": gold**2}, of_prompts(100, 2), gold)
    assert rho(statistics)[0, 0] == pytest.approx(0, abs=1e-9)


def test_preferences_by_hand():
    """Four kinds of pairs, ten of each; a tie of the score counts half."""
    kinds = [  # score of chosen, rejected; feature of both; preference of the chosen one
        (2.0, 1.0, 5.0, 1.0, 1.0),  # score and label: the side with more
        (1.0, 2.0, 1.0, 5.0, 1.0),  # score: more, label: less
        (1.0, 1.0, 5.0, 1.0, 0.5),  # neither
        (1.0, 0.0, 3.0, 3.0, 1.0),  # no difference in the feature
    ]
    rows = [row for row in kinds for _ in range(10)]
    scores = np.array([x for row in rows for x in row[:2]])
    feature = np.array([x for row in rows for x in row[2:4]])
    first = np.arange(0, 80, 2)
    labels = Labels(first, first + 1, np.array([row[4] for row in rows]))
    statistics = FeatureStatistics(scores, {"f": feature}, of_prompts(40, 2), None, labels)
    whole = statistics.clusters.whole()
    found = statistics.preferences(whole)
    assert statistics.differing("f") == 30
    assert found["reward"][0, 0] == pytest.approx(25 / 30)
    assert found["labels"][0, 0] == pytest.approx(15 / 30)
    assert found["agreement"][0] == pytest.approx(
        (10 + 0 + 10) / 30
    )  # without those that the score ties
    assert statistics.excesses(whole).values[0, 0] == pytest.approx(10 / 30)
    # Error of a ratio over prompts: 10 pairs of x = 0, 10 of x = 1, 10 of x = 0, θ = 1/3.
    by_hand = np.sqrt(20 * (1 / 3) ** 2 + 10 * (2 / 3) ** 2) / 30
    assert statistics.excesses(whole).errors[0, 0] == pytest.approx(by_hand)


def test_strengths_by_hand():
    """ρ = 0.1 is Cohen's small effect, d = 0.2; a share of Φ(d/√2) is an effect of d."""
    assert strength_of_correlation(0.1) == pytest.approx(0.2, abs=0.002)
    assert strength_of_correlation(-0.6) == pytest.approx(-1.5)
    assert strength_of_preference(float(ndtr(0.8 / np.sqrt(2))), 0.5) == pytest.approx(0.8)
    assert strength_of_preference(0.7, 0.7) == 0
    assert np.isfinite(strength_of_preference(1.0, 0.0))


def test_the_error_of_a_mean_is_its_standard_error():
    values = RNG.normal(size=(50, 1))
    found = ratio_estimates(values, np.ones((50, 1)), np.ones((1, 50)))
    assert found.values[0, 0] == pytest.approx(values.mean())
    assert found.errors[0, 0] == pytest.approx(values.std() / np.sqrt(50))


@pytest.mark.slow
def test_all_intervals_of_an_audit_hold_together():
    """Ten numbers of one skewed kind: all hold in 95 % of 100 audits, ± three errors of that."""
    missed = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(size=(100, 10)) - 1
        clusters = Clusters(np.arange(100), 1000, seed)
        ones = np.ones_like(values)
        drawn = [ratio_estimates(values, ones, weights) for weights in clusters.weights()]
        point = ratio_estimates(values, ones, clusters.whole())
        low, high = simultaneous_bands(point, Estimates.joined(drawn, 0))
        missed += bool(((low > 0) | (high < 0)).any())
    assert missed / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


def test_a_number_without_an_error_has_no_width():
    zero = Estimates(np.array([[0.5, 0.0]]), np.zeros((1, 2)))
    low, high = simultaneous_bands(zero, Estimates(np.zeros((9, 2)), np.zeros((9, 2))))
    assert low.tolist() == high.tolist() == [0.5, 0.0]


def test_edited_responses_come_from_as_many_prompts_as_there_are():
    of_prompt = np.repeat(np.arange(30), 4)
    rows = draw_probed(of_prompt, 40, seed=0)
    assert len(set(of_prompt[rows].tolist())) == 30 and len(rows) == 40
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert draw_probed(of_prompt, 1000, seed=0).tolist() == list(range(120))
