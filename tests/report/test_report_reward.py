"""The page's section on the reward: reports of reward models, audits, alarms, shift."""

from __future__ import annotations

import json
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.reward_files import add_alarms, add_shifts, write_audit, write_reward_report
from support.token_files import HOSTILE, make_run

from agents.cli import main
from agents.report.charts import charts, group_runs
from agents.report.page import make_page
from agents.report.reward_files import reward_names
from agents.report.reward_section import audit_command
from agents.report.run_files import read_run
from agents.reward_quality.audit.files import check_place, read_audit


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """An empty folder, which relative names are looked for in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")
    return tmp_path


def run_with(reward_model: Any = None, name: str = "run", **settings: Any) -> Path:
    return make_run(Path(name), steps=(), reward_model=reward_model, **settings)


def section(*runs: Path) -> str:
    """The section's words, without tags."""
    page = make_page([read_run(run, 0) for run in runs])
    part = page[page.index('<section id="reward"') : page.index('<section id="samples"')]
    words = "".join(text.partition(">")[2] for text in part.split("<"))
    return " ".join(unescape(words).split())


def drawn(*runs: Path) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in charts(group_runs([read_run(run, 0) for run in runs]))}


# Reports of reward models ------------------------------------------------------------------------


def test_the_report_of_a_learned_reward_model_is_shown_with_its_calibration():
    write_reward_report(Path("rm"), notes=["measured on few pairs"])
    run = run_with("rm")
    said = section(run)
    for words in (
        *("ensemble0.7000.610 … 0.790", "member 20.640", "the shorter wins0.480"),
        *("100 held-out pairs, learned from 400, loss 0.625", "calibration error 0.125"),
        *("From rm/report.json", "measured on few pairs"),
    ):
        assert words in said, words
    assert "the longer wins" not in said
    chart = drawn(run)["calibration-0"]
    points, line = chart["series"]
    assert (points["x"], points["y"]) == ([0.25, 0.75], [0.125, 0.875])
    assert line["x"] == line["y"] == [0.0, 1.0] and chart["section"] == "reward"
    assert "2 bins of 80 pairs" in chart["notes"][0]


def test_a_reward_model_that_is_not_told_from_a_coin_is_named_as_that():
    write_reward_report(Path("good"))
    bad = json.loads(Path("good/report.json").read_text())
    details = {**bad["details"], "accuracy_interval": [0.45, 0.61]}
    write_reward_report(Path("weak"), accuracy=0.53, details=details)
    words = "it is not told from a coin"
    assert words in section(run_with("weak")) and words not in section(run_with("good", "r2"))


def test_a_bundled_reward_model_has_its_card():
    said = section(run_with())
    assert "Accuracy of reviews" in said and "reward model0.911" in said
    assert "5,000 held-out pairs, learned from 20,000" in said and "no bins" in said
    assert not any(name.startswith("calibration") for name in drawn(Path("run")))


@pytest.mark.parametrize(
    ("reward_model", "said"),
    [
        ("judge:odds", "'judge:odds' is a function: there is no report"),
        ("someone/on-a-hub", "'someone/on-a-hub' is no folder here"),
        ("bare", "'bare' has no report.json"),
        ("broken", "'broken/report.json' is no report of a reward model that can be read"),
        ("cut", "cut/report.json"),
        (None, "'my.tasks:TASK' is a task of your own"),
        ("a\0b", "no folder here"),
    ],
)
def test_where_no_report_is_known_it_is_said_why(reward_model, said):
    Path("bare").mkdir()
    write_reward_report(Path("broken"), details={"calibration": 3})
    write_reward_report(Path("cut")).joinpath("report.json").write_text('{"pairs":')
    task = "my.tasks:TASK" if reward_model is None else "reviews"
    assert said in section(run_with(reward_model, task=task))


def test_a_reward_model_that_was_refreshed_is_said_to_be_another_now():
    words = "is of the one that it began with"
    assert words in section(run_with(refresh_every=8))
    assert words not in section(run_with(name="other", refresh_every=0))


