"""`bench_learning.py`: what it counts, its file of results, its settings, and a small run."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
from support.warm_python import Done, run_python

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def imported(monkeypatch):
    """Import a module of benchmarks/ by its name, as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def curve(*values: float, name: str = "ours", task: str = "t", seed: int = 0) -> list[dict]:
    """A run whose J is measured every 100 tokens and 10 seconds."""
    return [
        {
            **{"task": task, "name": name, "seed": seed, "key": f"{task}{seed}"},
            **{"tokens": 100 * i, "cpu_seconds": 10.0 * i, "wall_seconds": 20.0 * i},
            **{"objective": value, "kl": 2.0 * i, "is_last": i == len(values) - 1},
        }
        for i, value in enumerate(values)
    ]


# Counting -----------------------------------------------------------------------------------------


def test_j_is_averaged_with_its_neighbours_but_not_with_the_untrained(imported):
    """(0), then means of (3, 6), (3, 6, 9), (6, 9)."""
    table = imported("learning_table")
    assert table.smoothed(curve(0, 3, 6, 9)) == pytest.approx([0, 4.5, 6, 7.5])
    assert table.level(curve(0, 3, 6, 9)) == 6 and table.level(curve(0, 3)) == 3


def test_tokens_and_seconds_to_a_goal_lie_on_the_line_between_two_points(imported):
    """Smoothed 0, 4.5, 6, 7.5 at 0, 100, 200, 300: 5.1 lies 0.6/1.5 = 0.4 of the way to 200."""
    to_reach = imported("learning_table").to_reach
    run = curve(0, 3, 6, 9)
    assert to_reach(run, 5.1, "tokens") == pytest.approx(140)
    assert to_reach(run, 5.1, "cpu_seconds") == pytest.approx(14)
    assert to_reach(run, 0.0, "tokens") == 0.0
    assert math.isinf(to_reach(run, 8.0, "tokens"))


def test_goals_are_numbers_levels_of_settings_or_nine_tenths_of_the_best(imported):
    goals = imported("learning_table").goals
    runs = [curve(1, 3, 3, 3), curve(1, 11, 11, 11, name="other"), curve(0, 5, 5, 5, task="u")]
    assert goals(runs, {}) == {"t": pytest.approx(10.0), "u": pytest.approx(4.5)}
    assert goals(runs, {"t": "ours", "u": "2.5"}) == {"t": 3.0, "u": 2.5}
    with pytest.raises(
        ValueError, match=r"neither a number nor one of the settings .*: ours, other"
    ):
        goals(runs, {"": "theirs"})


def test_rows_are_interquartile_means_over_seeds(imported):
    """Two of four seeds are in the middle.

    Seeds rise in one step to v, so that the first smoothed point is v: 6/v of 100 tokens. For v =
    8, 10, 12 and 24 these are 75, 60, 50, 25; the middle two have the mean 55.
    """
    table = imported("learning_table")
    runs = [curve(0, v, v, v, seed=i) for i, v in enumerate((8, 10, 12, 24))]
    runs += [curve(0, 3, 3, 3, name="slow", seed=i) for i in range(4)]
    ours, slow = table.rows(runs, {"t": 6.0})
    assert ours["tokens"] == pytest.approx(55) and ours["CPU s"] == pytest.approx(5.5)
    assert ours["ratio"] == 1.0 and ours["reached"] == "4 of 4"
    assert ours["J at the end"] == pytest.approx(11) and ours["KL"] == pytest.approx(4)
    assert math.isinf(slow["tokens"]) and slow["reached"] == "0 of 4" and math.isnan(slow["ratio"])


def test_a_failed_run_reaches_no_level(imported):
    table, search = imported("learning_table"), imported("learning_search")
    run = curve(0, 3, 6)
    run[-1]["failed"] = "NaN"
    assert table.level(run) == -math.inf and search.worth(run, 6.0) == -1.0


def test_worth_is_the_mean_height_of_the_curve_between_untrained_and_goal(imported):
    """(3 − 1)/4 and (5 − 1)/4."""
    assert imported("learning_search").worth(curve(1, 3, 5), 5.0) == pytest.approx(0.75)


# The file of results ------------------------------------------------------------------------------


@pytest.fixture
def runs(imported):
    return imported("learning_runs")


def made(*values: float):
    """A training that leaves these J."""

    def make(run, say):
        for point in curve(*values):
            say({k: v for k, v in point.items() if k not in ("task", "name", "seed", "key")})

    return make


def test_a_run_that_is_in_the_file_is_not_made_again(runs, tmp_path):
    path, run = tmp_path / "found.jsonl", runs.Run("t", "ours", 3, {"n_epochs": 2}, 300)
    first = runs.record(run, made(0, 1, 2), path)
    assert [point["objective"] for point in first] == [0, 1, 2]
    assert {point["seed"] for point in first} == {3}
    assert runs.record(run, made(7, 8), path) == first, "not made again"
    other = runs.Run("t", "ours", 3, {"n_epochs": 4}, 300)
    assert runs.record(other, made(7, 8), path)[-1]["objective"] == 8
    assert [len(points) for points in runs.read(path)] == [3, 2]


