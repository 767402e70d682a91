"""`tokenrlhf sample-pairs`: what is drawn, who labels it, and that nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.chat import save_chat_model
from support.models import save_language_model, small_model, word_tokenizer

from agents.cli import main
from agents.labelling import command
from agents.labelling.by_person import ask_for_labels
from agents.labelling.by_reward import bradley_terry_label
from agents.labelling.drawing import draw_pairs
from agents.labelling.pair_file import PairFile, PairRow
from tokenenv.data import read_pairs
from tokenenv.models import LanguageModel

PROMPTS = [f"w{4 + i} w{5 + i}" for i in range(12)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, prompts and a labeller, in which commands are called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    save_language_model(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "labeller_of_pairs.py").write_text(
        "def longer(prompts, responses):\n    return [float(len(r.split())) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def sample(*more: str, out: str = "pairs.jsonl") -> int:
    arguments = ["sample-pairs", "--model", "model", "--prompts", "prompts.txt", "--out", out]
    return status([*arguments, "--max-new-tokens", "4", "--device", "cpu", *more])


def status(arguments: list[str]) -> int:
    """The exit status of a command; the argument parser refuses by an exception."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return int(str(stopped.code))


def rows(name: str = "pairs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


# Drawing ------------------------------------------------------------------------------------------


def language_model() -> LanguageModel:
    return LanguageModel("small", small_model("llama"), word_tokenizer(), (2,))


def test_pairs_are_distinct_and_depend_on_the_seed_alone():
    of, prompts = language_model(), [np.array([1, 4]), np.array([1, 5, 6])]
    drawn = [draw_pairs(of, prompts, 20, 2, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [pair.prompt for pair in drawn[0]] == [0] * 20 + [1] * 20
    assert not any(pair.is_identical for pair in drawn[0])
    assert len({pair.response_a for pair in drawn[0]}) > 10


def test_a_model_that_always_says_the_same_gives_identical_pairs():
    of = language_model()
    drawn = draw_pairs(of, [np.array([1, 4])], 3, 3, temperature=1e-6, seed=0)
    assert all(pair.is_identical for pair in drawn) and len(drawn) == 3


def test_redrawn_responses_are_those_of_the_model_among_other_texts():
    """One token of the four likeliest: b given a has π(b) / (1 − π(a)), but for the last try."""
    import torch

    of = language_model()
    with torch.no_grad():
        of.model.get_output_embeddings().weight.zero_()
    # Uniform over 40 tokens, 4 of which decode to nothing: all of those are one text.
    drawn = draw_pairs(of, [np.array([1, 4])], 3000, 1, seed=0)
    empty_b = np.mean([pair.response_b == "" for pair in drawn if pair.response_a != ""])
    standard_error = math.sqrt(4 / 39 * 35 / 39 / 2700)
    assert abs(empty_b - 4 / 39) < 4 * standard_error


def test_pairs_without_labels_are_written_for_people_and_refused_until_then(here, capsys):
    assert sample("-n", "2") == 0
    assert "22 open" in capsys.readouterr().out  # of twelve prompts the tenth is held out
    assert len(rows()) == 22
    first = rows()[0]
    assert first["label"] is None and first["prompt"] == PROMPTS[0] and first["id"] == "0-0"
    assert first["drawn"]["model"] == "model" and first["finish_a"] in ("stop", "length")
    arguments = ["reward-model", "--pairs", "pairs.jsonl", "--base", "model", "--out", "rm"]
    assert main([*arguments, "--device", "cpu"]) == 2
    refused = " ".join(capsys.readouterr().err.split())
    assert "nobody has said yet" in refused and "sample-pairs" in refused
    assert "--skip-bad" in refused


def test_a_file_that_was_cut_short_is_completed_to_what_it_would_have_been(here, monkeypatch):
    monkeypatch.setattr(command, "CHUNK", 4)
    assert sample("-n", "2", out="whole.jsonl") == 0
    lines = Path("whole.jsonl").read_text().splitlines()
    for kept in (2, 4, 7):
        Path("pairs.jsonl").write_text("".join(f"{line}\n" for line in lines[:kept]))
        assert sample("-n", "2") == 0
        assert Path("pairs.jsonl").read_text() == Path("whole.jsonl").read_text()


def test_a_file_of_other_settings_or_another_kind_is_not_gone_on_with(here, capsys):
    assert sample() == 0
    before = Path("pairs.jsonl").read_text()
    for more, named in (
        (["--seed", "1"], "drawn otherwise"),
        (["-n", "2"], "another number for each"),
        (["--max-prompts", "3"], "more than were asked for"),
    ):
        assert sample(*more) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert named in said and "--overwrite" in said
        assert Path("pairs.jsonl").read_text() == before
    assert sample("--seed", "1", "--overwrite") == 0 and Path("pairs.jsonl").read_text() != before
    Path("foreign.jsonl").write_text('{"prompt": "w4", "chosen": "w5", "rejected": "w6"}\n')
    assert sample(out="foreign.jsonl") == 2
    assert "line 1" in capsys.readouterr().err
    assert sample(out="no/pairs.jsonl") == 2 and "no folder" in capsys.readouterr().err


def test_two_sources_of_labels_are_refused(here, capsys):
    assert sample("--ask", "--reward", "labeller_of_pairs:longer") == 2
    assert "two sources of labels" in " ".join(capsys.readouterr().err.split())
    assert sample("--label-noise", "1") == 2 and "label_noise" in capsys.readouterr().err
    assert sample("--labels", "nowhere.csv") == 2 and "nowhere.csv" in capsys.readouterr().err
    assert not Path("pairs.jsonl").exists()


def test_one_process_at_a_time_writes_a_file(here, capsys):
    with PairFile.locked("pairs.jsonl"):
        assert sample() == 2
    assert "another process" in " ".join(capsys.readouterr().err.split())
    assert sample() == 0 and not Path(".pairs.jsonl.lock").exists()


# Labels by a reward -------------------------------------------------------------------------------


def test_the_higher_reward_wins_and_equal_ones_are_ties_that_reward_model_reads(here, capsys):
    assert sample("--reward", "labeller_of_pairs:longer", "-n", "4") == 0
    for row in rows():
        lengths = [len(row[name].split()) for name in ("response_a", "response_b")]
        assert lengths == [row["reward_a"], row["reward_b"]]
        expected = "tie" if lengths[0] == lengths[1] else "ab"[lengths[1] > lengths[0]]
        assert row["label"] == expected and row["labelled_by"] == "reward"
    assert {row["label"] for row in rows()} == {"a", "b", "tie"}
    pairs = read_pairs("pairs.jsonl")
    assert len(pairs) == len(rows())
    assert {pair.preference for pair in pairs} == {0.5, 1.0}
    assert all(len(p.chosen.split()) >= len(p.rejected.split()) for p in pairs)
    assert "mean reward" in capsys.readouterr().out


def test_responses_that_ran_out_of_room_are_so_for_reward_model(here):
    assert sample("--reward", "labeller_of_pairs:longer", "-n", "4") == 0
    read = read_pairs("pairs.jsonl")
    assert {(pair.chosen_stopped, pair.rejected_stopped) for pair in read} >= {(False, True)}
    for row, pair in zip(rows(), read, strict=True):
        stopped = [row[name] == "stop" for name in ("finish_a", "finish_b")]
        if row["label"] == "b":
            stopped.reverse()
        assert [pair.chosen_stopped, pair.rejected_stopped] == stopped


def test_what_is_labelled_now_is_what_would_have_been_labelled_at_once(here):
    noisy = ["--reward", "labeller_of_pairs:longer", "--label-noise", "2"]
    assert sample(*noisy, out="once.jsonl") == 0
    assert sample() == 0 and rows()[0]["label"] is None
    assert sample(*noisy) == 0
    assert Path("pairs.jsonl").read_text() == Path("once.jsonl").read_text()


def test_noisy_labels_have_the_probability_of_bradley_and_terry():
    rng = np.random.default_rng(0)
    labels = [bradley_terry_label(1.0, 0.5, 0.25, rng) for _ in range(4000)]
    probability = 1 / (1 + math.exp(-2))
    error = math.sqrt(probability * (1 - probability) / 4000)
    assert abs(labels.count("a") / 4000 - probability) < 4 * error
    assert bradley_terry_label(0.5, 0.5, 1.0, rng) == "tie"
    assert bradley_terry_label(0.5, 0.6, 0.0, rng) == "b"
    assert bradley_terry_label(1e300, -1e300, 1e-300, rng) == "a"


def test_conversations_and_their_columns_reach_the_reward(here, capsys):
    save_chat_model(here / "chat")
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:5]]
    lines = [{"prompt": prompt, "answer": f"w{4 + i}"} for i, prompt in enumerate(asked)]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("right.py").write_text(
        "def right(prompts, responses, answer):\n"
        "    return [float(a in r.split()) for a, r in zip(answer, responses)]\n"
    )
    arguments = ["sample-pairs", "--model", "chat", "--prompts", "asked.jsonl", "-n", "8"]
    arguments += ["--max-new-tokens", "12", "--device", "cpu", "--out", "pairs.jsonl"]
    assert status(arguments) == 0 and rows()[0]["prompt"] == asked[0]
    assert status([*arguments, "--reward", "right.py:right"]) == 0
    assert {row["label"] for row in rows()} >= {"tie", "a"}
    for row in rows():
        answer = lines[int(row["id"].split("-")[0])]["answer"]
        assert row.get("reward_a", 0.0) == float(answer in row["response_a"].split())
    assert read_pairs("pairs.jsonl")[0].prompt == tuple(asked[0])
    with Path("filled.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response_a", "response_b", "label"])
        first = rows()[0]
        cell = json.dumps(first["prompt"])
        table.writerow([cell, first["response_a"], first["response_b"], "b"])
    assert status([*arguments, "--labels", "filled.csv"]) == 0
    assert (rows()[0]["label"], rows()[0]["labelled_by"]) == ("b", "file")


