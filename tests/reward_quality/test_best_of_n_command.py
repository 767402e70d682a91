"""`tokenrlhf best-of-n`: what it measures, in closed form and by samples, and what it refuses."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.paths import ROOT

from agents.cli import main
from agents.evaluation import HeldOut
from agents.reward_quality.best_of_n.config import BestOfNConfig
from agents.reward_quality.best_of_n.figure import draw_report
from agents.reward_quality.best_of_n.measuring import in_closed_form, sampled
from agents.reward_quality.best_of_n.view import print_report
from tokenenv.optimum import evaluate_exactly
from tokenenv.optimum.best_of_n import ScoredResponses, best_of_n, kl_upper_bound

SIZES = (1, 2, 4, 16)


@pytest.fixture(scope="module")
def held_out(settings) -> HeldOut:
    """Three prompts and 1,600 responses to each: small enough to be enumerated."""
    return HeldOut.from_env_kwargs({**settings, "max_new_tokens": 2, "task": "reviews"}, 3)


@pytest.fixture(scope="module")
def exact(held_out):
    """The closed form of it, with the optimum itself as the trained policy."""
    solution = held_out.solution
    return in_closed_form(solution.tree, SIZES, solution.kl_coef, solution.log_policy)


@pytest.fixture(scope="module")
def by_samples(held_out):
    """The same by samples, with the reference itself as the trained policy."""
    policy = held_out.scorer.reference.language_model.model
    progress: list[tuple[int, int]] = []
    report = sampled(held_out, SIZES, 64, 0.2, 3, policy, lambda *done: progress.append(done))
    assert progress[-1] == (2 * 3 * 64, 2 * 3 * 64)
    return report


def shown(report, run: str | None = None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(console, report, run)
    return console.file.getvalue()


# Closed form --------------------------------------------------------------------------------------


def test_rows_are_those_of_the_closed_form_and_j_is_score_less_kl(exact, held_out):
    responses = ScoredResponses.of_tree(held_out.solution.tree)
    assert [row.n for row in exact.rows] == list(SIZES) and exact.is_exact
    assert (exact.prompts, exact.responses_per_prompt) == responses.scores.shape
    for row in exact.rows:
        point = best_of_n(responses, row.n)
        assert (row.kl, row.score) == (point.kl, point.score)
        assert row.kl_upper_bound == kl_upper_bound(row.n) >= row.kl
        assert row.objective == pytest.approx(row.score - exact.kl_coef * row.kl, abs=1e-12)
        assert row.tilted.kl == pytest.approx(row.kl, abs=1e-9)
        assert row.tilted.score >= row.score - 1e-9
    first = exact.rows[0]
    assert first.kl == 0.0 and first.objective_fraction == 0.0
    assert first.objective == pytest.approx(held_out.solution.objective_reference, abs=1e-9)


def test_a_policy_stands_where_the_exact_evaluation_has_it(exact, held_out):
    """π* itself: J = J*, and the tilted optimum of its KL is π* again, at the same β."""
    expected = evaluate_exactly(held_out.solution.log_policy, held_out.solution)
    policy = exact.policy
    assert policy.n is None and policy.kl_upper_bound is None
    assert policy.score == pytest.approx(expected.score, abs=1e-9)
    assert policy.kl == pytest.approx(expected.kl, abs=1e-9)
    assert policy.objective == pytest.approx(exact.optimum, abs=1e-9)
    assert exact.optimum == pytest.approx(expected.optimum, abs=1e-9)
    assert policy.objective_fraction == pytest.approx(1.0, abs=1e-9)
    assert policy.tilted.kl_coef == pytest.approx(exact.kl_coef, rel=1e-6)
    assert policy.tilted.score == pytest.approx(policy.score, abs=1e-9)


def test_the_frontier_goes_from_the_reference_to_the_largest_kl(exact):
    kls = [point.kl for point in exact.frontier]
    scores = [point.score for point in exact.frontier]
    assert kls[0] == pytest.approx(0.0, abs=1e-12) and min(np.diff(kls)) > 0
    assert min(np.diff(scores)) > 0
    largest = max(row.kl for row in (*exact.rows, exact.policy))
    assert kls[-1] == pytest.approx(largest, rel=1e-6)


def test_beta_0_is_no_trouble(held_out):
    report = in_closed_form(held_out.solution.tree, (1, 10**6), 0.0)
    highest = held_out.solution.tree.finished(held_out.solution.tree.scores).max(1).mean()
    assert report.optimum == pytest.approx(highest, abs=1e-9)
    assert report.rows[1].objective == pytest.approx(highest, abs=1e-3)
    assert report.best is report.rows[1]


# Samples ------------------------------------------------------------------------------------------


def test_samples_estimate_the_closed_form(exact, by_samples):
    """Within three standard errors, which the width of the intervals would be of other prompts."""
    assert not by_samples.is_exact and by_samples.optimum is None
    assert (by_samples.prompts, by_samples.responses_per_prompt) == (3, 64)
    for estimate, truth in zip(by_samples.rows, exact.rows, strict=True):
        assert estimate.score == pytest.approx(truth.score, abs=0.25)
        assert estimate.kl is None and estimate.kl_upper_bound == truth.kl_upper_bound
        bound = estimate.score - by_samples.kl_coef * estimate.kl_upper_bound
        assert estimate.objective == pytest.approx(bound, abs=1e-12)
        low, high = estimate.intervals["score"]
        assert low < estimate.score < high
        shifted = np.subtract(estimate.intervals["objective"], (low, high))
        np.testing.assert_allclose(shifted, bound - estimate.score, rtol=0, atol=1e-12)
    scores = [row.score for row in by_samples.rows]
    assert min(np.diff(scores)) > 0


def test_the_sampled_policy_has_a_kl_of_its_own_and_an_interval(by_samples):
    policy = by_samples.policy  # the reference
    assert policy.kl == pytest.approx(0.0, abs=1e-5) and policy.n is None
    assert policy.score == pytest.approx(by_samples.rows[0].score, abs=0.3)
    assert set(policy.intervals) == {"score", "objective", "kl"}


def test_more_than_the_samples_is_refused_before_any_is_drawn(held_out, monkeypatch):
    monkeypatch.setattr("agents.reward_quality.best_of_n.measuring.respond", None)
    with pytest.raises(ValueError, match="n=9 is more than the 8 samples"):
        sampled(held_out, (1, 9), 8, 0.2, 0)


def test_the_same_seed_gives_the_same_numbers(held_out):
    one, same, other = (sampled(held_out, (1, 2), 8, 0.2, seed) for seed in (0, 0, 1))
    assert one == same and one != other


def test_more_samples_than_a_chunk_are_drawn_in_several(held_out, monkeypatch):
    monkeypatch.setattr("agents.reward_quality.best_of_n.measuring.CHUNK", 8)
    done: list[int] = []
    report = sampled(held_out, (1, 4), 8, 0.2, 0, None, lambda now, of: done.append(now))
    assert done == [8, 16, 24] and report.policy is None


# What is shown ------------------------------------------------------------------------------------


def test_the_tables_fit_a_terminal_and_say_what_is_a_bound(exact, by_samples):
    said = shown(exact, "runs/one")
    assert "…" not in said and max(map(len, shown(by_samples).splitlines())) <= 80
    rows = [line for line in shown(by_samples).splitlines() if line.startswith(" 1")]
    assert len(rows) == 2 and all(line.count("…") == 1 for line in rows)  # unbroken
    assert "policy of runs/one" in said and "100.0%" in said
    assert "only an upper bound" in " ".join(said.split())
    assert "in proportion to π_ref" in " ".join(said.split())
    assert shown(exact).count("\n 1 ") == 1 and " ∞ " in said
    said = " ".join(shown(by_samples, width=120).split())
    assert f"≤ {kl_upper_bound(16):.3f}" in said and "J is at least" in said
    assert "n-subsets" in said and "bootstrap" in said


def test_figures_are_drawn_in_every_format(exact, by_samples, tmp_path):
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        path = tmp_path / f"figure{suffix}"
        draw_report(by_samples if suffix == ".svg" else exact, path, "a_run")
        assert path.read_bytes().startswith(magic)


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def arguments(settings, tmp_path) -> list[str]:
    """The command on the small task, with one prompt."""
    (tmp_path / "prompts.txt").write_text("w4 w5 w6\n")
    return [
        *("best-of-n", "--reference", settings["reference"], "--device", "cpu"),
        *("--reward-model", settings["reward_model"], "--prompts", str(tmp_path / "prompts.txt")),
        *("--max-prompt-tokens", "6", "--max-new-tokens", "2", "--kl-coef", "0.2"),
    ]


def status(arguments: list[str]) -> int:
    """The exit status of a command; the argument parser refuses by an exception."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return int(str(stopped.code))


