"""Examples for supervised training: documents, prompts with a response, conversations."""

from __future__ import annotations

import csv
import json

import pytest

from tokenenv.data import Example, ReadReport, read_examples

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SHAREGPT = {"from": "gpt", "value": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def write(file, *rows):
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"text": "A story."}, Example("", "A story.")),
        ({"prompt": "p", "response": "r"}, Example("p", "r")),
        ({"prompt": "p", "completion": ""}, Example("p", "")),
        ({"prompt": "", "answer": "a"}, Example("", "a")),
        ({"prompt": "p", "output": "o", "id": 3}, Example("p", "o")),
        ({"messages": [USER, ASSISTANT]}, Example((USER,), "Hello")),
        (
            {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]},
            Example((SYSTEM, USER), (ASSISTANT, USER, ASSISTANT)),
        ),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Example((USER,), "Hello")),
        ({"prompt": "Hi", "completion": [ASSISTANT]}, Example((USER,), "Hello")),
        ({"prompt": "Hi", "completion": [USER, ASSISTANT]}, Example((USER,), "Hello")),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            Example((USER,), "Hello"),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    ASSISTANT,
                ]
            },
            Example((USER,), "Hello"),
        ),
    ],
)
def test_every_layout_of_examples(row, example, tmp_path):
    assert list(read_examples(write(tmp_path / "e.jsonl", row, row))) == [example] * 2


def test_other_names_by_columns_and_what_is_unused_is_said(tmp_path):
    file = write(tmp_path / "e.jsonl", {"q": "p", "good": "r", "answer": "x", "id": 1})
    report = ReadReport()
    found = list(read_examples(file, {"prompt": "q", "response": "good"}, report=report))
    assert found == [Example("p", "r")]
    assert (report.layout, report.unused) == ("prompt and response", ["answer", "id"])


def test_messages_in_a_cell_of_csv_are_json(tmp_path):
    file = tmp_path / "e.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["messages"], [json.dumps([USER, ASSISTANT])]])
    assert list(read_examples(file)) == [Example((USER,), "Hello")]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["messages"], [[USER, ASSISTANT]]])  # as Python prints it
    with pytest.raises(ValueError, match="line 2: the field 'messages' looks like a list as Py"):
        list(read_examples(file))


STORIES = "One.\n\nStill one.\n<|end|>Two.<|end|>\r\n\r\nThree.\nAnd more.\n<|end|>\n"


@pytest.mark.parametrize(
    ("documents", "texts"),
    [
        ("<|end|>", ["One.\n\nStill one.", "Two.", "Three.\nAnd more."]),
        ("paragraphs", ["One.", "Still one.\n<|end|>Two.<|end|>", "Three.\nAnd more.\n<|end|>"]),
        ("whole", [STORIES.replace("\r", "").strip("\n")]),
    ],
)
def test_documents_of_plain_text(documents, texts, tmp_path):
    file = tmp_path / "stories.txt"
    file.write_bytes(STORIES.encode())
    found = list(read_examples(file, documents=documents))
    assert found == [Example("", text) for text in texts]
    with pytest.raises(ValueError, match=r"line 8: the line is a marker.*documents='<\|end\|>'"):
        list(read_examples(file))
    file.write_text("One.\n\nTwo.\n")
    assert list(read_examples(file)) == [Example("", "One."), Example("", "Two.")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "p"},
            "no column 'text'; its columns are 'question'. Examples are plain text",
        ),
        ({"promt": "p", "response": "r"}, r"Did you mean 'promt' \(--columns prompt=promt\)"),
        ({"prompt": "p"}, "no column 'response'; its columns are 'prompt'"),
        ({"prompt": "p", "answer": "a", "output": "o"}, "several columns that may be the"),
        ({"prompt": "p", "response": None}, "line 1: the field 'response' is null"),
        (
            {"prompt": 1, "response": "r"},
            "line 1: the field 'prompt' is a int, it must be a string",
        ),
        ({"text": " "}, "line 1: the field 'text' is empty"),
        ({"messages": "x"}, "line 1: the field 'messages' is 'x', it must be a list"),
        ({"messages": []}, "line 1: the field 'messages' is a list without a message"),
        ({"messages": ["x"]}, "line 1: message 1 of 'messages' is 'x', it must be an object"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages' has the content None"),
        ({"messages": [{"content": "x"}]}, "message 1 of 'messages' has the role None"),
        ({"messages": [USER]}, "'messages' has no turn of the assistant"),
        ({"messages": [ASSISTANT, USER]}, "'messages' begins with an assistant turn"),
        ({"messages": [USER, ASSISTANT, USER]}, "'messages' ends with a 'user' turn"),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"x": 1}]}]},
            "message 2 of 'messages' calls tools",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
            "has a part of the kind 'image': only text is read",
        ),
        ({"prompt": [USER], "response": [USER, USER]}, "'response' goes on with a 'user' turn"),
        ({"prompt": [USER, ASSISTANT], "response": "x"}, "the prompt ends with an assistant turn"),
    ],
)
def test_malformed_examples_are_named(row, message, tmp_path):
    file = write(tmp_path / "e.jsonl", row)
    with pytest.raises(ValueError, match=message) as refused:
        list(read_examples(file))
    assert str(file) in str(refused.value)


def test_bad_rows_are_skipped_where_asked_for_and_counted(tmp_path):
    file = write(tmp_path / "e.jsonl", {"text": "a"}, {"text": 1}, {"text": "b"}, {"x": 1})
    with pytest.raises(ValueError, match=r"2 of 4 rows can't be used: .*\(2 rows|line 2"):
        list(read_examples(file))
    report = ReadReport()
    found = list(read_examples(file, skip_bad=True, report=report))
    assert [example.response for example in found] == ["a", "b"]
    assert (report.bad.count, report.bad.rows) == (2, 4)
    assert report.notes[0].startswith("Left out: in the file: 2 of 4 rows can't be used")
    with pytest.raises(ValueError, match=r"can't be used.*There is none left"):
        list(read_examples(write(file, {"text": 1}, {"text": 2}), skip_bad=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"documents": ""}, "documents='' must be 'lines'"),
        ({"documents": 3}, "documents=3 must be"),
        ({"skip_bad": 1}, "skip_bad=1 must be true or false"),
        ({"columns": "prompt=q"}, "columns='prompt=q' must say what columns mean"),
        ({"columns": {"promt": "q"}}, r"no column here means 'promt'.*Did you mean 'prompt'\?"),
        ({"columns": {"prompt": 1}}, "both must be names"),
        (
            {"columns": {"prompt": "qq"}},
            "no column 'qq'; its columns are 'q', 'a'. Did you",
        ),
        ({"columns": {"prompt": "q", "response": "q"}}, "'q' stands for two columns"),
    ],
)
def test_wrong_arguments_are_named(settings, message, tmp_path):
    file = write(tmp_path / "e.jsonl", {"q": "p", "a": "r"})
    with pytest.raises(ValueError, match=message):
        list(read_examples(file, **settings))