def test_a_reward_that_fails_leaves_the_pairs(here, capsys):
    Path("failing_labeller.py").write_text("def f(prompts, responses):\n    raise KeyError('x')\n")
    assert sample("--reward", "failing_labeller:f") == 2
    assert "failing_labeller" in capsys.readouterr().err
    assert len(rows()) > 0 and all(row["label"] is None for row in rows())


def test_identical_pairs_are_ties_that_nobody_is_asked_about(here, capsys):
    assert sample("--temperature", "1e-6") == 0
    assert {row["labelled_by"] for row in rows()} == {"identical"}
    assert "have the same text twice" in " ".join(capsys.readouterr().out.split())


# Labels from a file -------------------------------------------------------------------------------


def filled_in(name: str, labels: list[str], turned: bool = False) -> None:
    """The pairs as a table in which labels are filled in."""
    with Path(name).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response_a", "response_b", "label", "who"])
        for row, label in zip(rows(), labels, strict=False):
            texts = [row["response_a"], row["response_b"]]
            table.writerow([row["prompt"], *(reversed(texts) if turned else texts), label, "me"])


@pytest.mark.parametrize("turned", [False, True])
def test_labels_are_taken_from_a_table_that_people_filled_in(here, turned, capsys):
    assert sample() == 0
    filled_in("filled.csv", ["A", "b", "Tie", ""], turned)
    assert sample("--labels", "filled.csv") == 0
    expected = ["b", "a", "tie"] if turned else ["a", "b", "tie"]
    assert [row["label"] for row in rows()[:4]] == [*expected, None]
    assert rows()[0]["labelled_by"] == "file"
    assert "1 rows of it have no label yet" in " ".join(capsys.readouterr().out.split())