def test_the_command_writes_what_it_prints(arguments, tmp_path, capsys):
    out, figure = tmp_path / "bon.json", tmp_path / "bon.png"
    more = ["-n", "4", "1", "1000000", "--json", str(out), "--figure", str(figure)]
    assert main([*arguments, *more]) == 0
    said = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["method"] == "closed form" and content["seed"] is None
    assert [row["n"] for row in content["rows"]] == [1, 4, 1_000_000]
    assert content["prompts"] == 1 and content["settings"]["prompts"].endswith("prompts.txt")
    assert content["kl_coef"] == 0.2 and content["policy"] is None and content["run"] is None
    assert content["rows"][0]["tilted"]["kl_coef"] is None  # ∞, which JSON doesn't know
    assert f"{content['rows'][1]['score']:.3f}" in said and figure.stat().st_size > 1000
    assert main([*arguments, "--samples", "8", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["method"] == "samples" and content["seed"] == 0
    assert [row["n"] for row in content["rows"]] == [1, 2, 4, 8]  # the usual ones, up to 8
    assert content["rows"][1]["intervals"]["score"] is None  # of a single prompt


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-n", "0"], "n=0 must be a whole number of at least 1"),
        (["-n", "-3"], "n=-3 must be a whole number of at least 1"),
        (["-n", "1.5"], "1.5"),
        (["-n", "2", "2"], "n=[2, 2] must be one number or more, each of them once"),
        (["-n"], "n=[] must be one number or more"),
        (["-n", "9", "--samples", "8"], "n=9 is more than samples=8"),
        (["-n", "65", "--max-new-tokens", "5"], "--samples 65 or more"),
        (["--closed-form", "--max-new-tokens", "5"], "more than the 300,000"),
        (["--closed-form", "--samples", "8"], "leave out either"),
        (["--samples", "0"], "samples=0 must be"),
        (["--json", "/nowhere/x.json"], "json='/nowhere/x.json' is no place for a file"),
        (["--figure", "x.gif"], "must end in one of .png, .pdf, .svg"),
        (["--run", "nothing"], "--run takes the environment of the run"),
    ],
)
def test_mistakes_are_refused_with_what_to_do(arguments, more, said, capsys):
    assert status([*arguments, *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_unknown_run_is_refused_by_name(tmp_path, capsys):
    assert main(["best-of-n", "--run", str(tmp_path / "nothing")]) == 2
    assert "holds no run" in " ".join(capsys.readouterr().err.split())


def test_the_default_sizes_are_those_up_to_the_samples():
    assert BestOfNConfig().sizes(None) == (1, 2, 4, 8, 16, 64)
    assert BestOfNConfig(samples=10).sizes(10) == (1, 2, 4, 8)
    assert BestOfNConfig(n=(8, 2)).sizes(None) == (2, 8)


def test_a_function_is_enumerated_where_that_is_asked_for(arguments, tmp_path, monkeypatch, capsys):
    """It may be slow, so that samples are the default."""
    (tmp_path / "rewards_of_best_of_n.py").write_text(
        "def longer(prompts, responses):\n    return [float(len(r.split())) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments[arguments.index("--reward-model") + 1] = "rewards_of_best_of_n:longer"
    out = tmp_path / "bon.json"
    assert main([*arguments, "-n", "1", "4", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["method"] == "samples"
    assert main([*arguments, "-n", "1", "4", "--json", str(out), "--closed-form"]) == 0
    content = json.loads(out.read_text())
    assert content["method"] == "closed form"
    # Three scores, so that ties are nearly everything, and the KL is far below its bound.
    assert content["rows"][1]["kl"] < 0.5 * content["rows"][1]["kl_upper_bound"]


@pytest.mark.slow
def test_a_run_stands_beside_best_of_n(arguments, tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "bon.json"
    (tmp_path / "prompts.txt").write_text("".join(f"w{i} w{i + 1}\n" for i in range(4, 24)))
    small = ["--total-tokens", "512", "--n-envs", "32", "--n-steps", "8", "--eval-every", "0"]
    assert main(["train", *arguments[1:], "--out", run, *small, "--learning-rate", "0.003"]) == 0
    summary = json.loads((Path(run) / "summary.json").read_text())
    assert summary["kl"] > 0.01
    assert main(["best-of-n", "--run", run, "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["run"] == run and content["prompts"] == summary["prompts"] == 2
    assert content["optimum"] == pytest.approx(summary["optimum"], abs=1e-6)
    for name in ("objective", "score", "kl", "objective_fraction"):
        assert content["policy"][name] == pytest.approx(summary[name], abs=1e-4), name
    assert content["policy"]["tilted"]["score"] >= content["policy"]["score"] - 1e-9
    assert main(["best-of-n", "--run", run, "--samples", "256", "--json", str(out)]) == 0
    policy = json.loads(out.read_text())["policy"]
    assert policy["kl"] == pytest.approx(summary["kl"], abs=0.1)
    assert policy["score"] == pytest.approx(summary["score"], abs=0.25)
    low, high = policy["intervals"]["objective"]
    assert low <= policy["objective"] <= high
    said = "".join(capsys.readouterr().out.split())
    assert f"policyof{run}" in said


@pytest.mark.slow
def test_the_table_of_the_docs_is_the_closed_form_of_exact(exact_tree):
    """All rows but that of PPO, which is a run."""
    page = (ROOT / "docs" / "reward-models.md").read_text(encoding="utf-8")
    lines = page[page.index("On `exact`") : page.index("| PPO |")].splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| [\d,]+ \|", line)]
    sizes = [int(cells[0].replace(",", "")) for cells in table]
    report = in_closed_form(exact_tree, sizes, exact_tree.kl_coef)
    for cells, row in zip(table, report.rows, strict=True):
        share = 100 * row.objective_fraction
        numbers = (row.score, row.gold_reward, row.kl, row.kl_upper_bound, row.objective, share)
        numbers += (row.tilted.kl_coef, row.tilted.score, row.tilted.objective)
        said = [float(c.rstrip("%").replace("∞", "inf").replace("−", "-")) for c in cells[1:]]
        for number, value in zip(numbers, said, strict=True):
            allowed = 0.06 if number is share else 0.0011
            assert number == pytest.approx(value, abs=allowed), cells
    assert len(table) == 9
