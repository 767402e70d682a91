"""Several seeds in one call, numbers in a tracker, rewards in a file beside."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from agents.cli import main
from agents.command_line.seeds import train_seeds
from agents.config import TrainConfig
from agents.runs.tracker import TrackerWriter, start_tracker
from tokenenv.tasks import load_object

SMALL = ["--total-tokens", "256", "--n-envs", "8", "--n-steps", "8", "--eval-prompts", "1"]
SMALL += ["--eval-responses", "4", "--eval-every", "0", "--explain-every", "0", "--device", "cpu"]


def summary_of(config: TrainConfig) -> dict:
    assert config.seeds is None and config.out is not None
    config.out.mkdir(parents=True)
    return {"objective": float(config.seed) ** 2, "kl": 0.5, "gold_reward": None}


def test_interquartile_means_over_seeds(tmp_path):
    config = TrainConfig(seed=2, seeds=5, out=tmp_path / "runs")
    root = tmp_path / "runs"
    folders = train_seeds(config, Console(quiet=True), summary_of)
    assert folders == [root / f"seed-{i}" for i in range(2, 7)]
    content = json.loads((root / "seeds.json").read_text())
    assert content["seeds"] == [2, 3, 4, 5, 6] and content["name"] == "reviews"
    objective = content["numbers"]["objective"]
    assert objective["values"] == [4.0, 9.0, 16.0, 25.0, 36.0]
    assert objective["interquartile_mean"] == pytest.approx((9 + 16 + 25) / 3)
    assert objective["low"] <= objective["interquartile_mean"] <= objective["high"]
    assert content["numbers"]["kl"]["interquartile_mean"] == 0.5
    assert "gold_reward" not in content["numbers"], "not known for all"
    with pytest.raises(ValueError, match="exists already"):
        train_seeds(config, Console(quiet=True), summary_of)


def test_what_is_finished_stays_where_a_later_seed_fails(tmp_path):
    def fails_at_1(config: TrainConfig) -> dict:
        if config.seed == 1:
            raise ValueError("no more")
        return summary_of(config)

    with pytest.raises(ValueError, match="no more"):
        train_seeds(TrainConfig(seeds=3, out=tmp_path), Console(quiet=True), fails_at_1)
    assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == [0]


@pytest.mark.slow
def test_the_command_trains_each_seed_and_makes_one_page(tmp_path, capsys):
    out = tmp_path / "both"
    assert main(["train", "--task", "exact", "--seeds", "2", "--out", str(out), *SMALL]) == 0
    objectives = [
        json.loads((out / f"seed-{i}" / "summary.json").read_text())["objective"] for i in (0, 1)
    ]
    content = json.loads((out / "seeds.json").read_text())
    assert content["numbers"]["objective"]["values"] == objectives
    assert objectives[0] != objectives[1]
    assert (out / "report.html").stat().st_size > 100_000
    assert "interquartile" in capsys.readouterr().out


class Fake(types.ModuleType):
    """A tracker that remembers its calls, and fails from some step on."""

    def __init__(self, name: str, fails_after: int = 10**9) -> None:
        super().__init__(name)
        self.calls: list[tuple] = []
        self.fails_after = fails_after

    def init(self, project, name, config):
        self.calls.append(("init", project, name, config["seed"]))

    def log(self, values, step):
        if len(self.calls) > self.fails_after:
            raise ConnectionError("no network")
        self.calls.append(("log", values, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.slow
def test_a_run_is_logged_to_a_tracker_with_its_settings(tmp_path, monkeypatch):
    fake = Fake("fake_tracker")
    monkeypatch.setitem(sys.modules, "fake_tracker", fake)
    out = tmp_path / "my-run"
    command = ["train", "--task", "exact", "--out", str(out), "--tracker", "fake_tracker", *SMALL]
    assert main([*command, "--seed", "4", "--tracker-project", "mine"]) == 0
    assert fake.calls[0] == ("init", "mine", "my-run", 4) and fake.calls[-1] == ("finish",)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    *_, (_, summary, last) = fake.calls[:-1]
    assert last == 256 and "summary/objective" in summary
    assert summary["summary/kl"] == json.loads((out / "summary.json").read_text())["kl"]
    logged = [(values, step) for kind, values, step in fake.calls[1:-2] if kind == "log"]
    assert len(logged) == len(rows)
    for (values, step), row in zip(logged, rows, strict=True):
        assert 0 <= step <= 256 and values
        for name in values.keys() & row.keys():
            assert values[name] == pytest.approx(row[name])
        assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(caplog):
    fake = Fake("fake", fails_after=1)
    writer = TrackerWriter("fake", fake.log, fake.finish)
    for step in range(4):
        writer.write(
            {"a": 1.0, "text": "x", "nan": float("nan")}, {"a": (), "text": (), "nan": ()}, step
        )
    writer.close()
    writer.finish()
    assert [call[0] for call in fake.calls] == ["log", "log"]
    assert fake.calls[0] == ("log", {"a": 1.0}, 0)
    assert caplog.text.count("the tracker fake failed and is left out: no network") == 1


def test_trackers_that_can_not_be_used_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--tracker", "no_such_tracker", *SMALL]) == 2
    assert "pip install no_such_tracker" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    with pytest.raises(ValueError, match="a module without init, log, finish"):
        start_tracker("json", "p", "n", {})
    fake = Fake("fake_tracker")
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("not logged in"))
    monkeypatch.setitem(sys.modules, "fake_tracker", fake)
    with pytest.raises(ValueError, match=r"did not start .not logged in"):
        start_tracker("fake_tracker", "p", "n", {})


def test_code_in_a_file_is_named_by_its_path(tmp_path, monkeypatch):
    file = tmp_path / "my rules.py"
    file.write_text("COUNT = []\nCOUNT.append(1)\ndef fn(prompts, responses):\n    return [1.0]\n")
    fn = load_object(f"{file}:fn", "reward_model")
    assert fn([], []) == [1.0] and load_object(f"{file}:fn") is fn
    assert load_object(f"{file}:COUNT") == [1], "it is imported once"
    monkeypatch.chdir(tmp_path)
    assert load_object("my rules.py:fn") is fn
    with pytest.raises(ValueError, match=r"there is no file 'nowhere.py' here"):
        load_object("nowhere.py:fn", "reward_model")
    with pytest.raises(ValueError, match="have 'other' at its top level"):
        load_object(f"{file}:other", "reward_model")
    (tmp_path / "broken.py").write_text("def (")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"can't be loaded .*invalid syntax"):
            load_object("broken.py:fn", "reward_model")
