"""The page in a browser: everyone gets at everything, and hostile texts stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reward_files import add_alarms, add_shifts, write_audit, write_reward_report
from support.token_files import HOSTILE, make_header, make_response, make_run

from agents.credit import read_tokens, write_tokens
from agents.report.page import write_page, write_report
from agents.report.run_files import read_run

pytestmark = pytest.mark.browser

# Texts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    root = make_run(tmp_path_factory.mktemp("hostile") / "run", steps=(), task=HOSTILE[1])
    write_audit(root / "audit.json", said="".join(HOSTILE), reward_model=HOSTILE[0])
    add_alarms(root, *((text, 4096, text) for text in HOSTILE))
    header, rng = make_header(16, task=HOSTILE[0]), np.random.default_rng(0)
    response = make_response(rng, header, length=len(HOSTILE), texts=HOSTILE)
    write_tokens(root / "tokens" / "16.jsonl", header, [{**response, "prompt": "".join(HOSTILE)}])
    return write_report(root)


def test_hostile_texts_stay_text(browser, hostile):
    browser.open(hostile)
    chips = browser.texts("#chips .chip")
    by_text = dict(zip(HOSTILE, chips, strict=True))
    assert by_text["\u202eright to left\u202c"] == "\\u202eright to left\\u202c"
    assert by_text["\x00\x07\x1b[31m\x9b"] == "\\x00\\x07\\x1b[31m\\x9b"
    assert by_text["\u2028\u2029"] == "\\u2028\\u2029"
    assert by_text["\n"] == "⏎" and by_text[""] == "∅" and by_text[" \t "] == " ⇥ "
    assert by_text["x" * 10_000] == "x" * 240 + "… (10,000 characters)"
    as_they_are = [t for t in HOSTILE if t.isprintable() and 0 < len(t) < 100]
    assert len(as_they_are) == 6
    assert [by_text[text] for text in as_they_are] == as_they_are
    for number in range(len(HOSTILE)):
        browser.click(".chip", number)
    assert browser.count("script") == 2 and browser.count("img, iframe, object, embed") == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_no_text_makes_the_page_scroll_sideways(browser, hostile, width):
    browser.open(hostile, width=width)
    assert browser.js("return document.documentElement.scrollWidth") <= width


def test_a_script_that_a_text_might_bring_along_would_not_run(browser, page):
    browser.open(page)
    browser.js(
        "const script = document.createElement('script');"
        "script.textContent = 'window.ran = true'; document.body.append(script)"
    )
    assert browser.js("return window.ran === undefined")
    assert any("Content Security Policy" in message for message in browser.errors())


# By keyboard --------------------------------------------------------------------------------------

TAB, LEFT, UP, RIGHT, DOWN = "\ue004", "\ue012", "\ue013", "\ue014", "\ue015"
END, HOME = "\ue010", "\ue011"

FOCUSED = """
const e = document.activeElement;
return e.id || (e.getAttribute('class') || '').split(' ')[0] || e.hash || e.tagName;
"""


def test_every_view_is_reached_by_keyboard(browser, page):
    browser.open(page)
    reached = set()
    for _ in range(90):
        browser.press(TAB)
        reached.add(browser.js(FOCUSED))
        if "BODY" in reached:
            break
    controls = "button:not(:disabled), input, select"
    expected = {
        *browser.map("nav a", "hash"),
        *browser.map(f"#tokens :is({controls}):not([hidden] *)", "id"),
    }
    assert expected <= reached and "chip" in reached and "SUMMARY" in reached
    assert browser.count(".chart svg") == browser.count(".chart svg[tabindex='0']") >= 10


def token(browser: Any) -> int:
    """The token that has the focus."""
    return browser.js("return +document.activeElement.dataset.token")


def test_arrow_keys_go_from_token_to_token(browser, page):
    browser.open(page)
    browser.focus(".chip")
    browser.press(RIGHT, RIGHT)
    assert token(browser) == 2 and browser.text("#details h3").startswith("Token 3 of")
    browser.press(LEFT)
    assert token(browser) == 1
    browser.press(END, RIGHT)
    assert token(browser) == browser.count("#chips .chip") - 1
    browser.press(HOME)
    assert token(browser) == 0
    assert browser.count(".chip[tabindex='0']") == 1


def test_up_and_down_go_to_the_next_line(browser, page):
    browser.open(page, width=360)
    browser.focus(".chip")
    top = "return document.activeElement.getBoundingClientRect().top"
    first = browser.js(top)
    browser.press(DOWN)
    assert browser.js(top) > first + 10
    browser.press(UP)
    assert browser.js(top) == pytest.approx(first, abs=10)


def test_arrow_keys_move_the_sliders_and_the_steps(browser, page):
    browser.open(page)
    browser.focus("#lambda")
    browser.press(LEFT)
    assert browser.js("return tokenrlhf.state.lambda") == pytest.approx(0.949)
    assert browser.texts("#estimators b")[0] == "GAE, γ = 1, λ = 0.949"
    browser.focus("#step")
    browser.press(LEFT)
    assert browser.js("return tokenrlhf.step().header.step") == 2048


def test_arrow_keys_read_a_chart(browser, page):
    browser.open(page)
    browser.focus("[data-chart=kl] svg")
    browser.press(RIGHT, RIGHT)
    tip = browser.text("[data-chart=kl] .tip")
    assert tip.startswith("2,048 tokens") and "training samples" in tip


def test_pointing_at_a_token_and_at_its_bar_shows_it(browser, page):
    browser.open(page)
    browser.js(
        "document.querySelectorAll('.chip')[4]"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    assert browser.text("#details h3").startswith("Token 5 of")
    browser.js(
        "const s = document.querySelector('#strips svg'), at = s.getBoundingClientRect();"
        "s.dispatchEvent(new PointerEvent('pointermove', {clientX: at.left + 1}))"
    )
    assert browser.text("#details h3").startswith("Token 1 of")
    assert browser.map(".chip", "ariaSelected")[:2] == ["true", "false"]


# What is shown ------------------------------------------------------------------------------------


def test_a_token_shows_all_its_numbers_and_the_five_most_likely(browser, page, run):
    browser.open(page)
    browser.choose("kind", "rollout")
    browser.click(".chip", 3)
    table = read_tokens(run)
    place = next(i for i, r in enumerate(table.responses) if r["kind"] == "rollout")
    columns = table.columns_of(place)
    names = browser.map("dd[data-column]", "dataset.column")
    shown = dict(zip(names, browser.texts("dd[data-column]"), strict=True))
    for name in ("log_prob", "kl", "entropy", "reward", "value", "delta", "whitened", "ratio"):
        assert float(shown[name].replace("−", "-")) == pytest.approx(columns[name][3], rel=1e-3)
    assert "clip" in shown and "exact_strength" not in shown
    assert browser.texts(".alternatives .word") == list(columns["top_texts"][3])
    percents = [float(p.removesuffix(" %").lstrip("<")) for p in browser.texts(".alternatives .p")]
    assert percents == pytest.approx((100 * columns["top_probs"][3]).tolist(), abs=0.06)
    assert browser.texts(".alternatives .taken") == ["", "▸", "", "", ""]


def test_stepping_keeps_the_response_and_shows_its_way(browser, page):
    browser.open(page)
    assert browser.map("#history-panel", "hidden") == [True]
    browser.choose("kind", "fixed")
    browser.click("#response-next")
    browser.click(".chip", 2)
    words = browser.text("#chips")
    for _ in range(2):
        browser.click("#step-previous")
        assert browser.text("#chips") == words
        assert browser.text("#details h3").startswith("Token 3 of")
    assert browser.map("#step-previous", "disabled") == [True]
    assert browser.text("#step-text").startswith("1,024 tokens")
    (label,) = browser.map("#history svg", "ariaLabel")
    assert label.startswith("whitened advantage of token 3 through training")


def test_several_runs_have_one_chart_and_one_view_of_tokens(browser, tmp_path):
    roots = [make_run(tmp_path / f"r{s}", seed=s, steps=(16,) if s else ()) for s in range(3)]
    roots.append(make_run(tmp_path / "other", steps=(16,), learning_rate=1e-4))
    browser.open(write_page([read_run(root, 1e6) for root in roots], tmp_path / "all.html"))
    chart = "[data-chart=score]"
    parts = (".band", ".series.seed", ".series.line")
    assert [browser.count(f"{chart} {part}") for part in parts] == [1, 3, 2]
    assert browser.texts("#run option") == ["r1", "r2", "other"]
    browser.choose("run", 3)
    assert browser.js("return tokenrlhf.run().name") == "other"


def test_the_section_on_the_reward_draws_its_charts_and_marks_alarms(browser, tmp_path):
    reward_model = write_reward_report(tmp_path / "rm")
    root = make_run(tmp_path / "run", steps=(), reward_model=str(reward_model))
    write_audit(root / "audit.json")
    add_shifts(root)
    add_alarms(root, ("score", 4096, "it rose"), ("length", 8192, "longer"))
    browser.open(write_report(root), width=360)
    assert browser.count("#reward-grid figure") == 10
    assert browser.count("[data-chart=shift] .alarm") == 2
    assert browser.count("[data-chart=gold_against_proxy] .alarm") == 1
    assert browser.count("[data-chart=calibration-0] circle.held-out") == 2
    legend = browser.texts("[data-chart=gold_against_proxy] .legend li")
    assert legend == ["gold reward, fitted", "score, fitted"]
    browser.focus("[data-chart=shift] svg")
    browser.press(RIGHT)
    assert "training samples" in browser.text("[data-chart=shift] .tip")
    assert browser.js("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("what", ["unfinished", "without tokens", "with a config alone"])
def test_pages_of_what_is_missing_draw_without_an_error(browser, tmp_path, what):
    root = make_run(tmp_path / "run", steps=() if "without" in what else (8,), finished=False)
    if "alone" in what:
        for name in ("metrics.jsonl", "samples.jsonl", "tokens/8.jsonl"):
            (root / name).unlink()
    browser.open(write_report(root), width=360)
    assert browser.js("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_the_page_fits_its_window(browser, page, width):
    browser.open(page, width=width)
    for kind in ("fixed", "rollout"):
        browser.choose("kind", kind)
        assert browser.js("return document.documentElement.scrollWidth") <= width
