"""A run's folder: nothing that was computed is lost, and nothing of the user's is removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from agents import curves
from agents.config import TrainConfig
from agents.curves import read_metrics
from agents.files import whole_folder
from agents.runs import RunFolder
from agents.training import TrainingRun
from tokenenv.user_code import UserCodeError

TINY = {
    **{"total_tokens": 512, "n_envs": 16, "n_steps": 16, "batch_size": 128, "device": "cpu"},
    **{"eval_prompts": 4, "eval_responses": 8, "eval_every": 0},
}


def train(out: Path, **given) -> tuple[TrainingRun, dict]:
    run = TrainingRun(TrainConfig(out=out, **{**TINY, **given}), Console(quiet=True))
    return run, run.train()


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    train(out)
    (out / "notes.txt").write_text("mine")
    RunFolder.create(TrainConfig(out=out, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "policy").exists() and not (out / "summary.json").exists()


def test_overwrite_refuses_what_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="not of a run: nothing was removed"):
        RunFolder.create(TrainConfig(out=tmp_path, overwrite=True))
    assert (tmp_path / "policy").is_dir() and (tmp_path / "config.json").is_file()


def test_overwrite_refuses_to_remove_what_the_run_reads(tmp_path):
    out = tmp_path / "run"
    train(out)
    config = TrainConfig(out=out, overwrite=True, actor=str(out / "policy"))
    with pytest.raises(ValueError, match="lies in out="):
        RunFolder.create(config)
    assert (out / "policy" / "model.safetensors").is_file()


def test_j_of_the_untrained_actor_is_measured_where_it_is_not_the_reference(tmp_path):
    """An actor that learns nothing has gained nothing, however good it was to begin with."""
    first = {"n_envs": 32, "total_tokens": 8192, "learning_rate": 1e-3, "eval_responses": 64}
    _, summary = train(tmp_path / "first", **first)
    assert summary["objective"] - summary["objective_reference"] > 0.3
    _, again = train(
        tmp_path / "again",
        actor=str(tmp_path / "first" / "policy"),
        learning_rate=0.0,
        eval_responses=64,
    )
    assert again["objective"] == pytest.approx(again["objective_reference"], abs=1e-6)
    assert again["objective_fraction"] == pytest.approx(0.0, abs=1e-5)
    assert again["score_reference"] < again["score"]


def test_a_reward_that_fails_in_the_middle_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "flaky.py").write_text(
        "calls = []\n"
        "def reward(prompts, responses):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3:\n"
        "        raise RuntimeError('the server is gone')\n"
        "    return [1.0] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    with pytest.raises(UserCodeError, match=r"the server is gone \(at .*flaky.py:5\)"):
        train(out, reward_model="flaky:reward", total_tokens=4096)
    assert (out / "checkpoints" / "failed.zip").is_file()
    assert (out / "policy" / "model.safetensors").is_file()
    assert read_metrics(out / "metrics.jsonl")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    place = tmp_path / "policy"
    with whole_folder(place) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(place) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (place / "a").read_text() == "old"
    with whole_folder(place) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in place.iterdir()] == ["b"]


def test_under_a_moving_beta_a_run_is_drawn_and_judged_at_the_one_it_was_given(
    tmp_path, monkeypatch
):
    drawn = {}
    panel = curves._panel
    monkeypatch.setattr(
        curves,
        "_panel",
        lambda axis, rows, *given: drawn.update(rows=rows) or panel(axis, rows, *given),
    )
    given = {"kl_controller": "dual", "kl_target": 3.0, "kl_dual_rate": 0.5}
    run, summary = train(tmp_path / "moved", **given)
    rows = read_metrics(tmp_path / "moved" / "metrics.jsonl")
    used = [row["rlhf/kl_coef"] for row in rows if "rlhf/kl_coef" in row]
    assert len(set(used)) == len(used) >= 2, "β moved"
    for row, judged in zip(rows, drawn["rows"], strict=True):
        if "rlhf/score" in row:
            score, kl, own = (row[f"rlhf/{name}"] for name in ("score", "kl", "kl_coef"))
            assert judged["rlhf/objective"] == score - summary["kl_coef"] * kl
            assert row["rlhf/objective"] == pytest.approx(score - own * kl, abs=1e-6)
    assert used[0] == summary["kl_coef"] == run.held_out.settings.kl_coef
    assert summary["kl_coef_final"] == run.env.env.kl_coef < used[-1]
    written = json.loads((tmp_path / "moved" / "summary.json").read_text())
    assert written["kl_coef_final"] == summary["kl_coef_final"]
    assert "kl_coef_final" not in train(tmp_path / "fixed")[1]


def test_the_summary_is_json_that_anyone_reads(tmp_path):
    train(tmp_path / "run")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert "NaN" not in text and json.loads(text)["tokens"] == 512
