"""The rules of the verdict: each holds where it should, and not one step beside it."""

from __future__ import annotations

import numpy as np
import pytest
from support.token_files import make_run

from agents.report.curves import Curve
from agents.report.rules import RULES, is_above, quarter_mean
from agents.report.run_files import read_run
from agents.report.verdict import Evidence, evidence_of, judge

BY_TITLE = {rule.title: rule for rule in RULES}


def quarters(*levels: float, each: int = 4, noise: float = 0.01) -> Curve:
    """A curve with one level per quarter and ±noise around it: standard error 0.0058 for 4."""
    values = np.repeat(levels, each) + noise * np.tile([1.0, -1.0], len(levels) * each // 2)
    return Curve(np.arange(len(values), dtype=float), values)


def answer(title: str, curves=None, **summary):
    return BY_TITLE[title].check(Evidence(curves or {}, summary))


def holds(title: str, curves=None, **summary) -> bool:
    found = answer(title, curves, **summary)
    assert found is not None
    return found.holds


WORSE, SAME, BETTER = (
    "Worse than the untrained model",
    "No difference from the untrained model can be seen",
    "Better than the untrained model",
)


def test_a_quarter_has_a_mean_and_its_standard_error():
    curve = Curve(np.arange(8.0), np.array([0, 0, 0, 0, 0, 0, 1.0, 3.0]))
    # (1 + 3)/2 = 2; deviation over n − 1 is √2, over √2 values 1.
    assert quarter_mean(curve, -1) == pytest.approx((2.0, 1.0))
    assert quarter_mean(curve, 0) == (0.0, 0.0)


def test_means_differ_by_more_than_two_standard_errors_of_the_difference():
    # √(0.3² + 0.4²) = 0.5, so 1 is the limit.
    assert is_above((1.01, 0.3), (0.0, 0.4)) and not is_above((0.99, 0.3), (0.0, 0.4))


@pytest.mark.parametrize(
    ("after", "interval", "title"),
    [
        (-0.1, [-0.3, -0.01], WORSE),
        (-0.1, [-0.3, 0.01], SAME),
        (0.1, [-0.01, 0.3], SAME),
        (0.5, [0.01, 0.9], BETTER),
    ],
)
def test_a_sampled_j_is_judged_by_its_interval(after, interval, title):
    summary = {"objective": after, "objective_reference": 0.0, "fraction_interval": interval}
    assert [t for t in (WORSE, SAME, BETTER) if holds(t, **summary)] == [title]


@pytest.mark.parametrize(("after", "title"), [(-1e-6, WORSE), (0.0, SAME), (1e-6, BETTER)])
def test_an_exact_j_is_judged_as_it_is(after, title):
    summary = {"objective": after, "objective_reference": 0.0, "optimum": 1.0}
    assert [t for t in (WORSE, SAME, BETTER) if holds(t, **summary)] == [title]


@pytest.mark.parametrize(
    ("last", "title"), [(0.5, WORSE), (0.99, SAME), (1.01, SAME), (1.5, BETTER)]
)
def test_without_an_evaluation_the_training_samples_are_judged(last, title):
    curves = {"objective": quarters(1.0, 1.0, 1.0, last)}
    assert [t for t in (WORSE, SAME, BETTER) if holds(t, curves)] == [title]


@pytest.mark.parametrize(("fraction", "expected"), [(0.951, True), (0.949, False)])
def test_near_the_optimum(fraction, expected):
    found = answer("Near the optimum", objective_fraction=fraction)
    assert found.holds == expected and found.numbers.startswith("at most")
    assert not answer("Near the optimum", objective_fraction=0.9, optimum=1.0).numbers.startswith(
        "at most"
    )


@pytest.mark.parametrize(("last", "expected"), [(0.05, True), (0.12, False), (-3.0, True)])
def test_the_critic_explains_nothing(last, expected):
    curves = {"explained_variance": quarters(0.9, 0.9, 0.9, last)}
    assert holds("The critic explains nothing", curves) == expected


@pytest.mark.parametrize(
    ("kl", "objective", "expected"),
    [
        ((1, 2, 3, 4), (0, 1, 1, 0.5), True),
        ((1, 2, 3, 4), (0, 1, 1, 1.2), False),  # J pays for it and gains
        ((1, 2, 2, 2.9), (0, 1, 1, 0.5), False),  # 1.45 times
        ((1, 2, 2, 3.1), (0, 1, 1, 0.5), True),
        ((1, 2, 3, 4), (0, 1, 1, 0.99), False),  # within two standard errors of 0.008
    ],
)
def test_the_kl_runs_away(kl, objective, expected):
    curves = {"kl": quarters(*kl), "objective": quarters(*objective)}
    assert holds("The KL runs away", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.09, True), (0.12, False)])
