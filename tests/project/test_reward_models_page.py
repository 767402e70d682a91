"""The command that measures docs/reward-models.md: what is kept, what goes on, its tables."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from agents import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reward-models.md"


@pytest.fixture
def page(monkeypatch):
    """The command's module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("reward_models_page")


def step(page, name: str, code: str, makes: tuple[str, ...] = (), **more: Any):
    return page.Step(name, f"{name} is made", [(sys.executable, "-c", code)], makes, **more)


def counting(path: Path, then: str = "") -> str:
    """Code that writes one more letter into a file."""
    return f"open({str(path)!r}, 'a').write('x'); {then}"


def test_whole_steps_are_not_made_again_and_failures_stop_only_what_needs_them(
    page, tmp_path, capsys
):
    record = page.Record(tmp_path, False)
    steps = [
        step(page, "one", counting(tmp_path / "one"), ("one",)),
        step(page, "bad", "raise SystemExit('this is why')"),
        step(page, "after bad", counting(tmp_path / "never"), ("never",), needs=("bad",)),
        step(page, "lacking", "", missing="there is no such thing"),
        step(page, "after one", counting(tmp_path / "two"), ("two",), needs=("one",)),
        step(page, "empty", "", ("nothing",)),
    ]
    failed = page.make(steps, record, 2)
    assert failed["bad"] == "exit status 1; its last line: this is why"
    assert failed["after bad"] == "left out: bad" and not (tmp_path / "never").exists()
    assert failed["lacking"] == "left out: there is no such thing"
    assert failed["empty"].startswith("it did not make all of nothing")
    assert set(failed) == {"bad", "after bad", "lacking", "empty"}
    said = capsys.readouterr().out
    assert "one: done, 0.0 minutes" in said and "bad: failed after" in said
    page.make(steps[:1] + steps[4:5], record, 1)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "x"
    assert "one: whole" in capsys.readouterr().out


def test_a_step_is_made_again_where_a_file_is_gone_or_the_commands_are_others(page, tmp_path):
    record = page.Record(tmp_path, False)
    first = step(page, "one", counting(tmp_path / "one"), ("one",))
    second = step(page, "two", counting(tmp_path / "two"), ("two",), needs=("one",))
    assert page.make([first, second], record, 1) == {}
    (tmp_path / "one").write_text("grown by others")
    assert record.is_whole(first)
    (tmp_path / "one").unlink()
    page.make([first, second], record, 1)  # and what needs it with it
    assert (tmp_path / "one").read_text() == "x" and (tmp_path / "two").read_text() == "xx"
    other = step(page, "one", counting(tmp_path / "one", "1 + 1"), ("one",))
    assert record.is_whole(first) and not record.is_whole(other)


def test_commands_of_a_step_come_one_after_the_other_until_one_fails(page, tmp_path):
    record = page.Record(tmp_path, False)
    good, bad = counting(tmp_path / "n"), "raise SystemExit(3)"
    commands = [(sys.executable, "-c", code) for code in (good, good, bad, good)]
    failed = page.make([page.Step("s", "", commands, ())], record, 1)
    assert failed["s"].startswith("exit status 3") and (tmp_path / "n").read_text() == "xx"


