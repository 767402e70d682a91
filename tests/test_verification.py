"""`tokenrlhf verify`: its checks hold, what is broken is found, agents reach the optimum."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from agents import RLHFCallback
from agents.cli import main
from agents.verification import command, mathematics
from agents.verification.checks import Check, at_least, at_most, near
from agents.verification.learning import TOKENS, ExactCurve, exact_agent, top_five_in_order
from tokenenv.optimum import evaluate_exactly


def test_verify_passes_on_this_installation(capsys, tmp_path):
    assert main(["verify", "--no-learning", "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert "all passed" in said
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["passed"] and len(written["checks"]) >= 40
    assert {"section", "name", "expected", "found", "passed"} == set(written["checks"][0])
    assert {check["section"] for check in written["checks"]} >= {"optimum", "KL estimators"}


@pytest.fixture
def one_section(monkeypatch, exact_solution):
    """`verify` with nothing to check but the controllers, which the test replaces."""
    for name in ("task", "optimum", "kl", "advantage"):
        monkeypatch.setattr(command, f"{name}_checks", lambda *_: [])
    for name in ("environment", "estimate"):
        monkeypatch.setattr(command, f"{name}_checks", lambda *_: [])
    monkeypatch.setattr(command, "enumerate_task", lambda _: exact_solution.tree)
    return lambda checks: monkeypatch.setattr(command, "controller_checks", checks)


def test_a_failed_check_gives_exit_status_1(one_section, capsys):
    one_section(lambda: [near("two", 2.0, 2.0, 1e-9), at_most("three", 3.0, 2.0)])
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--no-learning"])
    assert stopped.value.code == 1
    assert "2 checks" in (said := capsys.readouterr().out) and "1 failed" in said


def test_a_section_that_breaks_is_a_failure_and_not_a_traceback(one_section, capsys):
    def breaks():
        raise RuntimeError("no such kernel")

    one_section(breaks)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--no-learning"])
    assert stopped.value.code == 1
    said = "".join(c for c in capsys.readouterr().out if c.isalpha())  # it may be folded
    assert "RuntimeError" in said and "kernel" in said


def test_a_place_that_cant_be_written_is_said_before_the_work(capsys, tmp_path):
    for place in (tmp_path / "no" / "such.json", tmp_path):
        assert main(["verify", "--json", str(place)]) == 2
        assert "is no place for a file" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_installation_without_the_task_fails_and_is_no_traceback(monkeypatch, capsys):
    def missing(_):
        raise OSError("model.safetensors is missing")

    monkeypatch.setattr(command, "enumerate_task", missing)
    with pytest.raises(SystemExit) as stopped:
        main(["verify"])
    assert stopped.value.code == 1 and "1 failed" in capsys.readouterr().out


def test_checks_compare_as_they_say_and_nan_fails():
    nan = float("nan")
    assert near("", 1.0, 1.1, 0.11).passed and not near("", 1.0, 1.2, 0.11).passed
    assert at_most("", 1.0, 1.0).passed and not at_most("", 1.1, 1.0).passed
    assert at_least("", 1.0, 1.0).passed and not at_least("", 0.9, 1.0).passed
    assert not any(
        c.passed for c in (near("", nan, 1, 1), at_most("", nan, 1), at_least("", nan, 1))
    )
    assert isinstance(near("", nan, 1, 1), Check)


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("k3", lambda ratio: np.exp(-ratio) - 1),
        ("k1", lambda ratio: -ratio),
        ("full_kl", lambda p, r: (np.exp(r) * (r - p)).sum(-1)),
        ("k2", lambda ratio: ratio),
    ],
)
def test_a_broken_estimator_is_found(what, broken, monkeypatch, exact_solution):
    assert all(check.passed for check in mathematics.kl_checks(exact_solution))
    monkeypatch.setattr(mathematics, what, broken)
    assert not all(check.passed for check in mathematics.kl_checks(exact_solution))


def test_a_broken_controller_or_estimator_of_advantages_is_found(monkeypatch, exact_solution):
    monkeypatch.setattr(
        mathematics, "AdaptiveKL", lambda **_: SimpleNamespace(update=lambda b, kl, n: b * 2)
    )
    assert not all(check.passed for check in mathematics.controller_checks())
    monkeypatch.setattr(mathematics, "leave_one_out_advantages", lambda r: r - r.mean())
    assert not all(check.passed for check in mathematics.advantage_checks(exact_solution))


def test_an_optimum_that_is_none_is_found(exact_solution):
    import dataclasses

    wrong = dataclasses.replace(exact_solution, optimum=exact_solution.optimum + 1e-6)
    assert not all(check.passed for check in mathematics.optimum_checks(wrong))


def test_the_order_of_the_top_five_is_the_policys_own(exact_solution):
    tree = exact_solution.tree
    assert top_five_in_order(exact_solution.log_policy, exact_solution)
    assert not top_five_in_order(tree.ref_log_probs, exact_solution)


# Learning ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("agent", "goal"), [("TokenPPO", 0.995), ("PPO", 0.99)])
def test_agents_reach_the_known_optimum(agent, goal, seed, exact_solution):
    """Our PPO and stock PPO with our policy and buffer, 300,000 tokens; ≤ 60 s of CPU time."""
    model = exact_agent(agent, seed)
    start = time.process_time()
    model.learn(TOKENS, callback=RLHFCallback())
    seconds = time.process_time() - start
    found = evaluate_exactly(model.policy, exact_solution)
    assert found.objective_fraction >= goal
    assert top_five_in_order(model.policy, exact_solution)
    assert seconds <= 60


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["rloo", "group", "reinforce"])
def test_agents_without_a_critic_come_near_it(agent, exact_solution):
    model = exact_agent(agent, 0)
    curve = ExactCurve(exact_solution, every=5)
    model.learn(TOKENS, callback=[RLHFCallback(), curve])
    assert curve.measure().objective_fraction >= 0.99
    assert curve.points[0].objective_fraction == pytest.approx(0.0, abs=1e-3)
    assert curve.tokens_to(0.95) < TOKENS