def test_each_of_several_rewards_is_looked_for_once():
    write_reward_report(Path("rm"))
    run = run_with(["rm", "judge:odds", "rm"])
    assert reward_names(read_run(run, 0).config) == ["rm", "judge:odds", "rm"]
    assert section(run).count("Accuracy of rm") == 1 and "'judge:odds' is a function" in section(
        run
    )


# Audits ------------------------------------------------------------------------------------------


def test_an_audit_in_the_folder_of_the_run_is_shown_in_words():
    write_reward_report(Path("rm"))
    run = run_with("rm")
    write_audit(run / "audit.json")
    said = section(run)
    for words in (
        *("strong, 0.90 deviations of the score", "length: a sentence raises it."),
        *("160 responses to 80 prompts, it agrees with 70.0% of the labels", "From run/audit.json"),
        "a sentence added that says nothingresponses 80shift +0.90 (+0.50 … +1.25)rises in 75 %",
        "hardly variesprefers more 80 %labels 55 %excess +0.90 (+0.50 … +1.25)",
    ):
        assert words in said, words
    assert "This makes one" not in said and "is an audit of" not in said


def test_an_audit_without_verdicts_says_what_it_could_have_missed():
    run = run_with()
    write_audit(run / "audit.json", reward_model="reviews", verdicts=[], faults=["it differs"])
    said = section(run)
    assert "No verdict: no feature and no edit is paid for" in said and "it differs" in said
    assert "Could have been missed: ρ up to ±0.12, a shift up to ±0.40." in said


def test_audits_beside_reward_models_and_their_members_are_found():
    for folder in ("rm", "rm/member-2", "other"):
        write_reward_report(Path(folder))
        write_audit(Path(folder, "audit.json"), said=f"of {folder}.", reward_model=folder)
    said = section(run_with(["rm", "other"]))
    assert all(f"of {folder}." in said for folder in ("rm", "rm/member-2", "other"))


@pytest.mark.parametrize("audited", ["rm", "rm/member-1", "run/reward_model", "./rm"])
def test_an_audit_of_the_runs_reward_is_known_as_that(audited):
    run = run_with(str(write_reward_report(Path("rm"))))
    (run / "reward_model").mkdir()
    write_audit(run / "audit.json", reward_model=audited)
    assert "is an audit of" not in section(run)


def test_an_audit_of_something_else_is_named_as_that():
    run = run_with(str(write_reward_report(Path("rm"))))
    write_audit(run / "audit.json", reward_model="rm2")
    assert "is an audit of 'rm2', and the run was trained against 'rm'" in section(run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 9}, "is an audit of version 9"),
        ({"probes": [3]}, "run/audit.json is no audit that can be shown (TypeError)"),
        ({"verdicts": None}, "is no audit that can be shown"),
    ],
)
def test_an_audit_that_can_not_be_read_is_said_and_the_page_written(changes, said):
    run = run_with()
    write_audit(run / "audit.json", reward_model="reviews", **changes)
    assert said in section(run)


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "tokenrlhf audit reviews --prompts reviews --out 'a run'"),
        (
            {"reward_model": "r m", "prompts": "p.txt", "reference": "lm"},
            "tokenrlhf audit 'r m' --prompts p.txt --reference lm --out 'a run'",
        ),
        (
            {"reward_model": ["rm", "rm2"]},
            "tokenrlhf audit rm/member-1 --prompts reviews --out rm",
        ),
    ],
)
def test_the_command_that_makes_an_audit_is_named(settings, command):
    Path("rm", "member-1").mkdir(parents=True)
    run = run_with(name="a run", **settings)
    assert audit_command(read_run(run, 0)) == command
    assert command in section(run) and shlex.split(command)[0] == "tokenrlhf"


# Alarms and shift --------------------------------------------------------------------------------


