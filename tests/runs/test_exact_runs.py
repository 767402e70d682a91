"""Runs on the exact task: what they say of themselves is the exact truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.cli import main
from agents.evaluation.held_out import HeldOut
from agents.runs.curves import read_metrics
from tokenenv.optimum import evaluate_exactly

SMALL = [
    *("--total-tokens", "1024", "--n-envs", "32", "--n-steps", "16", "--batch-size", "256"),
    *("--eval-every", "1", "--checkpoint-every", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "exact"
    assert main(["train", "--task", "exact", "--out", str(folder), *SMALL]) == 0
    return folder


def test_the_summary_is_the_exact_evaluation_of_the_saved_policy(run, exact_solution):
    summary = json.loads((run / "summary.json").read_text())
    policy = LMActorCriticPolicy.from_pretrained(run / "policy")
    expected = dataclasses.asdict(evaluate_exactly(policy, exact_solution))
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=1e-5), name
    assert "optimum_lower_bound" not in summary and summary["prompts"] == 5
    assert summary["optimum"] == pytest.approx(exact_solution.optimum, abs=1e-9)


def test_evaluations_on_the_way_are_exact_too(run):
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "eval/objective" in row]
    assert len(rows) == 2
    # The first rollout is the reference's own: J = J_ref, KL = 0.
    assert rows[0]["eval/objective_fraction"] == pytest.approx(0.0, abs=1e-6)
    assert rows[0]["eval/kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["eval/kl"] > 0


@pytest.mark.slow
def test_evaluate_and_sample_work_on_it(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "exact: all responses enumerated" in said and "at most" not in said
    assert "held-out prompts;" not in said  # no advice to take more prompts than there are
    assert main(["sample", str(run), "--prompt", "sol"]) == 0
    assert main(["sample", str(run), "--prompt", "la"]) == 2
    said = capsys.readouterr().err
    assert "la" in said and "sol" in said


@pytest.mark.slow
def test_another_starting_actor_is_the_0_of_the_fraction(run, tmp_path, exact_solution):
    arguments = ["--actor", str(run / "policy"), "--task", "exact", "--learning-rate", "0"]
    assert main(["train", "--out", str(tmp_path / "next"), *arguments, *SMALL]) == 0
    summary = json.loads((tmp_path / "next" / "summary.json").read_text())
    policy = LMActorCriticPolicy.from_pretrained(run / "policy")
    start = evaluate_exactly(policy, exact_solution).objective
    assert summary["objective_reference"] == pytest.approx(start, abs=1e-5)
    assert summary["objective_fraction"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_only_small_tasks_with_a_learned_reward_are_enumerated():
    assert HeldOut.from_env_kwargs({"task": "exact"}, 64).solution is not None
    assert HeldOut.from_env_kwargs({"task": "exact"}, 2).solution.tree.prompts == ["do", "re"]
    assert HeldOut.from_env_kwargs({"task": "reviews"}, 4).solution is None
    assert HeldOut.from_env_kwargs({"task": "exact", "kl_coef": 0.0}, 64).solution is None
    # 236,681 responses of larger models: possible, and no small work
    assert HeldOut.from_env_kwargs({"task": "reviews", "max_new_tokens": 2}, 1).solution is None
    own = HeldOut.from_env_kwargs(
        {"task": "exact", "reward_model": lambda prompts, responses: [0.0] * 1}, 64
    )
    assert own.solution is None


@pytest.mark.slow
def test_fewer_prompts_than_asked_for_get_more_responses():
    """64 prompts were asked for and 5 are there: 13 times as many of each."""
    from agents.evaluation.measuring import evaluate

    held_out = dataclasses.replace(HeldOut.from_env_kwargs({"task": "exact"}, 64), solution=None)
    actor = held_out.scorer.reference.language_model.model
    found = evaluate(actor, held_out, 4, seed=0)
    assert found.prompts == 5 and found.responses_per_prompt == 4 * 13
    held_out = dataclasses.replace(HeldOut.from_env_kwargs({"task": "exact"}, 3), solution=None)
    assert evaluate(actor, held_out, 4, seed=0).responses_per_prompt == 4


def test_the_actor_is_the_environments_reference_unless_another_is_given():
    env = make_vec_env("TokenRLHF-Exact-v0", n_envs=2)
    model = TokenPPO(LMActorCriticPolicy, env, n_steps=8, device="cpu")
    assert model.policy.actor_source == env.env.settings.reference
    with pytest.raises(ValueError, match="vocabulary of 486 tokens"):
        TokenPPO(LMActorCriticPolicy, env, n_steps=8, policy_kwargs={"actor": "reviews"})
