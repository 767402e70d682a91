"""`tokenrlhf reward-model` on pairs as people have them: columns, ties, bad rows, long pairs."""

from __future__ import annotations

import json

import pytest

from agents.cli import main

H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.fixture
def train(tmp_path, monkeypatch, capsys, reference_folder):
    """Runs the command on rows; gives status, output and report."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run(rows, *arguments):
        file, out = tmp_path / "pairs.jsonl", tmp_path / "rm"
        file.write_text("\n".join(json.dumps(row) for row in rows))
        command = ["reward-model", "--pairs", str(file), "--base", reference_folder]
        command += ["--out", str(out), "--device", "cpu", "--epochs", "1", "--overwrite"]
        capsys.readouterr()
        status = main([*command, *arguments])
        captured = capsys.readouterr()
        report = out / "report.json"
        content = json.loads(report.read_text()) if status == 0 else {}
        return status, captured.out + captured.err, content

    return run


def labelled(n):
    labels = ("a", "b", "tie")
    return [
        {"q": f"w{4 + i % 6}", "x": f"w{10 + i}", "y": f"w{20 + i}", "who": labels[i % 3], "id": i}
        for i in range(n)
    ]


def test_columns_ties_and_bad_rows(train):
    rows = labelled(18)
    rows[4]["who"] = None
    columns = ["--columns", "prompt=q", "response_a=x", "response_b=y", "winner=who"]
    status, said, _ = train(rows, *columns)
    assert status == 2 and "line 5: 'winner' is empty" in said and "--skip-bad" in said
    status, said, report = train(rows, *columns, "--skip-bad")
    assert status == 0 and "17 pairs of" in said
    assert "note: Left out: in the file, line 5: 'winner' is empty" in said
    data = report["data"]
    assert (data["rows"], data["bad_rows"]) == (18, 1)
    assert data["layout"] == "response_a, response_b and winner"
    assert report["soft_label_agreement"] in (None, 0.5)
    status, said, _ = train(rows)
    assert status == 2 and "no column 'chosen'; its columns are 'q', 'x', 'y', 'who', 'id'" in said


def test_dialogues_without_prompts_that_are_too_long(train):
    rows = [
        {"chosen": f"{H} w{i}{A} w9 w10 w11", "rejected": f"{H} w{i}{A} w8"} for i in range(4, 12)
    ]
    status, said, report = train(rows, "--max-tokens", "6")
    assert status == 0
    assert "note: 8 of 8 pairs have a side of more than 6 tokens" in said
    assert report["data"]["truncation"]["prompts_cut"] == 8
    assert report["data"]["layout"] == "chosen and rejected, prompt implicit"
    status, said, _ = train(rows, "--max-tokens", "6", "--truncation", "error")
    assert status == 2 and "--truncation keep-end" in said
    status, said, _ = train(rows, "--max-tokens", "6", "--truncation", "drop")
    assert status == 2 and "all 8 pairs are longer than 6 tokens" in said


def test_pairs_without_prompts_and_ratings(train):
    rows = [{"prompt": "", "responses": ["w4", f"w{i}"], "ratings": [1, 2]} for i in range(5, 15)]
    status, said, report = train(rows, "--ratings", "best-worst")
    assert status == 0 and "held out pair by pair" in said
    assert report["held_out_by"] == "pair"
    assert report["data"]["layout"] == "prompt, responses and ratings, best against worst"


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["--columns", "question"], "columns='question'"),
        (["--columns", "prompt=a", "prompt=b"], "'prompt' stands twice"),
        (["--columns", "promt=q"], "Did you mean 'prompt'?"),
        (["--columns", "prompt=qq"], "Did you mean 'q'"),
        (["--truncation", "start"], "truncation"),
        (["--ratings", "some"], "ratings"),
    ],
)
def test_wrong_options_are_named(train, arguments, telling):
    try:
        status, said, _ = train(labelled(6), *arguments)
    except SystemExit as stopped:
        assert stopped.code == 2
        return
    assert status == 2 and telling in said
