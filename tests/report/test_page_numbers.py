"""The page in a browser: what its script computes is what Python computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.token_files import make_header, make_responses, make_run

from agents.credit import TokenFile, read_tokens, write_tokens
from agents.report.page import write_report
from agents.report.samples import correlation
from tokenenv.maths import generalized_advantages, length_adaptive_lambdas

pytestmark = pytest.mark.browser

SETTINGS = [(1.0, 0.0), (1.0, 0.5), (1.0, 0.95), (1.0, 1.0), (0.9, 0.3), (0.0, 0.7)]
"""γ and λ; the run's are 1 and 0.95."""


def at(
    table: TokenFile, gamma: float, gae_lambda: float, alpha: float | None = None
) -> list[np.ndarray]:
    """The advantages of every response, by Python; with an α, λ is by the response's length."""
    scale = table.header["reward_scale"]
    found = []
    for number, response in enumerate(table.responses):
        columns, lengths = table.columns_of(number), np.array([response["tokens"]])
        advantages = generalized_advantages(
            scale["factor"] * columns["reward"][None] + scale["shift"],
            columns["value"][None],
            lengths,
            np.array([response["bootstrap_value"]]),
            gamma,
            gae_lambda if alpha is None else length_adaptive_lambdas(lengths, alpha),
        )
        found.append(advantages[0])
    return found


def whitened_at(table: TokenFile, gamma: float, gae_lambda: float) -> np.ndarray:
    """Those of all tokens, whitened as the header says."""
    whitening = table.header["whitening"]
    advantages = np.concatenate(at(table, gamma, gae_lambda))
    return (advantages - whitening["mean"]) / whitening["deviation"]


def numbers(browser: Any, column: str) -> np.ndarray:
    """A column of all tokens of the step, as the page has it now."""
    code = "return Array.from(window.tokenrlhf.numbers(arguments[0]), (v) => v === v ? v : null)"
    return np.array(browser.js(code, column), dtype=float)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_sliders_compute_what_python_computes(browser, page, run, gamma, gae_lambda):
    browser.open(page)
    browser.choose("gamma-number", gamma)
    browser.choose("lambda-number", gae_lambda)
    table = read_tokens(run)
    expected = np.concatenate(at(table, gamma, gae_lambda))
    assert_near(numbers(browser, "advantage"), expected)
    assert_near(numbers(browser, "whitened"), whitened_at(table, gamma, gae_lambda))
    assert_near(numbers(browser, "delta"), np.concatenate(at(table, gamma, 0.0)))  # A at λ = 0
    assert_near(numbers(browser, "return"), expected + table.arrays["value"])


# α = 0.1: λ is 0 up to 10 tokens. The responses have 6 to 12; 1e9 is all but λ = 1.
@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 0.05), (1.0, 0.1), (0.9, 0.4), (1.0, 1e9)])
def test_lambda_by_length_is_what_python_computes(browser, page, run, gamma, alpha):
    browser.open(page)
    browser.choose("gamma-number", gamma)
    browser.choose("lambda-kind", "length")
    browser.choose("alpha", alpha)
    table = read_tokens(run)
    expected = np.concatenate(at(table, gamma, 0.0, alpha))
    assert_near(numbers(browser, "advantage"), expected)
    assert_near(numbers(browser, "return"), expected + table.arrays["value"])


@pytest.fixture(scope="module")
def by_length(tmp_path_factory) -> Path:
    """The folder of a run that was trained with α = 0.4."""
    root = make_run(tmp_path_factory.mktemp("by-length") / "run", steps=())
    header = make_header(16, gae_lambda_alpha=0.4)
    write_tokens(root / "tokens" / "16.jsonl", header, make_responses(header, {"fresh": 4}))
    write_report(root)
    return root


def test_a_run_with_lambda_by_length_is_reproduced(browser, by_length):
    browser.open(by_length / "report.html")
    assert browser.map("#lambda-kind, #alpha", "value") == ["length", "0.4"]
    assert browser.map("#alpha-field, #lambda-field", "hidden") == [False, True]
    note = browser.text("#credit-note")
    assert "α = 0.4 (gae). Computed here they are what the run wrote" in note
    written = read_tokens(by_length).arrays["advantage"]
    browser.choose("alpha", 0.1)
    assert not np.allclose(numbers(browser, "advantage"), written)
    assert browser.map("#preset-run", "ariaPressed") == ["false"]
    browser.choose("lambda-kind", "number")
    assert_near(numbers(browser, "advantage"), np.concatenate(at(read_tokens(by_length), 1, 0.95)))
    browser.click("#preset-run")
    assert_near(numbers(browser, "advantage"), written)
    assert browser.map("#lambda-kind, #alpha", "value") == ["length", "0.4"]