def test_an_interrupted_run_keeps_its_lines_and_is_made_from_the_start(runs, tmp_path):
    path, run = tmp_path / "found.jsonl", runs.Run("t", "ours", 0, {}, 300)

    def interrupted(run, say):
        say({"tokens": 0, "objective": 0.5, "is_last": False})
        say({"tokens": 100, "objective": 0.6, "is_last": False})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.record(run, interrupted, path)
    with path.open("a") as file:
        file.write('{"tokens": 2')  # a line that was cut off
    assert len(path.read_text().splitlines()) == 3 and runs.read(path) == []
    with path.open("a") as file:
        file.write("\n")
    runs.record(run, made(0, 1, 2), path)
    assert [[p["objective"] for p in points] for points in runs.read(path)] == [[0, 1, 2]]


# Settings -----------------------------------------------------------------------------------------


def test_settings_go_where_they_belong(runs):
    settings = {
        **{"n_envs": 4, "n_steps": 6, "minibatches": 2, "learning_rate": 2e-3, "n_epochs": 3},
        **{"lr_schedule": "constant", "adam_epsilon": 1e-7, "stats_window_size": 7},
        "policy_kwargs.value_head": "separate",
    }
    model = runs.build(runs.Run("reviews", "ours", 5, settings, 100))
    assert (model.n_envs, model.n_steps, model.batch_size, model.n_epochs) == (4, 6, 12, 3)
    assert model.lr_schedule(1.0) == model.lr_schedule(0.0) == 2e-3
    assert model.policy.optimizer.defaults["eps"] == 1e-7
    assert (
        model._stats_window_size == 7 and model.policy.value_head == "separate" and model.seed == 5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": 1e-3}, "learning_rates.*TrainConfig.*policy_kwargs.NAME"),
        ({"lr_schedule": "cube"}, "'linear', 'cosine', 'cubic', 'constant'"),
        ({"n_epochs": 0}, "n_epochs"),
    ],
)
def test_settings_that_can_not_be_used_are_refused(runs, settings, message):
    with pytest.raises(ValueError, match=message):
        runs.build(runs.Run("reviews", "ours", 0, settings, 100))


def test_a_peer_that_is_not_installed_is_answered_with_how_to_install_it(imported):
    check_peer = imported("learning_peer").check_peer
    for python in (sys.executable, "no-such-python"):
        with pytest.raises(SystemExit, match=r"python -m venv .*trl==1\.12\.0"):
            check_peer(Path(python))


# The script ---------------------------------------------------------------------------------------


def run(*arguments: str) -> Done:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return run_python(BENCHMARKS / "bench_learning.py", *arguments, environment=environment)


@pytest.mark.slow
def test_a_small_run_is_measured_and_shown(tmp_path):
    path, settings = tmp_path / "found.jsonl", tmp_path / "settings.yaml"
    settings.write_text("fast:\n  learning_rate: 1e-3\n  lr_schedule: constant\nslow: {}\n")
    done = run(str(path), "--tasks", "reviews", "--quick", "--settings", str(settings))
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(p["name"], p["tokens"]) for p in points] == [
        (name, tokens) for name in ("fast", "slow") for tokens in (0, 128, 256)
    ]
    assert points[0]["objective"] == points[3]["objective"], "the reference's, on the same samples"
    assert points[0]["kl"] == pytest.approx(0, abs=1e-5) and points[0]["cpu_seconds"] == 0
    assert 0 < points[1]["cpu_seconds"] <= points[2]["cpu_seconds"]
    shown = run(str(path), "--table", "--json", str(tmp_path / "rows.json"))
    assert shown.returncode == 0, shown.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["fast", "slow"]


@pytest.mark.slow
def test_a_search_counts_the_worst_task_and_goes_on_where_it_was(tmp_path, imported):
    """One trial more, with the study of a trial that is there: two in all."""
    optuna = pytest.importorskip("optuna")
    search = imported("learning_search").search
    trained = []

    def train(task, name, settings):
        trained.append((task, name))
        return [curve(0, 4, 4) if task == "good" else curve(0, 1, 1)]

    study = tmp_path / "found.study"
    for _ in range(2):
        search(1, study, {"n_epochs": 3}, {"good": 4.0, "bad": 4.0}, train)
    assert trained == [(task, f"trial-{i}") for i in (0, 1) for task in ("good", "bad")]
    backend = optuna.storages.journal.JournalFileBackend(str(study))
    made = optuna.load_study(study_name="learning", storage=optuna.storages.JournalStorage(backend))
    assert [trial.value for trial in made.trials] == [0.25, 0.25]