def test_labels_that_cannot_be_right_are_refused(here, capsys):
    assert sample() == 0
    before = Path("pairs.jsonl").read_text()
    for labels, named in ((["good"], "row"), (["3"], "row")):
        filled_in("filled.csv", labels)
        assert sample("--labels", "filled.csv") == 2
        assert "'a', 'b' or 'tie'" in " ".join(capsys.readouterr().err.split()), named
    filled_in("filled.csv", ["a"])
    text = Path("filled.csv").read_text()
    line = text.splitlines()[1]
    Path("filled.csv").write_text(text + line.replace(",a,me", ",b,me") + "\n")
    assert sample("--labels", "filled.csv") == 2
    assert "says otherwise" in " ".join(capsys.readouterr().err.split())
    Path("filled.csv").write_text("prompt,response_a,response_b,label\nw4,w5,w6,a\n")
    assert sample("--labels", "filled.csv") == 2
    assert "none of its 1 rows" in " ".join(capsys.readouterr().err.split())
    Path("filled.csv").write_text("response_a,response_b,label\nw5,w6,a\n")
    assert sample("--labels", "filled.csv") == 2
    assert "'prompt'" in capsys.readouterr().err
    assert Path("pairs.jsonl").read_text() == before


# Labels from a person -----------------------------------------------------------------------------


def pair_file(tmp_path: Path, count: int = 4) -> PairFile:
    file = PairFile(tmp_path / "pairs.jsonl")
    file.append(
        [PairRow(f"{i}-0", f"w{i}", f"one {i}", f"two {i}", "stop", "length") for i in range(count)]
    )
    return file


def ask(file: PairFile, typed: str, seed: int = 0) -> str:
    said = io.StringIO()
    console = Console(file=said, width=200, emoji=False)
    ask_for_labels(file, iter(typed.split()), console, seed)
    return said.getvalue()


def shown_first(said: str) -> list[str]:
    """The responses that were shown as A."""
    lines = said.splitlines()
    return [lines[i + 1].strip("│ ") for i, line in enumerate(lines) if line.startswith("╭─ A")]


def test_answers_are_about_what_was_shown_and_in_the_file_at_once(tmp_path):
    file = pair_file(tmp_path, 40)
    said = ask(file, "a b t s q")
    first = shown_first(said)
    again = PairFile(file.path)
    for index, (row, answer) in enumerate(zip(again.rows, "abts", strict=False)):
        is_turned = first[index].startswith("two")
        expected = {"a": "ba"[not is_turned], "b": "ab"[not is_turned], "t": "tie", "s": None}
        assert row.label == expected[answer]
    assert again.rows[3].skipped and not again.rows[3].is_open and again.rows[4].is_open
    assert again.counts()["open"] == 36 and again.counts()["skipped"] == 1
    everything = shown_first(ask(file, "t " * 36))
    assert 8 < sum(text.startswith("two") for text in everything) < 28
    assert not ask(file, "a").strip()  # nothing is left