def test_stopping_ends_the_processes(page, tmp_path, monkeypatch):
    record = page.Record(tmp_path, False)
    monkeypatch.setattr(page, "POLL", 0.0)
    made = []

    def interrupt(one):
        made.append(one.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(page.Running, "status", interrupt)
    with pytest.raises(KeyboardInterrupt):
        page.make([step(page, "long", "import time; time.sleep(60)")], record, 1)
    assert made[0].returncode is not None


def test_the_quick_sizes_and_the_whole_ones_do_not_mix(page, tmp_path, capsys):
    page.Record(tmp_path, True)
    page.Record(tmp_path, True)
    for wrong, said in (
        ([], "holds the quick sizes"),
        (["--only", "nope"], "--only nope: there are models, hacking-6"),
        (["--quick", "--into", "docs"], "belong on no page"),
        (["--workers", "0"], "1 or more"),
    ):
        with pytest.raises(SystemExit):
            page.main([str(tmp_path), *wrong])
        assert said in capsys.readouterr().err


def readable(words: tuple[str, ...]) -> list[str]:
    """Without `zoo:NAME`, which the command line reads before the settings."""
    return [word for word in words if word != "--config" and not word.startswith("zoo:")]


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_commands_of_the_steps_are_accepted(page, tmp_path, is_quick):
    steps = page.page_steps(tmp_path, is_quick)
    assert len({step.name for step in steps}) == len(steps)
    before: set[str] = set()
    for one in steps:
        assert before.issuperset(one.needs), one.name
        before.add(one.name)
        for command in one.commands:
            if command[1:3] == ("-m", "agents.cli"):
                length = 2 if command[3] == "labels" else 1
                name = " ".join(command[3 : 3 + length])
                tyro.cli(cli._CONFIGS[name], args=readable(command[3 + length :]))
            else:
                source = ROOT / command[1]
                assert source.is_file() or one.missing, command
                text = source.read_text() if source.is_file() else ""
                options = [word for word in command if word.startswith("--")]
                assert not text or all(f'"{option}"' in text for option in options), command


def test_groups_and_what_is_needed_come_with_a_name(page, tmp_path):
    steps = page.page_steps(tmp_path)
    named = [one.name for one in page.selected(steps, ["hacking-table", "best-of-n"])]
    assert named == [
        *(f"hacking-{seed}" for seed in (6, 7, 8, 9, 10)),
        *("hacking-table", "best-of-n-exact", "best-of-n-reviews"),
    ]
    assert page.selected(steps, []) == steps


# Tables -------------------------------------------------------------------------------------------


def test_tables_are_put_between_their_comments_and_figures_beside_the_page(page, tmp_path):
    text = "a\n<!-- table: x 1 -->\nold\n<!-- end of table: x 1 -->\nb\n"
    text += "<!-- figure: labels_curve.png: a curve -->\n"
    place = tmp_path / "docs" / "reward-models.md"
    place.parent.mkdir()
    place.write_text(text)
    (tmp_path / "labels").mkdir()
    for name in ("labels/curve.png", "best_of_n.png"):
        (tmp_path / name).write_bytes(b"png")
    table = sys.modules["page_tables"].markdown(["t", "gain"], [["w", "−0.5 | x"]])
    assert table == "| t | gain |\n| --- | --- |\n| w | −0.5 ∣ x |"
    made = {"x 1": table, "x 2": table}
    said = page.fill_page(place, made, tmp_path)
    filled = text.replace("\nold\n", f"\n\n{made['x 1']}\n\n")
    shown = filled.replace(text.splitlines()[-1], "![a curve](labels_curve.png)")
    assert place.read_text() == shown
    assert page.fill_page(place, made, tmp_path) == said  # again the same
    assert place.read_text().count(made["x 1"]) == 1
    assert any("has no place for x 2" in line for line in said)
    assert (place.parent / "labels_curve.png").is_file()
    assert not (place.parent / "best_of_n.png").exists()  # the page does not show it


def test_what_each_command_writes_becomes_a_table(page, tmp_path):
    tables = sys.modules["page_tables"]
    row = {
        **{"n": 2, "score": 0.5, "gold_reward": -0.1, "kl": None, "kl_upper_bound": 0.193},
        **{"objective": 0.25, "objective_fraction": -0.004},
        "tilted": {"kl_coef": None, "score": 0.6, "objective": 0.3},
        "intervals": {"score": [0.4, 0.6], "gold_reward": None},
    }
    found = {"rows": [row], "policy": {**row, "n": None, "kl": 0.5, "kl_upper_bound": None}}
    exact = tables._of_exact(found)["best-of-n-exact"].splitlines()
    assert exact[2] == "| 2 | 0.500 | −0.100 |  | 0.193 | 0.250 | −0.4% | ∞ | 0.600 | 0.300 |"
    assert exact[3].startswith("| PPO | 0.500 | −0.100 | 0.500 |  |")
    sampled = tables._of_samples({"rows": [row], "policy": None})["best-of-n-reviews"]
    assert "| 2 | 0.500 | 0.400 … 0.600 | −0.100 |  | 0.193 | 0.250 | 0.600 |" in sampled
    of = {name: {"mean": 0.5, "interval": [0.4, 0.6]} for name in ("gold", "score", "kl")}
    of["gold_objective"] = of["kl"]
    size = {"size": 1600, "accuracy": 0.75, "accuracy_interval": None, "policy": of}
    curve = tables._of_curve({"sizes": [size]})["labels-curve"]
    assert "| 1,600 | 0.750 |  | 0.500 | 0.400 … 0.600 | 0.500 | 0.500 | 0.500 |" in curve
    value = {"mean": 0.7, "interval": [0.6, 0.8]}
    summary = {
        **{"accuracy": {"random": value, "selected": value}, "verdict": "it helps"},
        "selected_less": {"random": {"mean": -0.01, "interval": None}},
    }
    select = tables._of_selection({"summary": summary})["labels-select"]
    assert "| random | 0.700 | 0.600 … 0.800 | −0.010 |  |" in select
    assert select.endswith("It helps.")
    assert [tables._power(value) for value in (4e-7, 0.0)] == ["4·10⁻⁷", "0"]


def trained(model: str, remedy: str, seed: int, gold: list[float], alarms=(), **more: Any):
    """A run as `hacking_runs.py` keeps it, of rollouts of 2,048 tokens."""
    rollouts = [
        {"tokens": 2048 * (n + 1), "rlhf/gold_reward": value, **more}
        for n, value in enumerate(gold)
    ]
    end = {"gold_reward": gold[-1], "score": 2.0, "kl": 8.0}
    raised = [{"tokens": tokens, "rule": "length", "text": ""} for tokens in alarms]
    return {
        **{"model": model, "remedy": remedy, "seed": seed, "rollouts": rollouts, "end": end},
        **{"start": {"score": 0.0}, "alarms": raised, "accuracy": [0.5]},
    }


def test_rows_of_hacking_become_counts_of_alarms_and_remedies_by_what_they_bring(page):
    """Gold is lost in the third rollout of five, at 6,144 tokens, or never."""
    bench = importlib.import_module("bench_hacking")
    falls, stays = [0.0, 0.0, -0.6, -0.9, -0.9], [0.0, 0.5, 0.5, 0.5, 0.5]
    runs = [
        trained("weak", "none", 1, falls, [0]),
        trained("weak", "none", 2, falls, [8192]),
        trained("weak", "none", 3, falls),
        trained("weak", "none", 4, stays, [4096]),
        trained("weak", "none", 5, stays),
        *(trained("weak", "length penalty", seed, falls) for seed in (1, 2)),
        *(trained("weak", "score clipped", seed, stays) for seed in (1, 2)),
        trained("good", "none", 1, stays),
        trained("good", "ensemble, mean", 1, stays),
    ]
    alarms = [row for remedy in bench.WATCHED for row in bench.alarm_rows(runs, remedy)]
    assert [row["alarm at"] for row in alarms[:3]] == ["0", "8,192", "never"]
    found = {"rows": [*alarms, *bench.remedy_rows(runs)]}
    made = sys.modules["page_tables"]._of_hacking(found)
    assert made["hacking-alarms"].splitlines()[2:] == [
        "| weak | 3 of 5 | 1 | 1 | 1 | 1 of 2 |",
        "| good | 0 of 1 | 0 | 0 | 0 | 0 of 1 |",
        "| good, three of them, their mean | 0 of 1 | 0 | 0 | 0 | 0 of 1 |",
    ]
    lines = made["hacking-remedies"].splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        *("| none", "| score clipped to ± 1.5", "| length penalty of 0.1 a token"),
        "| stop by the monitor",
    ]
    assert "| +1.40 ± 0.00 | 8.0 |" in lines[1] and "−0.90 ± 0.00 | +0.00" in lines[2]


