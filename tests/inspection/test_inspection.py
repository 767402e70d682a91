"""`tokenrlhf data inspect`: counts by hand, and what is shown on a terminal."""

from __future__ import annotations

import json

import pytest

from agents.cli import main
from agents.inspection.command import inspect_file
from agents.inspection.config import DataConfig
from agents.inspection.measures import wilson_interval


def write(file, rows):
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


PAIRS = [
    pair("p", "long one", "short", split="train"),
    pair("p", "long one", "short", split="train"),  # a duplicate
    pair("p", "short", "long one", split="eval"),  # the label the other way round, in both splits
    pair("q", "same", "same", split="eval"),
    pair("r", "", "x", split="train"),
    pair("r", "a", "bb", preference=0.5, split="train"),  # a tie
    pair("s", "cc", "d", preference=0.25, split="train"),  # the shorter one is preferred
    pair("", "ee", "f", margin=2, split="train"),
    pair("t", None, "x"),
]


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", PAIRS)


def test_pairs_are_counted_by_hand(pairs):
    facts = inspect_file(DataConfig("inspect", pairs))
    counted = {
        "kind": "pairs",
        "format": "JSON Lines",
        "layout": "chosen and rejected, with their prompt",
        "unit": "characters",
        "rows": 9,
        "number": 8,
        "different_prompts": 5,
        "duplicates": 1,
        "identical_pairs": 1,
        "label_conflicts": 1,
        "ties": 1,
        "soft_labels": 1,
        "margins": 1,
        "empty": {"prompt": 1, "chosen": 1, "rejected": 0},
        "splits": {"train": 6, "eval": 2},
        "prompts_in_several_splits": 1,
        "unused_columns": ["split"],
    }
    assert {name: facts[name] for name in counted} == counted
    assert facts["bad_rows"]["count"] == 1
    assert facts["bad_rows"]["reasons"][0]["places"] == ["line 9"]
    # Longer wins twice for "long one", once for "ee"; shorter once each for "short", "" and "d";
    # "same" is of equal length, and the tie has no winner.
    wins = facts["longer_wins"]
    assert (wins["share"], wins["pairs"], wins["equal_length"]) == (0.5, 6, 1)
    # Sorted: 0, 1, 2, 2, 4, 5, 8, 8; the median is the fourth of eight.
    assert facts["lengths"]["chosen"] == {
        **{"mean": 30 / 8, "p5": 0, "p50": 2, "p95": 8, "p99": 8, "max": 8}
    }
    assert facts["lengths"]["prompt and longer response"]["max"] == 9
    assert len(facts["examples"]) == 3


def test_lengths_in_tokens_of_a_model(tmp_path, reference_folder):
    rows = [{"prompt": "w4 w5 w6", "response": "w7"}, {"prompt": "w4", "response": "w5 w6"}]
    file = write(tmp_path / "examples.jsonl", rows)
    facts = inspect_file(DataConfig("inspect", file, tokenizer=reference_folder))
    assert (facts["kind"], facts["unit"]) == ("examples", "tokens")
    assert facts["lengths"]["prompt"]["max"] == 3 and facts["lengths"]["response"]["max"] == 2


