"""What models, files and users wrote is shown, and never acts, wherever it is printed."""

from __future__ import annotations

import dataclasses
import io
import sys
import unicodedata

import pytest
from rich.console import Console

from agents.cli import main
from agents.console import literal
from agents.evaluation.measuring import ResponseReport
from agents.runs.tables import print_before_and_after, print_responses
from tokenenv.printable import printable

HOSTILE = "\x1b[31m\x07\x08\r\x7f\x9b2J\u202e\u2066\u200b\u2028\ud800[red]:smile:[/red]<b>\\"
"""Colours, bell, backspace, return, DEL, C1's CSI, bidirectional marks, and markup that is text."""


def acting(text: str) -> set[str]:
    """The characters of `text` that a terminal would not simply show."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F)])
def test_every_control_is_an_escape(code):
    shown = printable(f"a{chr(code)}b")
    assert shown.startswith("a\\") and shown.endswith("b") and shown.isprintable()
    assert shown[1:-1].encode().decode("unicode_escape") == chr(code)


def test_what_acts_is_shown_and_the_rest_stays():
    for code in (0x61C, 0x200B, 0x200E, 0x200F, *range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF):
        assert printable(chr(code)) == f"\\u{code:04x}"
    assert printable("\ud800") == "\\ud800" and printable("\U000e0041") == "\\U000e0041"
    plain = "naïve 中文 العربية 👩\u200d🚀 می\u200cخواهم [red] \\ <b>"  # joiners are spelling
    assert printable(plain) == plain
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_markup_and_names_of_emoji_are_text():
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200).print(literal(HOSTILE), highlight=False)
    assert out.getvalue() == printable(HOSTILE) + "\n"


def report(response: str = HOSTILE) -> ResponseReport:
    """A response that means harm."""
    return ResponseReport(HOSTILE, response, 0.5, None, 0.1, "stop")


def test_the_tables_of_train_and_sample_show_responses_as_they_are():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=400)
    print_before_and_after(console, [report()], [report("good" + HOSTILE)])
    print_responses(console, "policy", [report()])
    shown = out.getvalue()
    assert not acting(shown.replace("\x1b[3m", "").replace("\x1b[1m", "").replace("\x1b[0m", ""))
    assert shown.count(printable(HOSTILE)) == 4
    assert shown.count(printable("good" + HOSTILE)) == 1


@pytest.mark.parametrize("mode", ["ansi", "human"])
def test_a_rendered_episode_has_no_controls(mode, settings, monkeypatch, capsys):
    from tokenenv.env import TokenEnv

    monkeypatch.setenv("NO_COLOR", "1")
    env = TokenEnv(**settings, render_mode=mode)
    env.reset(seed=0)
    kind = type(env.mdp.language_model)
    monkeypatch.setattr(kind, "decode", lambda self, ids: HOSTILE)
    tokenizer = env.mdp.language_model.tokenizer
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: HOSTILE)
    env.step(2)  # the end of the response
    shown = env.render() if mode == "ansi" else capsys.readouterr().out
    assert not acting(shown) and printable(HOSTILE) in shown


def test_a_page_of_a_comparison_escapes_markup_and_controls(tmp_path):
    from agents.compare.page import write_page

    page = tmp_path / "page.html"
    compared = {
        "settings": {"steps": 1, "seeds": 1, "reach": 0.9, "agents": []},
        **{name: {} for name in ("scores", "scales", "fingerprints", "aggregate")},
        **{"missing": [], "left_out": [], "fingerprint_rows": {}, "runs": []},
        "steps": {"<script>\x1b": 1},
    }
    compared["scales"] = {
        "<script>\x1b\u202e": {
            **dict.fromkeys(("baseline", "top", "uniform", "constant_action"), 1.0),
            **dict.fromkeys(("baseline_is", "top_is"), "<i>\x9b"),
        }
    }
    write_page(compared, page)
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;\\x1b\\u202e" in text and "&lt;i&gt;\\x9b" in text
    assert "<script>" not in text and not acting(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--n-envs", HOSTILE],
        ["train", "--task", HOSTILE],
        ["train", "--prompts", HOSTILE],
        ["train", "--reference", HOSTILE],
        ["train", "--reward-model", f"no:{HOSTILE}"],
        ["train", f"--{HOSTILE}", "1"],
        ["evaluate", HOSTILE],
        ["sample", HOSTILE, "--prompt", HOSTILE],
        ["reward-model", "--pairs", HOSTILE, "--base", "reviews", "--out", "rm"],
        ["compare", "--envs", HOSTILE],
        [HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).encode("ascii", "ignore").decode()[:20],
)
def test_a_wrong_argument_is_shown_without_controls(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2 and captured.err
    assert not acting(captured.out + captured.err) and "Traceback" not in captured.err


def test_a_hostile_argument_reaches_the_command_as_it_was():
    from agents.cli import _parse

    command = _parse(["sample", "run", "--prompt", "one\ttwo\u202e"])
    assert command.prompt == "one\ttwo\u202e"
    assert dataclasses.asdict(command)["n"] == 3 and "agents.cli" in sys.modules