@pytest.mark.parametrize("value", ["", "0", "-1"])
def test_alpha_takes_no_number_that_is_none(browser, by_length, value):
    browser.open(by_length / "report.html")
    before = numbers(browser, "advantage")
    browser.choose("alpha", value)
    np.testing.assert_array_equal(numbers(browser, "advantage"), before)
    assert browser.map("#alpha", "value") == ["0.4"]


def test_lambda_by_length_is_chosen_by_keyboard(browser, page):
    """Nothing but keys: to the choice, down, on to α, a number."""
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    before = numbers(browser, "advantage")
    browser.js("document.getElementById('lambda-kind').focus()")
    browser.press(Keys.ARROW_DOWN, Keys.TAB)
    assert browser.js("return document.activeElement.id") == "alpha"
    browser.press(Keys.CONTROL + "a" + Keys.NULL, "0.4")
    assert browser.map("#alpha", "value") == ["0.4"]
    assert not np.allclose(before, numbers(browser, "advantage"))


def test_the_ranges_move_what_their_fields_show(browser, page):
    browser.open(page)
    before = numbers(browser, "advantage")
    browser.choose("lambda", 0.25)
    assert browser.map("#lambda-number", "value") == ["0.25"]
    assert not np.allclose(before, numbers(browser, "advantage"))
    browser.click("#preset-run")
    np.testing.assert_array_equal(numbers(browser, "advantage"), before)
    assert browser.map("#lambda, #lambda-number", "value") == ["0.95", "0.95"]


@pytest.mark.parametrize("value", ["", "1.5", "-1"])
def test_a_field_takes_no_number_that_is_none(browser, page, value):
    browser.open(page)
    before = numbers(browser, "advantage")
    browser.choose("lambda-number", value)
    np.testing.assert_array_equal(numbers(browser, "advantage"), before)
    assert browser.map("#lambda-number", "value") == ["0.95"]


def test_the_number_on_the_screen_is_the_one_computed(browser, page, run):
    browser.open(page)
    browser.choose("lambda-number", 0.5)
    browser.click(".chip", 2)
    expected = at(read_tokens(run), 1.0, 0.5)[0][2]
    shown = browser.text('[data-column="advantage"]').split("→")[1].replace("−", "-")
    assert float(shown) == pytest.approx(expected, rel=1e-3)


def test_the_page_finds_the_advantages_that_the_run_wrote(browser, page):
    browser.open(page)
    assert "Computed here they are what the run wrote" in browser.text("#credit-note")


def test_settings_without_a_slider_are_noticed(browser, tmp_path):
    root = make_run(tmp_path / "run", steps=())
    header = make_header(16)
    responses = make_responses(header, {"fresh": 2})
    responses[0]["columns"]["advantage"] = responses[0]["columns"]["advantage"] + 0.5
    write_tokens(root / "tokens" / "16.jsonl", header, responses)
    browser.open(write_report(root))
    assert "differ from what the run wrote by up to 0.50" in browser.text("#credit-note")


def test_weight_and_strength_follow_the_advantage(browser, page, run):
    """W = whitened × ratio, 0 where the clip stops the gradient; strength is |w|·‖∇ log π‖."""
    browser.open(page)
    browser.choose("kind", "rollout")
    browser.choose("lambda-number", 0.2)
    table = read_tokens(run)
    whitened = whitened_at(table, 1.0, 0.2)
    ratio = np.nan_to_num(table.arrays["ratio"], nan=1.0)
    is_clipped = np.where(whitened > 0, ratio > 1.2, ratio < 0.8)
    assert is_clipped.any()
    weight = np.where(is_clipped, 0.0, whitened * ratio)
    assert_near(numbers(browser, "weight"), weight, 1e-5)
    expected = np.abs(weight) * table.arrays["gradient_norm"]
    np.testing.assert_allclose(numbers(browser, "strength"), expected, rtol=1e-4, atol=1e-6)