def test_shift_and_its_company_have_charts_with_levels():
    run = run_with()
    add_shifts(run)
    shown = drawn(run)
    assert shown["shift"]["series"][0]["x"] == [1024, 5120, 9216, 13312]
    assert shown["shift"]["series"][0]["y"] == [0.0, 20.0, 40.0, 60.0]
    levels = {name: [line["value"] for line in shown[name]["lines"]] for name in shown}
    assert levels["shift"] == [0.0] and levels["shift_p"] == [0.05]
    assert levels["shift_disagreement"] == [1.0] and levels["ref_surprisal"] == []
    of_reward = [name for name, chart in shown.items() if chart["section"] == "reward"]
    assert of_reward == [
        *("gold_against_proxy", "shift", "shift_p", "shift_disagreement", "rm_disagreement"),
        *("rm_accuracy", "rm_accuracy_after", "rm_scale", "ref_surprisal"),
    ]
    assert "--shift-every" not in section(run)


def test_what_was_not_measured_is_said():
    run = run_with(on_hacking_alarm="warn")
    said = section(run)
    assert "tokenrlhf train --shift-every 8" in said and "None was raised." in said
    for setting, words in (("ignore", "the monitor was off"), (None, "older than that setting")):
        config = json.loads((run / "config.json").read_text()) | {"on_hacking_alarm": setting}
        (run / "config.json").write_text(json.dumps(config))
        assert words in section(run)


def test_alarms_are_marked_in_the_charts_and_told():
    run = run_with()
    add_alarms(run, ("score", 4096, "it rose"), ("length", 4096, "longer"), ("entropy", 8192, "x"))
    with (run / "alarms.jsonl").open("a") as file:
        file.write('{"rule": "cut o')
    said = section(run)
    assert "score, after 4,096 tokens" in said and "it rose" in said and "cut o" not in said
    marks = drawn(run)["score"]["marks"]
    assert [(m["at"], m["label"]) for m in marks] == [(4096, "score, length"), (8192, "entropy")]
    (mark,) = drawn(run)["gold_against_proxy"]["marks"]
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kl = next(row["rlhf/kl"] for row in rows if row["time/total_timesteps"] == 4096)
    assert mark["at"] == pytest.approx(kl**0.5, rel=1e-5)


def test_of_several_runs_the_first_alarm_of_each_is_marked():
    runs = [run_with(name=f"r{seed}", seed=seed) for seed in (0, 1)]
    for run in runs:
        add_alarms(run, ("score", 4096, "it rose"), ("length", 8192, "longer"))
    marks = drawn(*runs)["score"]["marks"]
    assert [m["label"] for m in marks] == ["r0: score", "r1: score"]
    assert section(*runs).count("score, after 4,096 tokens") == 2


def test_hostile_texts_about_the_reward_stay_text():
    name = HOSTILE[1].replace("/", "∕")
    run = run_with(str(write_reward_report(Path(name), notes=list(HOSTILE))))
    add_alarms(run, *((text, 1024, text) for text in HOSTILE))
    write_audit(run / "audit.json", said="".join(HOSTILE), reward_model=HOSTILE[0])
    page = make_page([read_run(run, 0)])
    assert "<img" not in page and "<script>alert" not in page
    assert not any(c in page for c in "\x00\x07\x1b\x9b\u202e\u2028")
    assert "alert(2)" in page


# Where an audit is written -----------------------------------------------------------------------


def test_an_audit_replaces_an_audit_and_nothing_else(tmp_path):
    check_place(Path("new.json"))
    check_place(write_audit(Path("old.json")))
    assert read_audit(Path("old.json"))["reward_model"] == "rm"
    run = run_with()
    check_place(run)  # a folder: its audit.json
    (run / "audit.json").write_text("{}")
    for place in (run, run / "config.json", Path("/dev/null")):
        with pytest.raises(ValueError, match="out="):
            check_place(place)
    for place in (Path("nowhere/audit.json"), Path("a\0b"), Path("x" * 5000)):
        with pytest.raises(ValueError, match="no file can be written there"):
            check_place(place)
    assert (run / "audit.json").read_text() == "{}" and not Path("new.json").exists()


def test_the_command_of_the_page_reads_what_lies_beside_the_run(capsys):
    run = run_with(str(write_reward_report(Path("rm"))))
    write_audit(run / "audit.json")
    assert main(["report", str(run)]) == 0, capsys.readouterr().err
    assert "a sentence raises it" in (run / "report.html").read_text(encoding="utf-8")
