"""Curves, bands and samples of the page, against hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from support.token_files import make_run

from agents.report.charts import charts, group_runs
from agents.report.curves import Curve, curve, mean_over_seeds, objective_curve, thinned
from agents.report.run_files import RunFiles, read_run
from agents.report.samples import (
    before_and_after,
    best_and_worst,
    correlation,
    score_against_length,
)
from agents.report.token_tables import evenly

TOKENS = "time/total_timesteps"


def points(of: Curve) -> list[tuple[float, float]]:
    return list(zip(of.tokens.tolist(), of.values.tolist(), strict=True))


def test_what_an_update_measured_stands_where_its_rollout_ended():
    rows = [
        {TOKENS: 10, "rlhf/kl": 0.0},
        {TOKENS: 20, "rlhf/kl": 1.0, "train/value_loss": 5.0},
        {TOKENS: 30, "rlhf/kl": None, "train/value_loss": float("nan")},
        {"train/value_loss": 3.0},  # of the last update, without a rollout after it
    ]
    assert points(curve(rows, "rlhf/kl")) == [(10, 0.0), (20, 1.0)]
    assert points(curve(rows, "train/value_loss")) == [(10, 5.0), (30, 3.0)]
    assert points(curve(rows, "nothing")) == []


def test_j_is_at_the_beta_of_the_run_and_not_of_its_controller():
    rows = [{TOKENS: 1, "rlhf/score": 2.0, "rlhf/kl": 4.0, "rlhf/objective": 1.96}]
    assert points(objective_curve(rows, 0.25)) == [(1, 1.0)]
    assert points(objective_curve(rows, None)) == [(1, 1.96)]


def test_a_long_curve_becomes_means_of_equally_many():
    of, each = thinned(Curve(np.arange(5.0), np.array([1.0, 3.0, 5.0, 7.0, 9.0])), 3)
    assert each == 2 and points(of) == [(0.5, 2.0), (2.5, 6.0), (4.0, 9.0)]
    assert thinned(of, 3) == (of, 1)


def test_the_mean_over_seeds_stands_where_all_have_points():
    one = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    other = Curve(np.array([5.0, 15.0, 40.0]), np.array([1.0, 1.0, 1.0]))
    mean, low, high = mean_over_seeds([one, other])
    assert points(mean) == [(5, 3.0), (10, 5.5), (15, 8.0), (20, 10.5)]
    assert low.tolist() == [1, 1, 1, 1] and high.tolist() == [5, 10, 15, 20]


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path):
    roots = [
        make_run(tmp_path / f"{rate}-{seed}", steps=(), seed=seed, learning_rate=rate)
        for rate in (1e-4, 3e-4)
        for seed in (0, 1)
    ]
    groups = group_runs([read_run(root, 0) for root in roots])
    assert [group.label for group in groups] == ["learning_rate=0.0001", "learning_rate=0.0003"]
    assert [[run.config["seed"] for run in group.runs] for group in groups] == [[0, 1], [0, 1]]
    drawn = {chart["name"]: chart for chart in charts(groups)}
    roles = [(s["role"], s["group"]) for s in drawn["kl"]["series"]]
    assert roles == [(role, i) for i in (0, 1) for role in ("seed", "seed", "band", "line")]
    (optimum,) = [line for line in drawn["objective"]["lines"] if line["role"] == "optimum"]
    assert optimum["value"] == 1.0 and optimum["group"] is None  # the same for all


def test_one_run_has_its_curve_its_evaluations_and_its_levels(tmp_path):
    run = read_run(make_run(tmp_path / "run", steps=()), 0)
    drawn = {chart["name"]: chart for chart in charts(group_runs([run]))}
    assert set(drawn) == {
        *("objective", "score", "gold_reward", "kl", "entropy", "response_length", "eos_rate"),
        *("explained_variance", "clip_fraction", "value_loss"),  # β stands still: no chart
        "gold_against_proxy",
    }
    line, dots = drawn["objective"]["series"]
    assert (line["role"], len(line["x"])) == ("line", 16) and dots["x"] == [8192, 16384]
    assert [level["label"] for level in drawn["objective"]["lines"]] == [
        "untrained",
        "J*, lower bound",
    ]


def test_a_beta_that_moves_has_a_chart(tmp_path):
    run = read_run(make_run(tmp_path / "run", steps=()), 0)
    run.rows[-1]["rlhf/kl_coef"] = 0.5
    assert "kl_coef" in {chart["name"] for chart in charts(group_runs([run]))}
    assert run.kl_coef == 0.25


def sample(prompt: str, tokens: int, score: float = 0.0) -> dict:
    return {"prompt": prompt, "tokens": tokens, "score": score, "response": "a b", "kl": 0.0}


def test_before_is_the_first_response_and_after_the_last():
    samples = [sample("x", 1, 1.0), sample("y", 1), sample("x", 2, 2.0), sample("x", 3, 3.0)]
    x, y = before_and_after(samples)
    assert (x["before"]["score"], x["after"]["score"]) == (1.0, 3.0)
    assert y["prompt"] == "y" and y["after"] is None


def test_best_and_worst_are_those_of_the_end_of_training(tmp_path):
    samples = [sample(str(i), 10, i) for i in range(5)] + [sample("early", 1, 99.0)]
    ranking = best_and_worst(RunFiles(tmp_path, {}, samples=samples))
    assert [s["score"] for s in ranking["best"]] == [4, 3]
    assert [s["score"] for s in ranking["worst"]] == [0, 1]
    assert best_and_worst(RunFiles(tmp_path, {})) is None


def test_fixed_responses_are_none_of_the_policy_at_the_end(tmp_path):
    root = make_run(tmp_path / "run", steps=(16,), counts={"fixed": 8, "fresh": 2})
    run = read_run(root, 1e6)
    assert best_and_worst(run)["source"].startswith("2 responses")
    assert len(score_against_length(run)["series"][0]["x"]) == 2


def test_score_against_length_is_in_tokens_where_they_are_known(tmp_path):
    run = read_run(make_run(tmp_path / "run", steps=(1, 2, 3)), 1e6)
    lengths = score_against_length(run)
    assert lengths["unit"] == "tokens"
    assert [s["label"] for s in lengths["series"]] == ["after 1 tokens", "after 3 tokens"]
    assert lengths["series"][0]["x"] == [
        r["tokens"] for r in run.tables[0].responses if r["kind"] != "fixed"
    ]
    assert score_against_length(RunFiles(tmp_path, {}, samples=[sample("x", 4)])) == {
        "unit": "words",
        "series": [{"label": "after 4 tokens", "x": [2], "y": [0.0], "r": None}],
    }


def test_correlation_is_pearsons_and_needs_eight_pairs_that_vary():
    x, rng = np.arange(8.0), np.random.default_rng(0)
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1)
    y = rng.normal(size=8)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x[:7], y[:7]) is None and correlation(x, np.ones(8)) is None


@pytest.mark.parametrize(
    ("sizes", "budget", "places"),
    [
        ([1] * 5, 5, [0, 1, 2, 3, 4]),
        ([1] * 5, 4, [0, 1, 3, 4]),
        ([1] * 5, 3, [0, 2, 4]),
        ([1] * 5, 2, [0, 4]),
        ([1] * 5, 1, [4]),
        ([9], 1, [0]),
        ([], 1, []),
    ],
)
def test_steps_are_left_out_evenly_and_never_the_last(sizes, budget, places):
    assert evenly(sizes, budget) == places


def test_a_response_that_was_cut_is_in_no_ranking(tmp_path):
    run = read_run(make_run(tmp_path / "run", steps=(16,), counts={"rollout": 4}), 1e6)
    run.tables[0].responses[1]["score"] = None
    assert best_and_worst(run)["source"].startswith("3 responses")
    assert len(score_against_length(run)["series"][0]["x"]) == 3
