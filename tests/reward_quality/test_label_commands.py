"""`tokenrlhf labels`: curves that go on where they were stopped, selections that people fill in."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import save_classifier
from support.pairs import separable_pairs

from agents.cli import main
from agents.reward_quality.labels import curve as command
from agents.reward_quality.labels.curve import default_sizes
from agents.reward_quality.labels.pair_sources import FilePairs
from agents.reward_quality.labels.pool import read_pool
from agents.reward_quality.labels.simulation import summary_of
from tokenenv.data import read_pairs
from tokenenv.rewards import TokenPair


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng) -> Path:
    """A folder with labelled pairs, a pool without labels and two reward models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    pairs = separable_pairs(rng, 60)
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pool = [
        {"id": f"{n}-0", "prompt": p.prompt, "response_a": p.chosen, "response_b": p.rejected}
        for n, p in enumerate(pairs)
    ]
    Path("pool.jsonl").write_text("\n".join(json.dumps({**row, "label": None}) for row in pool))
    for seed in (1, 2):
        save_classifier(tmp_path / "ensemble" / f"member-{seed}", seed=seed)
    return tmp_path


def status(*arguments: str) -> int:
    try:
        return main([*arguments, "--device", "cpu"])
    except SystemExit as stopped:
        return int(str(stopped.code))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


# The curve ----------------------------------------------------------------------------------------


@pytest.fixture
def curve(here, reference_folder, capsys):
    """Runs the command; gives its status and what it says."""

    def run(*more: str) -> tuple[int, str]:
        arguments = ["--pairs", "pairs.jsonl", "--base", reference_folder, "--out", "curve"]
        capsys.readouterr()
        done = status("labels", "curve", *arguments, "--epochs", "1", *more)
        captured = capsys.readouterr()
        return done, captured.out + captured.err

    return run


SMALL = ("--sizes", "4", "8", "12", "20", "--seeds", "2")


@pytest.mark.slow
def test_a_curve_is_measured_reported_and_not_measured_again(curve, monkeypatch):
    done, said = curve(*SMALL)
    assert done == 0 and "8 points, 4 sizes of 2 seeds" in said and "0 of them are there" in said
    report = json.loads(Path("curve/curve.json").read_text())
    assert [row["size"] for row in report["sizes"]] == [4, 8, 12, 20]
    assert len(report["points"]) == 8 and report["law"]["limit"] <= 1
    of_seed_0 = [point for point in report["points"] if point["seed"] == 0]
    assert {point["held_out_pairs"] for point in of_seed_0} == {of_seed_0[0]["held_out_pairs"]}
    assert all(p["training_pairs"] + p["selection_pairs"] == p["size"] for p in of_seed_0)
    assert Path("curve/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "accuracy(n) = " in said and "one more percentage point" in said

    Path("curve/points/8-1.json").unlink()
    trained = []
    original = command.train_on
    monkeypatch.setattr(
        command, "train_on", lambda p, *rest: (trained.append(len(p)), original(p, *rest))[1]
    )
    done, said = curve(*SMALL)
    assert done == 0 and "7 of them are there already" in said and trained == [8]
    assert json.loads(Path("curve/curve.json").read_text())["points"] == report["points"]


def test_points_of_other_settings_are_refused_by_name_and_may_be_replaced(curve, monkeypatch):
    def stopped(*_):
        raise ValueError("no training")

    monkeypatch.setattr(command, "train_on", stopped)
    assert curve(*SMALL)[0] == 2
    assert "no training" in curve(*SMALL, "--epochs", "2")[1]  # there is no point to go on with
    assert "no training" in curve(*SMALL)[1]
    point = {"size": 4, "seed": 0, "accuracy": 0.5}
    Path("curve/points/4-0.json").write_text(json.dumps(point))
    done, said = curve(*SMALL, "--learning-rate", "0.01")
    assert done == 2 and "learning_rate was 0.0003, now 0.01" in said
    with Path("pairs.jsonl").open("a") as file:
        file.write('\n{"prompt": "w4", "chosen": "w5", "rejected": "w6"}')
    done, said = curve(*SMALL)
    assert done == 2 and "digest_of_the_pairs was" in said and "pairs_in_the_file was 60" in said
    done, said = curve(*SMALL, "--overwrite")
    assert done == 2 and "no training" in said
    assert json.loads(Path("curve/points/4-0.json").read_text()) == point  # put back
    Path("curve/mine.txt").write_text("")
    assert "holds 'mine.txt', which is no part of a learning curve" in curve(*SMALL)[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sizes", "10", "500"), "fewer than 500: give smaller sizes, more pairs"),
        (("--sizes", "1"), "1 must be a number of pairs, 2 or more"),
        (("--sizes", "4", "4"), "names a number twice"),
        (("--report-fraction", "0"), "report_fraction=0.0 leaves no pairs"),
        (("--ppo-config", "zoo:exact"), "is for policies: give ppo_tokens"),
        (("--ppo-tokens", "64", "--ppo-config", "zoo:nope"), "ppo_config='zoo:nope'"),
        (("--pairs", "reviews"), "reads others: give base='reviews'"),
    ],
)
def test_what_can_not_be_measured_is_refused_by_name(curve, more, message):
    done, said = curve(*more)
    assert done == 2 and message in said and not Path("curve").exists()