def test_responses_with_other_tokens_at_the_seam_are_counted(tmp_path, reference_folder, capsys):
    """What stands together is one word: w4 and 5 are w45."""
    rows = [pair("w4 ", "w5", "w6 w7"), pair("w4", "5", " w5"), pair("", "w4", "w5")]
    file = write(tmp_path / "pairs.jsonl", rows)
    facts = inspect_file(DataConfig("inspect", file, tokenizer=reference_folder))
    assert facts["seams"] == {"differences": 1, "responses": 6}
    assert "seams" not in inspect_file(DataConfig("inspect", file)), "characters have no seam"
    assert main(["data", "inspect", str(file), "--tokenizer", reference_folder]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "other tokens at the seam 1 of 6" in said
    assert "note: some responses have other tokens when they are tokenised together" in said
    examples = [{"prompt": "w4", "response": "5"}, {"prompt": "w4 ", "response": "w5"}]
    file = write(tmp_path / "examples.jsonl", examples)
    facts = inspect_file(DataConfig("inspect", file, tokenizer=reference_folder))
    assert facts["seams"] == {"differences": 1, "responses": 2}
    talk = {"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5"}
    file = write(tmp_path / "talks.jsonl", [{"messages": talk}])
    facts = inspect_file(DataConfig("inspect", file, tokenizer=reference_folder))
    assert facts["seams"]["responses"] == 0, "there is no chat template"


def test_the_interval_of_a_share():
    """Wilson's for 0 of 10 and 5 of 10, as in Brown, Cai & DasGupta 2001, figure 5 and text."""
    low, high = wilson_interval(0, 10)
    assert low == 0.0 and high == pytest.approx(0.2775, abs=1e-4)
    low, high = wilson_interval(5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_prompts_and_the_splits_that_training_makes(tmp_path):
    """Every tenth of 20 is held out; the tenth is the same as the first."""
    rows = [{"prompt": f"p{i % 9 if i == 9 else i}", "answer": i} for i in range(20)]
    facts = inspect_file(DataConfig("inspect", write(tmp_path / "prompts.jsonl", rows)))
    assert facts["kind"] == "prompts" and facts["splits"] == {"train": 18, "eval": 2}
    assert facts["prompts_in_several_splits"] == 1 and facts["duplicates"] == 1
    assert set(facts["examples"][0]["columns"]) == {"answer"}
    named = write(tmp_path / "named.jsonl", [{"prompt": "a", "split": "eval"}, {"prompt": "a"}])
    facts = inspect_file(DataConfig("inspect", named))
    assert facts["splits"] == {"eval": 1, "train": 1} and facts["prompts_in_several_splits"] == 1


def test_pairs_of_several_rows_are_in_the_split_of_their_rows(tmp_path):
    """One response per row: the pairs come when the last row, of `eval`, has long been read."""

    def rated(prompt, *splits):
        return [
            {"prompt": prompt, "response": f"r{i}", "rating": i, **({"split": s} if s else {})}
            for i, s in enumerate(splits)
        ]

    train = [row for p in "abc" for row in rated(p, "train", "train")]
    file = write(tmp_path / "rated.jsonl", [*train, *rated("d", "eval", "eval")])
    facts = inspect_file(DataConfig("inspect", file))
    assert facts["splits"] == {"train": 3, "eval": 1} and facts["prompts_in_several_splits"] == 0
    both = [*train, *rated("d", "train", "eval"), *rated("e", "eval", None, "eval")]
    facts = inspect_file(DataConfig("inspect", write(tmp_path / "both.jsonl", both)))
    assert facts["splits"] == {"train": 3, "eval and train": 1, "none and eval": 2, "eval": 1}
    assert facts["prompts_in_several_splits"] == 2
    bare = write(tmp_path / "bare.jsonl", rated("a", None, None))
    assert "splits" not in inspect_file(DataConfig("inspect", bare))


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p"}, "prompts"),
        ({"prompt": "p", "answer": "4"}, "prompts"),
        ({"prompt": "p", "completion": "4"}, "examples"),
        ({"prompt": "p", "response": "r", "rating": 2}, "pairs"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}, "pairs"),
        ({"chosen": "a b", "rejected": "a c"}, "pairs"),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "label": "a"}, "pairs"),
        ({"messages": [USER, ASSISTANT]}, "examples"),
        ({"messages": [USER]}, "prompts"),
        ({"text": "A story."}, "examples"),
        ("A line of text", "prompts"),
    ],
)
def test_the_kind_of_a_file_by_its_columns(row, kind, tmp_path):
    file = write(tmp_path / "file", [row, row] if kind != "pairs" else [row])
    if kind == "pairs" and "rating" in row:
        file = write(tmp_path / "file", [row, {**row, "response": "s", "rating": 3}])
    assert inspect_file(DataConfig("inspect", file))["kind"] == kind


def test_the_kind_may_be_said(tmp_path):
    file = write(tmp_path / "stories.txt", ["One.", "<|end|>", "Two.", "<|end|>"])
    facts = inspect_file(DataConfig("inspect", file, kind="examples", documents="<|end|>"))
    assert (facts["number"], facts["empty"]) == (2, {"prompt": 2, "response": 0})


def test_what_is_shown_on_a_terminal(pairs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "inspect", str(pairs)]) == 0
    said = capsys.readouterr().out
    for text in (
        "8 pairs of 9 rows",
        "chosen and rejected, with their prompt",
        "label conflicts",
        "longer wins",
        "50.0% (95 %: 18.8% … 81.2%) of 6 pairs; 1 of equal length",
        "lengths in characters",
        "bad rows: 1 of 9",
        "1 × the field 'chosen' is null, it must be text or a list of messages (line 9)",
        "example 3",
        "note: the same two responses are labelled both ways",
    ):
        assert text in said
    assert main(["data", "inspect", str(pairs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number"] == 8


def test_columns_and_mistakes_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    file = write(tmp_path / "f.jsonl", [{"question": "a", "good": "b", "bad": "c"}])
    columns = ["--columns", "prompt=question", "chosen=good", "rejected=bad"]
    assert main(["data", "inspect", str(file), *columns]) == 0
    assert "1 pairs of 1 rows" in capsys.readouterr().out
    assert main(["data", "inspect", str(file)]) == 2
    assert "no column 'prompt'; its columns are 'question', 'good'" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "no.csv")]) == 2
    assert "is no file" in capsys.readouterr().err
    assert main(["data", "inspect", str(file), *columns, "--tokenizer", "/nowhere"]) == 2
    assert "tokenizer='/nowhere'" in capsys.readouterr().err


def test_controls_in_texts_and_columns_are_shown_and_do_nothing(tmp_path, capsys):
    row = {"prompt": "\x1b[31mred", "chosen": "[bold]a", "rejected": "b", "\x1b[2J": 1}
    assert main(["data", "inspect", str(write(tmp_path / "f.jsonl", [row]))]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[31mred" in said and "[bold]a" in said


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom agents.cli import main\n"
        "try:\n    main(['data', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "{inspect}" in done.stdout
