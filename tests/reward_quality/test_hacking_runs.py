"""The monitor of reward hacking in `tokenrlhf train`: how a run ends, what it leaves, its page."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agents.config import TrainConfig
from agents.policy import LMActorCriticPolicy
from agents.report.charts import charts, group_runs
from agents.report.page import make_page
from agents.report.rules import looks_like_hacking
from agents.report.run_files import RunFiles, read_run
from agents.report.verdict import evidence_of
from agents.reward_quality.hacking import rules
from agents.reward_quality.hacking.rules import Rule
from agents.runs.curves import read_metrics
from agents.runs.tables import print_end
from agents.runs.training import TrainingRun
from tokenenv.tasks.reviews import FOLDER

ALWAYS = Rule("always", "always", lambda start, now: "planted by a test")
SMALL = {
    **{"task": "exact", "total_tokens": 1024, "n_envs": 32, "n_steps": 8, "batch_size": 128},
    **{"reward_model": "reward_of_hacking:length", "n_epochs": 1, "eval_prompts": 4},
    **{"eval_every": 0, "explain_every": 0, "eval_responses": 0, "device": "cpu"},
}


@pytest.fixture(autouse=True)
def reward(tmp_path_factory, monkeypatch):
    """A function, so that nothing is enumerated, which takes longer than to train.

    A rollout has fewer responses than a judgement otherwise needs.
    """
    monkeypatch.setattr(rules, "FEWEST_RESPONSES", 8)
    folder = tmp_path_factory.mktemp("code")
    (folder / "reward_of_hacking.py").write_text(
        "def length(prompts, responses):\n    return [len(r) / 10 for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(folder))


def trained(out: Path, **changes) -> tuple[TrainingRun, dict, str]:
    """A run whose monitor always holds: it, its summary, what was printed."""
    said = io.StringIO()
    console = Console(file=said, width=2000)
    config = TrainConfig(out=out, **{**SMALL, **changes})
    run = TrainingRun(config, console)
    if run.hacking is not None:
        run.hacking.rules = (ALWAYS,)
    summary = run.train()
    print_end(console, out, config, summary, read_metrics(run.run.metrics))
    return run, summary, said.getvalue()


def test_a_stopped_run_ends_in_good_order_and_says_why(tmp_path):
    """Saved, evaluated, finished; and on its page, in its files and on the console stands why."""
    run, summary, said = trained(tmp_path / "run", on_hacking_alarm="stop", eval_responses=16)
    assert summary["finished"] and summary["evaluated"] and math.isfinite(summary["objective"])
    assert summary["tokens"] < 1024 and "planted by a test" in summary["ended_early"]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    LMActorCriticPolicy.from_pretrained(run.run.policy, "cpu")
    (alarm,) = map(json.loads, run.run.alarms.read_text().splitlines())
    assert alarm["rule"] == "always" and alarm["text"] == "planted by a test"
    assert summary["hacking_alarms"] == [{"rule": "always", "tokens": alarm["tokens"]}]
    assert f"stopped after {summary['tokens']:,} of 1,024 tokens" in said
    assert "--on-hacking-alarm stop" in said and "looks like reward hacking" in said
    rows = read_metrics(run.run.metrics)
    assert [row["rlhf/hacking_alarm"] for row in rows if "rlhf/hacking_alarm" in row] == [1.0, 1.0]
    page = read_run(tmp_path / "run", 1e6)
    assert any("ended before its time" in note for note in page.notes)
    assert "ended before its time" in make_page([page])


def test_an_alarm_in_the_last_rollout_ended_nothing_early(tmp_path):
    """The run is as long as was asked for: three rollouts of 256 tokens, the first is the start."""
    _, summary, _ = trained(tmp_path / "run", on_hacking_alarm="stop", total_tokens=768)
    assert summary["hacking_alarms"] and summary["tokens"] == 768
    assert "ended_early" not in summary


def test_a_reward_model_that_is_a_coin_by_its_report_stops_the_run(tmp_path):
    """The alarm is raised before anything is trained, and acted on at the second look."""
    folder = tmp_path / "coin"
    shutil.copytree(FOLDER / "reward_model", folder)
    details = {"accuracy_interval": [0.35, 0.7]}
    report = {"accuracy": 0.55, "pairs": 15, "details": details}
    (folder / "report.json").write_text(json.dumps(report))
    settings = {**SMALL, "task": "reviews", "reward_model": str(folder), "max_new_tokens": 8}
    config = TrainConfig(out=tmp_path / "run", on_hacking_alarm="stop", **settings)
    said = io.StringIO()
    run = TrainingRun(config, Console(file=said, width=2000))
    summary = run.train()
    assert summary["hacking_alarms"][0] == {"rule": "no accuracy", "tokens": 0}
    assert summary["tokens"] == 768 + 32 and "not told from a coin" in summary["ended_early"]
    assert said.getvalue().count("55% of 15 held-out pairs") == 1
    (alarm,) = map(json.loads, run.run.alarms.read_text().splitlines())
    assert alarm["tokens"] == 0 and "55% of 15 held-out pairs" in alarm["text"]


@pytest.mark.slow
def test_without_a_monitor_nothing_is_tracked_and_the_weights_are_the_same(tmp_path):
    watched, _, said = trained(tmp_path / "watched")
    plain, without, silent = trained(tmp_path / "plain", on_hacking_alarm="ignore")
    assert plain.hacking is None and "hacking_alarms" not in without
    weights = [tmp_path / name / "policy" / "model.safetensors" for name in ("plain", "watched")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    names = {name for row in read_metrics(plain.run.metrics) for name in row}
    assert not any("features" in name or "hacking" in name for name in names)
    assert not plain.run.alarms.exists() and watched.run.alarms.exists()
    assert "reward hacking" in said and "reward hacking" not in silent


def test_beta_is_raised_in_the_environment_and_the_summary_says_where_it_ended(tmp_path):
    run, summary, said = trained(
        tmp_path / "run", on_hacking_alarm="raise-kl", hacking_kl_factor=8.0, hacking_kl_raises=1
    )
    start = summary["kl_coef"]  # J is measured at the task's
    assert summary["kl_coef_final"] == pytest.approx(8 * start) == run.env.inner.kl_coef
    assert f"from {start:.3g} to {8 * start:.3g}" in said


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"on_hacking_alarm": "panic"}, "on_hacking_alarm='panic' must be one of 'ignore'"),
        ({"on_hacking_alarm": "raise-kl", "kl_coef": 0.0}, "kl_coef is 0"),
        ({"hacking_kl_factor": 1.0}, "hacking_kl_factor=1.0 must be a number above 1"),
        ({"hacking_kl_raises": 0}, "hacking_kl_raises=0 must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**wrong)


def test_runs_of_before_had_no_monitor():
    content = TrainConfig().as_json()
    for name in ("on_hacking_alarm", "hacking_kl_factor", "hacking_kl_raises"):
        del content[name]
    assert TrainConfig.from_json(content).on_hacking_alarm == "ignore"


# The page ----------------------------------------------------------------------------------------


def files(rows, seed=0, **settings) -> RunFiles:
    config = {"task": "reviews", "seed": seed, "total_tokens": 100, **settings}
    return RunFiles(Path(f"run-{seed}"), config, rows)


def rollouts(beta: float, with_gold: bool = True) -> list[dict]:
    """Gold by the law with α = 0.5, the score a straight line, KL from 0 to 9."""
    rows = []
    for number, d in enumerate(np.linspace(0.0, 3.0, 12)):
        row = {"time/total_timesteps": 10 * number, "rlhf/kl": float(d**2), "rlhf/score": float(d)}
        if with_gold:
            row["rlhf/gold_reward"] = float(d * (0.5 - beta * math.log(d))) if d else 0.0
        rows.append(row)
    return rows


def test_the_verdict_of_the_page_names_the_alarms():
    def judged(alarms):
        run = RunFiles(Path("run"), {}, summary={"hacking_alarms": alarms})
        return looks_like_hacking(evidence_of(run))

    assert judged([{"rule": "length", "tokens": 4096}]).numbers == "length after 4,096 tokens"
    assert judged([{"rule": "length", "tokens": 4096}]).holds and not judged([]).holds
    assert judged(None) is None and not judged(["x", {"rule": 1, "tokens": "2"}]).holds


def gold_chart(*runs: RunFiles) -> list[dict]:
    return [c for c in charts(group_runs(runs)) if c["name"] == "gold_against_proxy"]


def test_a_run_that_knows_its_gold_reward_shows_it_over_the_kl():
    (chart,) = gold_chart(files(rollouts(0.4)))
    by_label = {series["label"]: series for series in chart["series"]}
    assert set(by_label) == {"score", "score, fitted", "gold reward", "gold reward, fitted"}
    np.testing.assert_allclose(by_label["score"]["x"], np.linspace(0, 3, 12), atol=1e-6)
    law = by_label["gold reward, fitted"]
    d = np.array(law["x"][1:])
    np.testing.assert_allclose(law["y"][1:], d * (0.5 - 0.4 * np.log(d)), atol=1e-4)
    assert "greatest at d = 1.28" in chart["notes"][0] and chart["over"] == "√KL"
    assert "gold reward against score" in make_page([files(rollouts(0.4))])


def test_runs_without_a_gold_reward_or_too_short_ones_show_nothing_of_it():
    assert gold_chart(files(rollouts(0.4, with_gold=False))) == []
    assert gold_chart(files(rollouts(0.4)[:3])) == []


def test_groups_of_runs_show_their_gold_rewards_in_their_colours():
    runs = [files(rollouts(beta), seed, kl_coef=beta) for beta in (0.3, 0.6) for seed in (0, 1)]
    (chart,) = gold_chart(*runs)
    assert [series["group"] for series in chart["series"]] == [0, 0, 1, 1]
    assert all("gold reward" in series["label"] for series in chart["series"])
    assert len(chart["series"][0]["x"]) == 24