def test_sizes_double_up_to_all_pairs():
    assert default_sizes(1000) == [31, 62, 125, 250, 500, 1000]
    assert default_sizes(20) == [10, 20] and default_sizes(3) == [3]


def pair(number: int, preference: float = 1.0) -> TokenPair:
    ids = np.array([1, number]), np.array([2, number])
    return TokenPair(*ids, f"prompt {number // 2}", preference=preference)


def test_smaller_sets_are_parts_of_larger_ones_and_no_held_out_prompt_is_in_them():
    source = FilePairs([pair(number) for number in range(40)], 0.2)
    first, again, other = source.draw(0, 5), source.draw(0, 30), source.draw(1, 30)
    assert [id(p) for p in first.pool] == [id(p) for p in again.pool]
    assert len(first.held_out) == 8 and len(first.pool) == 32 == source.most(range(3))
    prompts = {p.prompt for p in first.held_out}
    assert not prompts & {p.prompt for p in first.pool}
    assert prompts != {p.prompt for p in other.held_out}
    with pytest.raises(ValueError, match="held-out pairs are ties"):
        FilePairs([pair(number, 0.5) for number in range(40)], 0.2).draw(0, 5)


@pytest.mark.slow
def test_a_policy_is_trained_with_every_reward_model_and_judged_by_gold(here, capsys):
    Path("ppo.yaml").write_text("task: reviews\nn_envs: 8\nn_steps: 8\nbatch_size: 64\n")
    arguments = ["labels", "curve", "--pairs", "reviews", "--base", "reviews", "--out", "curve"]
    arguments += ["--sizes", "8", "16", "--seeds", "1", "--held-out-pairs", "20", "--epochs", "1"]
    arguments += ["--ppo-tokens", "64", "--ppo-config", "ppo.yaml", "--ppo-prompts", "4"]
    assert status(*arguments, "--ppo-responses", "2") == 0
    said = capsys.readouterr().out
    assert "after PPO, on held-out prompts" in said and "gold reward of the reference" in said
    report = json.loads(Path("curve/curve.json").read_text())
    assert 0.5 < report["best_accuracy"] < 1 and report["law"] is None
    policy = report["points"][0]["policy"]
    kl_coef = 0.25
    assert policy["objective"] == pytest.approx(policy["score"] - kl_coef * policy["kl"])
    assert policy["tokens"] >= 64 and policy["untrained"]["gold_objective"] == pytest.approx(
        -kl_coef * policy["untrained"]["kl"]
    )
    assert not Path("curve/reward_model").exists()


# The selection ------------------------------------------------------------------------------------


@pytest.fixture
def select(here, capsys):
    """Runs the command; gives its status and what it says."""

    def run(*more: str) -> tuple[int, str]:
        arguments = ["--pool", "pool.jsonl", "-k", "6", "--out", "next.jsonl"]
        capsys.readouterr()
        done = status("labels", "select", *arguments, *more)
        captured = capsys.readouterr()
        return done, captured.out + captured.err

    return run


