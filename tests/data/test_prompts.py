"""Prompts of the environment: texts and conversations, their splits and the other columns."""

from __future__ import annotations

import json

import pytest

from tokenenv.data import Prompt, ReadReport, read_prompt_rows, read_prompts

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def write(file, *rows):
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_the_header_of_a_csv_is_no_prompt(tmp_path):
    """It was trained on, as a prompt like any other."""
    file = tmp_path / "prompts.csv"
    file.write_text('prompt\nTell me\n"Two, three"\n')
    assert read_prompts(file, "train") == ["Tell me", "Two, three"]
    file.write_text("prompt;answer\nTwo plus two;4\n")
    assert read_prompt_rows(file, "train") == [Prompt("Two plus two", {"answer": "4"})]
    file.write_text("Tell me\nTwo\n")  # no header
    with pytest.raises(ValueError, match="has no column 'prompt'; its columns are 'Tell me'"):
        read_prompts(file, "train")


def test_columns_of_a_row_come_with_its_prompt(tmp_path):
    rows = [{"question": "2 + 2", "solution": 4, "n": [1]}, {"question": "1 + 1", "solution": 2}]
    file = write(tmp_path / "p.jsonl", *rows)
    assert read_prompt_rows(file, "train", {"prompt": "question", "answer": "solution"}) == [
        Prompt("2 + 2", {"answer": 4, "n": [1]}),
        Prompt("1 + 1", {"answer": 2}),
    ]


def test_conversations_as_prompts(tmp_path):
    report = ReadReport()
    file = write(tmp_path / "p.jsonl", {"prompt": [USER]}, {"prompt": "Hi", "split": "train"})
    assert read_prompt_rows(file, "train") == [Prompt((USER,)), Prompt("Hi")]
    with pytest.raises(ValueError, match="holds conversations: read_prompt_rows gives them"):
        read_prompts(file, "train")
    file = write(tmp_path / "m.jsonl", {"messages": [USER, ASSISTANT]}, {"messages": [USER]})
    assert read_prompt_rows(file, "train", report=report) == [Prompt((USER,))] * 2
    assert report.notes == [
        "conversations with an answer at their end, which is no part of the prompt: 1."
    ]


def test_texts_are_prompts_line_by_line_or_in_an_array(tmp_path):
    (tmp_path / "p.txt").write_text("prompt, please\n\nTwo\r\n")
    assert read_prompts(tmp_path / "p.txt", "train") == ["prompt, please", "Two"]
    (tmp_path / "p.json").write_text('["one", "two"]')
    assert read_prompts(tmp_path / "p.json", "train") == ["one", "two"]


def test_splits_of_a_table(tmp_path):
    rows = [{"prompt": f"p{i}", "split": "eval" if i == 3 else None} for i in range(12)]
    file = write(tmp_path / "p.jsonl", *rows)
    assert read_prompts(file, "eval") == ["p3"] and len(read_prompts(file, "train")) == 11
    file = write(tmp_path / "p.jsonl", *({"prompt": f"p{i}"} for i in range(20)))
    assert read_prompts(file, "eval") == ["p9", "p19"]


def test_splits_of_a_folder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    train, test = ([{"prompt": name, "x": 1}] for name in ("a", "b"))
    made = {
        "train": datasets.Dataset.from_list(train * 12),
        "test": datasets.Dataset.from_list(test),
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "d")
    assert read_prompts(tmp_path / "d", "train") == ["a"] * 12
    assert read_prompt_rows(tmp_path / "d", "eval") == [Prompt("b", {"x": 1})]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"promt": "x"},
            r"no column 'prompt'; its columns are 'promt'. Did you mean 'promt' \(--co",
        ),
        ({"prompt": " "}, "line 1: the prompt is empty"),
        ({"prompt": 4}, "line 1: the field 'prompt' is a int"),
        ({"prompt": None}, "line 1: the field 'prompt' is null"),
        ({"prompt": []}, "line 1: the field 'prompt' is a list without a message"),
        ({"prompt": [USER, ASSISTANT]}, "line 1: the prompt ends with an assistant turn"),
        ({"messages": [ASSISTANT]}, "line 1: 'messages' has no turn that could be answered"),
        ({"messages": "x"}, "line 1: the field 'messages' is 'x', it must be a list"),
        (
            {"prompt": "x", "split": "dev"},
            "line 1: 'split' is 'dev', it must be one of train, eval",
        ),
        ({"prompt": "x", "split": "eval"}, "has no prompt whose 'split' is 'train'"),
    ],
)
def test_malformed_prompts_are_named(row, message, tmp_path):
    file = write(tmp_path / "p.jsonl", row)
    with pytest.raises(ValueError, match=message) as refused:
        read_prompt_rows(file, "train")
    assert str(file) in str(refused.value)


def test_bad_prompts_are_skipped_where_asked_for(tmp_path):
    file = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": 1}, {"text": "b"})
    report = ReadReport()
    assert read_prompt_rows(file, "train", skip_bad=True, report=report) == [Prompt("a")]
    assert report.bad.count == 2
    with pytest.raises(
        ValueError, match=r"2 of 3 rows can't be used: line 2: .*; line 3: the field"
    ):
        read_prompt_rows(file, "train")