def test_the_entropy_collapsed(last, expected):
    curves = {"entropy": quarters(1.0, 0.5, 0.2, last, noise=0.0)}
    assert holds("The entropy collapsed", curves) == expected


@pytest.mark.parametrize(
    ("gold", "score", "expected"),
    [
        ((0, 1, 0.8, 0.5), (0, 1, 2, 3), True),
        ((0, 1, 1.1, 1.2), (0, 1, 2, 3), False),
        ((0, 1, 0.8, 0.5), (0, 1, 0.9, 0.8), False),  # everything fell
    ],
)
def test_the_reward_model_is_exploited(gold, score, expected):
    curves = {"gold_reward": quarters(*gold), "score": quarters(*score)}
    assert holds("The reward model is exploited", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.44, True), (0.46, False)])
def test_responses_no_longer_end(last, expected):
    curves = {"eos_rate": quarters(0.9, 0.9, 0.5, last, noise=0.0)}
    assert holds("Responses no longer end", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(31, True), (29, False), (13, True), (14, False)])
def test_the_length_changed(last, expected):
    curves = {"response_length": quarters(20, 20, 20, last, noise=0.0)}
    assert holds("The length of responses changed", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.32, True), (0.28, False)])
def test_updates_are_large(last, expected):
    curves = {"clip_fraction": quarters(0.1, 0.1, 0.1, last)}
    assert holds("Updates are large", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.009, True), (-0.009, True), (0.011, False)])
def test_the_policy_hardly_moved(last, expected):
    curves = {"kl": quarters(0, 0, 0, last, noise=0.0)}
    assert holds("The policy hardly moved", curves) == expected


@pytest.mark.parametrize(("last", "expected"), [(1.1, True), (1.01, False)])
def test_still_rising(last, expected):
    curves = {"objective": quarters(0, 0.5, 1.0, last)}
    assert holds("Still rising at the end", curves) == expected


def test_the_optimum_is_known_roughly():
    title = "The optimum is known roughly"
    summary = {"least_effective_sample_size": 0.02, "prompts": 64, "responses_per_prompt": 256}
    found = answer(title, is_reliable=False, **summary)
    assert found.holds
    assert found.numbers == (
        "8,192 samples of the reference, 2.0 % of the samples carry it at some prompt"
    )
    assert not answer(title, is_reliable=True).holds


def test_numbers_that_were_not_finite_are_named():
    rule = BY_TITLE["Numbers were not finite"]
    curves = {"kl": quarters(1, 1, 1, 1)}
    assert rule.check(Evidence(curves, {}, ("train/loss",))).numbers.endswith("train/loss")
    assert not rule.check(Evidence(curves, {})).holds


def test_nothing_is_said_of_what_is_not_known():
    empty = Evidence({}, {})
    assert [finding.answer for finding in judge(empty, RULES)] == [None] * len(RULES)
    seven = Curve(np.arange(7.0), np.zeros(7))
    short = Evidence(dict.fromkeys(("kl", "objective", "entropy", "score"), seven), {})
    found = {finding.rule.title: finding.answer for finding in judge(short, RULES)}
    assert found.pop("Numbers were not finite") is not None
    assert set(found.values()) == {None}


def test_every_rule_has_a_title_of_its_own_and_a_statement():
    assert len(BY_TITLE) == len(RULES)
    for rule in RULES:
        assert rule.statement.endswith(".") and rule.tone in ("bad", "warning", "good", "note")


def test_evidence_is_what_the_files_say(tmp_path):
    run = read_run(make_run(tmp_path / "run", steps=()), 1e6)
    run.rows[3]["rlhf/kl"] = None
    evidence = evidence_of(run)
    assert len(evidence.curves["score"]) == 16 and len(evidence.curves["kl"]) == 15
    assert evidence.lost == ("rlhf/kl",)
    titles = [f.rule.title for f in judge(evidence, RULES) if f.answer and f.answer.holds]
    assert titles[:2] == ["Numbers were not finite", "Better than the untrained model"]