def test_a_selection_is_written_filled_in_bit_by_bit_and_read_back(select, monkeypatch):
    done, said = select("--reward-models", "ensemble")
    assert done == 0 and "60 pairs of pool.jsonl can be chosen" in said and "6 open" in said
    selected = rows("next.jsonl")
    assert [row["selected"]["rank"] for row in selected] == [1, 2, 3, 4, 5, 6]
    assert len({row["id"] for row in selected}) == 6
    assert selected[0]["label"] is None and selected[0]["selected"]["bald"] >= 0
    with pytest.raises(ValueError, match="'label' is empty"):
        read_pairs("next.jsonl")

    # A person labels two of them, and stops.
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\nq\n"))
    done, said = select("--reward-models", "ensemble", "--ask")
    assert done == 0 and "going on with them" in said and "4 open" in said
    answered = [row for row in rows("next.jsonl") if row["label"]]
    assert len(answered) == 2

    # Others fill in a sheet, in which one row stays empty.
    with Path("sheet.csv").open("w", newline="") as file:
        names = ("prompt", "response_a", "response_b", "label")
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        unanswered = [row for row in rows("next.jsonl") if not row["label"]]
        writer.writerows([{**row, "label": "tie"} for row in unanswered[:3]] + unanswered[3:])
    done, said = select("--reward-models", "ensemble", "--labels", "sheet.csv")
    assert done == 0 and "3 pairs have a label from sheet.csv" in said and "1 open" in said
    after = rows("next.jsonl")
    assert [row for row in after if row["label"] in ("a", "b")] == answered
    assert [row["selected"] for row in after] == [row["selected"] for row in selected]

    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    assert "all have been answered" in select("--reward-models", "ensemble", "--ask")[1]
    assert len(read_pairs("next.jsonl")) == 6

    # The next round chooses others.
    done, said = select(
        "--reward-models", "ensemble", "--exclude", "next.jsonl", "--out", "second.jsonl"
    )
    assert done == 0 and "6 rows are in a file that was excluded" in said
    assert not {row["id"] for row in rows("second.jsonl")} & {row["id"] for row in after}