def test_a_second_call_goes_on_and_undo_takes_back(tmp_path):
    file = pair_file(tmp_path)
    ask(file, "t q")
    said = ask(PairFile(file.path), "t u t what t")
    assert "1 of 3" in said and "is no answer" in said
    assert said.count("w1") == 2  # asked again
    again = PairFile(file.path)
    assert [row.label for row in again.rows] == ["tie", "tie", "tie", None]
    assert "nothing to undo" in ask(again, "u q")
    ask(again, "s")
    assert again.counts()["skipped"] == 1


def test_undo_takes_back_a_skip_too(tmp_path):
    file = pair_file(tmp_path, 2)
    ask(file, "s u t q")
    assert [(row.label, row.skipped) for row in file.rows] == [("tie", False), (None, False)]


def test_the_command_asks_and_keeps_what_was_answered(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("t\nt\n\x1b[31m\nq\n"))
    assert sample("--ask") == 0
    assert [row["label"] for row in rows()[:3]] == ["tie", "tie", None]
    said = capsys.readouterr().out
    assert "\x1b[31m" not in said and "2 tie" in said
    monkeypatch.setattr(sys, "stdin", io.StringIO("s\n" * 20))
    assert sample("--ask") == 0
    assert "--skip-bad" in capsys.readouterr().out
    assert sum(row["label"] is None for row in rows()) == len(rows()) - 2


# Rows ---------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(tmp_path):
    messages = ({"role": "user", "content": "w4 ü\n"},)
    rewards = {"reward_a": 0.5, "reward_b": -1.0}
    row = PairRow("0-0", messages, "a\u2028", "", "stop", "length", "tie", "reward", **rewards)
    file = PairFile(tmp_path / "pairs.jsonl")
    file.append([row])
    file.append([row.labelled(None, None, skipped=True)])
    assert PairFile(file.path).rows == file.rows


def test_rows_end_at_newlines_alone(tmp_path):
    """Other tools write U+2028 and U+0085 as they are, and Windows ends lines by two characters."""
    path = tmp_path / "pairs.jsonl"
    row = PairRow("0-0", "w4\u2028", "a\u0085b", "\x1c", "stop", "length", "a")
    line = json.dumps(json.loads(row.as_json()), ensure_ascii=False)
    assert "\u2028" in line and "\u0085" in line
    path.write_bytes(f"{line}\r\n\n{line}".encode())
    assert PairFile(path).rows == [row, row]


def test_rows_are_read_when_no_other_process_can_add_any(tmp_path, monkeypatch):
    file = pair_file(tmp_path, 1)

    def flock(*_):
        """Take the lock as soon as whoever had it has written its last row."""
        file.append([PairRow("1-0", "w5", "one", "two", "stop", "stop")])

    monkeypatch.setattr("agents.labelling.pair_file.fcntl.flock", flock)
    with PairFile.locked(file.path) as locked:
        assert len(locked.rows) == 2
        locked.append([PairRow("2-0", "w6", "one", "two", "stop", "stop")])
    assert [row.id for row in PairFile(file.path).rows] == ["0-0", "1-0", "2-0"]
    with pytest.raises(ValueError, match="is a folder"), PairFile.locked(tmp_path):
        pass
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


@pytest.mark.parametrize(
    "line",
    ["[]", "1", "{", '{"id": 1}', '{"id": "0", "response_a": "x", "response_b": "y"}', "[" * 9999],
)
def test_lines_of_another_kind_are_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        PairFile(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("prompt", [None]), ("prompt", [{"role": 1}]), ("prompt", []), ("skipped", "no")),
        *(("reward_a", "1"), ("reward_b", True), ("labelled_by", 3), ("drawn", [1])),
    ],
)
def test_a_row_that_holds_another_kind_of_value_is_named(tmp_path, name, value):
    """A prompt of no messages was a TypeError when the file was written again."""
    row = {"id": "0", "prompt": "p", "response_a": "x", "response_b": "y", "label": None}
    row |= {"finish_a": "stop", "finish_b": "stop"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps({**row, name: value})}\n")
    with pytest.raises(ValueError, match=f"line 2: .*{name}"):
        PairFile(path)


@pytest.mark.parametrize("text", ['"\\ud800"', '"p", "prompt": "q"', "NaN"])
def test_a_row_is_json_of_whole_texts_with_each_key_once(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": {text}, "id": "0", "response_a": "x", "response_b": "y"}}\n')
    with pytest.raises(ValueError, match="line 1: the row"):
        PairFile(path)