def test_rows_of_refreshing_and_of_many_models_become_their_tables(page):
    refresh, labels = (importlib.import_module(f"bench_{name}") for name in ("refresh", "labels"))
    rounds = {"rlhf/rm_accuracy": 0.5, "rlhf/rm_labels": 896.0}
    runs = [
        trained("weak", remedy, seed, [0.0, 0.1, 0.2, -0.5], **rounds)
        for seed in (0, 1)
        for remedy in (refresh.WITH, refresh.WITHOUT)
    ]
    of = sys.modules["page_tables"]
    lines = of._of_refresh({"rows": refresh.rows_of(runs)})["refresh"].splitlines()
    parts = " | ".join(f"accuracy, part {part} of 4" for part in (1, 2, 3, 4))
    assert lines[0] == f"|  | {parts} | gold at the end | KL |"
    half = " | ".join(["0.50 ± 0.00"] * 4)
    assert lines[3] == f"| refreshed, 896 labels in all | {half} | −0.50 ± 0.00 | 8.0 |"
    results = [
        {
            **{"accuracy": 0.5 + n / 20, "loss": 1.0 - n / 20, "pairs": 2**n, "layers": 1 + n % 2},
            **{"gold": n / 10, "gold_objective": n / 10, "objective": -n, "kl": 1.0 + n},
            "untrained": {"gold": -0.1},
        }
        for n in range(6)
    ]
    made = of._of_models({"rows": labels.rows_of(results)})
    first = made["models-correlations"].splitlines()
    assert first[0].startswith("| rank correlation of | with gold reward | with J by gold |")
    assert first[2].startswith("| accuracy | +1.00 (+1.00 … +1.00) |") and "| −1.00 (" in first[2]
    assert "| the best 2 | 0.700 to 0.750 |" in made["models-groups"]


def test_the_page_has_a_place_for_every_table(page, tmp_path):
    """Each is closed, and there is none for a table that no step makes."""
    text = PAGE.read_text(encoding="utf-8")
    names = [line[12:-4] for line in text.splitlines() if line.startswith("<!-- table: ")]
    ends = [line[19:-4] for line in text.splitlines() if line.startswith("<!-- end of table: ")]
    assert names == ends
    assert set(names) == set(sys.modules["page_tables"].TABLES)
    assert "make reward-models" in text


@pytest.mark.slow
def test_a_tiny_audit_is_made_once_and_becomes_a_table(page, tmp_path, capfd):
    arguments = [str(tmp_path), "--quick", "--only", "audit", "--workers", "1"]
    assert page.main(arguments) == 0, (tmp_path / "logs" / "audit.txt").read_text()
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "<!-- table: audit -->" in tables and "| shift by all letters in upper case |" in tables
    assert json.loads((tmp_path / "steps" / "audit.json").read_text())["commands"][0][0] == "python"
    assert page.main(arguments) == 0 and "audit: whole" in capfd.readouterr().out