def test_estimators_are_held_against_the_truth(browser, page, run):
    browser.open(page)
    browser.choose("kind", "fresh")
    browser.choose("response", 1)
    table = read_tokens(run)
    truth = [table.columns_of(i)["true_advantage"] for i in range(len(table.responses))]
    fresh = [i for i, r in enumerate(table.responses) if r["kind"] == "fresh"]
    rows = browser.texts("#estimators .strip-head")
    names = ("GAE, γ = 1, λ = 0.95", "Monte Carlo", "TD", "rloo", "group", "reinforce", "true")
    assert len(rows) == 7
    assert all(row.startswith(name) for row, name in zip(rows, names, strict=True))
    for row, gae_lambda in zip(rows, (0.95, 1.0, 0.0), strict=False):
        estimate = at(table, 1.0, gae_lambda)
        here = np.corrcoef(estimate[1], truth[1])[0, 1]
        everywhere = correlation(
            *(np.concatenate([of[i] for i in fresh]) for of in (estimate, truth))
        )
        said = row.split("r here ")[1].split(" · ")[0].replace("−", "-").split(", of all ")
        assert [float(text) for text in said] == pytest.approx([here, everywhere], abs=0.006)
    assert "r here –" in rows[3]  # the same for all tokens: no correlation in one response


def test_the_lorenz_curve_and_gini_are_right(browser, page):
    browser.open(page)
    code = (
        "const l = tokenrlhf.lorenz([3, 1, NaN, 0]); return [l.gini, l.part(1/3), l.part(2/3), l.n]"
    )
    # Of 0, 1, 3: Σᵢ (2i − n − 1)·xᵢ / (n·Σx) = (−2·0 + 0·1 + 2·3)/(3·4) = 1/2.
    assert browser.js(code) == pytest.approx([0.5, 0.0, 0.25, 3])
    assert browser.js("return tokenrlhf.lorenz([2, 2, 2]).gini") == pytest.approx(0)
    assert browser.js("return tokenrlhf.lorenz([0, 0])") is None


def test_the_page_says_how_unequal_the_strength_is(browser, page, run):
    browser.open(page)
    browser.choose("kind", "rollout")
    table = read_tokens(run)
    of_rollout = [i for i, r in enumerate(table.responses) if r["kind"] == "rollout"]
    x = np.sort(np.concatenate([table.columns_of(i)["strength"] for i in of_rollout]))
    n = len(x)
    gini = np.sum((2 * np.arange(1, n + 1) - n - 1) * x) / (n * x.sum())
    words = browser.text("#strength-lead")
    assert words.startswith(f"No. Of {n} tokens in 7 responses (rollout)")
    assert float(words.split("Gini coefficient ")[1].split(" ")[0]) == pytest.approx(
        gini, abs=0.006
    )


def test_without_a_critic_the_runs_advantages_are_shown_until_a_slider_moves(browser, tmp_path):
    header = make_header(16, estimator="rloo", has_critic=False, group_size=2)
    responses = make_responses(header, {"fresh": 4})
    for response in responses:
        columns, count = response["columns"], len(response["columns"]["token"])
        columns |= {"value": [None] * count, "delta": [None] * count}
        columns["advantage"] = [response["uniform"]["rloo"]] * count
    root = make_run(tmp_path / "run", steps=())
    write_tokens(root / "tokens" / "16.jsonl", header, responses)
    browser.open(write_report(root))
    table = read_tokens(root)
    assert_near(numbers(browser, "advantage"), table.arrays["advantage"])
    assert "gives all tokens of a response the same" in browser.text("#credit-note")
    browser.choose("gamma-number", 0.5)
    rewards = table.columns_of(0)["reward"]
    to_come = sum(0.5**k * rewards[k] for k in range(len(rewards)))
    assert numbers(browser, "advantage")[0] == pytest.approx(to_come, abs=1e-6)


def test_a_segment_that_was_cut_has_its_own_positions_and_no_score(browser, tmp_path):
    header = make_header(16)
    responses = make_responses(header, {"fresh": 4, "rollout": 3}, is_exact=True)
    cut = responses[-1]
    count = len(cut["columns"]["token"])
    cut |= {"score": None, "gold_reward": None, "finish_reason": "cut"}
    cut["columns"]["position"] = np.arange(5, 5 + count)
    for response in responses[4:]:
        response["columns"]["true_advantage"] = [None] * len(response["columns"]["token"])
    root = make_run(tmp_path / "run", steps=())
    write_tokens(root / "tokens" / "16.jsonl", header, responses)
    browser.open(write_report(root))
    browser.choose("kind", "rollout")
    browser.choose("response", 6)
    assert "position 5," in browser.text("#details")
    assert "score –" in browser.text("#response-facts")
    # What is known of no response of this kind has no strip: uniform and true advantages.
    assert [name.split(",")[0] for name in browser.texts("#estimators b")] == [
        "GAE",
        "Monte Carlo",
        "TD",
    ]
    assert "rloo, group, reinforce: not known" in browser.text("#estimator-note")
    browser.choose("kind", "fresh")
    assert browser.count("#estimators b") == 7