def test_random_pairs_need_no_reward_model_and_other_settings_are_refused(select):
    assert select("--by", "random", "--seed", "1")[0] == 0
    first = Path("next.jsonl").read_text()
    done, said = select("--by", "random", "--seed", "2")
    assert done == 2 and "selected with other settings (seed was 1, now 2)" in said
    assert Path("next.jsonl").read_text() == first
    assert select("--by", "random", "--seed", "2", "--overwrite")[0] == 0
    assert Path("next.jsonl").read_text() != first
    Path("next.jsonl").write_text(
        '{"id": "1", "prompt": "w4", "response_a": "w5", "response_b": "w6", "label": null, '
        '"finish_a": "stop", "finish_b": "stop"}'
    )
    assert "holds pairs that were not selected" in select("--by", "random")[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--reward-models", "ensemble/member-1"), "1 reward model can't contradict itself"),
        (("--reward-models", "ensemble", "ensemble/member-1"), "names a reward model twice"),
        ((), "0 reward model"),
        (("--reward-models", "ensemble", "-k", "61"), "k=61 is more than the 60 pairs"),
        (("--reward-models", "ensemble", "--pool", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--by", "random", "--pool", "pairs.jsonl"), "no column 'response_a' among 'prompt'"),
        (("--by", "random", "--labels", "nowhere.csv"), "labels='nowhere.csv' does not exist"),
        (("--by", "random", "--exclude", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--by", "random", "--out", "no/where.jsonl"), "there is no folder 'no'"),
        (("--base", "exact"), "base='exact' is for --simulate"),
        (("--simulate",), "give base"),
        (("--simulate", "--base", "exact", "--ask"), "ask is for pairs without labels"),
    ],
)
def test_what_can_not_be_selected_is_refused_by_name(select, more, message):
    done, said = select(*more)
    assert done == 2 and message in said
    assert not Path("next.jsonl").exists()


def test_more_pairs_than_prompts_may_have_are_refused(select):
    lines = Path("pool.jsonl").read_text().splitlines()
    second = {**json.loads(lines[0]), "response_a": "w4"}
    Path("pool.jsonl").write_text("\n".join([*lines[:5], json.dumps(second)]))
    done, said = select("--by", "random", "--max-per-prompt", "1")
    assert done == 2 and "max_per_prompt=1 leaves 5 of the 6 pairs, fewer than k=6" in said
    assert not Path("next.jsonl").exists()


def test_a_pool_leaves_out_what_needs_no_label(here):
    row = {"prompt": "w4", "response_a": "w5", "response_b": "w6"}
    turned = {"prompt": "w4", "response_a": "w6", "response_b": "w5"}
    same = {"prompt": "w4", "response_a": "w5", "response_b": "w5"}
    labelled = {"prompt": "w7", "response_a": "w5", "response_b": "w6", "label": "a"}
    talk = {**row, "prompt": [{"role": "user", "content": "w4"}]}
    lines = [row, turned, same, labelled, talk]
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pool = read_pool("mixed.jsonl")
    assert [r.prompt for r in pool.rows] == ["w4", ({"role": "user", "content": "w4"},)]
    assert pool.left_out == {
        "stand there twice": 1,
        "have the same text twice": 1,
        "have a label already": 1,
    }
    Path("mixed.jsonl").write_text(json.dumps(labelled))
    with pytest.raises(ValueError, match="no pair to choose: of 1 rows 1 have a label already"):
        read_pool("mixed.jsonl")
    Path("mixed.jsonl").write_text('{"question": "w4", "response_a": "w5", "response_b": "w6"}')
    assert read_pool("mixed.jsonl", {"prompt": "question"}).rows[0].prompt == "w4"


# The simulation -----------------------------------------------------------------------------------


def test_a_simulation_says_whether_selection_helps():
    """Differences 0.02, 0.03, 0.04: mean 0.03 ± 4.303·0.01/√3 = 0.005 to 0.055."""
    helps = [
        {"start": 0.5, "random": 0.60, "selected": 0.60 + d, "random_twice": 0.60}
        for d in (0.02, 0.03, 0.04)
    ]
    summary = summary_of(helps)
    less = summary["selected_less"]["random"]
    assert less["mean"] == pytest.approx(0.03)
    assert less["interval"] == pytest.approx((0.00516, 0.05484), abs=1e-4)
    assert summary["verdict"].startswith("selection helps: as good as twice as many")
    worse = [{**r, "random": r["selected"] + (0.1 - r["start"] / 9)} for r in helps]
    assert "not shown to help" in summary_of([*worse[:2], helps[0]])["verdict"]
    turned = [{**r, "random": r["selected"], "selected": r["random"]} for r in helps]
    assert "does harm" in summary_of(turned)["verdict"]
    assert "one seed" in summary_of(helps[:1])["verdict"]


@pytest.mark.slow
def test_a_simulation_hides_labels_trains_and_goes_on(here, reference_folder, capsys):
    arguments = ["labels", "select", "--simulate", "--pool", "pairs.jsonl", "-k", "5"]
    arguments += ["--out", "result.json", "--base", reference_folder, "--start", "8"]
    arguments += ["--members", "2", "--epochs", "1"]
    assert status(*arguments, "--seeds", "1") == 0
    first = json.loads(Path("result.json").read_text())
    assert set(first["seeds"]["0"]) >= {"start", "random", "selected", "random_twice"}
    assert status(*arguments, "--seeds", "2") == 0
    both = json.loads(Path("result.json").read_text())
    assert both["seeds"]["0"] == first["seeds"]["0"] and set(both["seeds"]) == {"0", "1"}
    assert "2 seeds, 8 labels at the start, K = 5" in capsys.readouterr().out
    assert status(*arguments, "--members", "3") == 2
    assert "members was 2, now 3" in capsys.readouterr().err
    assert status(*arguments, "--overwrite", "--start", "58") == 2
    assert "fewer than start=58 and k=5 together" in capsys.readouterr().err
