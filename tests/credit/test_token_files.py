"""Files of token tables: what was written comes back, and nothing else is read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.token_files import HOSTILE, make_header, make_response, make_responses, make_run

from agents.credit import (
    COLUMNS,
    SCHEMA,
    TOP,
    WHOLE_COLUMNS,
    read_tokens,
    token_files,
    write_tokens,
)


@pytest.fixture
def responses():
    return make_responses(make_header(), {"fresh": 4, "rollout": 2})


@pytest.fixture
def path(tmp_path, responses) -> Path:
    path = tmp_path / "tokens" / "1024.jsonl"
    write_tokens(path, make_header(1024), responses)
    return path


def rewrite(path: Path, line: int, change) -> None:
    """Put `change` of the object in a line of a file in its place."""
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(change(json.loads(lines[line])))
    path.write_text("\n".join(lines) + "\n")


def test_what_was_written_comes_back(path, responses):
    table = read_tokens(path)
    assert table.step == 1024 and table.header["estimator"] == "gae"
    assert table.header["columns"] == {**COLUMNS, **WHOLE_COLUMNS}
    assert [r["kind"] for r in table.responses] == ["fresh"] * 4 + ["rollout"] * 2
    for number, response in enumerate(responses):
        columns = table.columns_of(number)
        expected = {name: response[name] for name in ("index", "prompt", "finish_reason")}
        assert {name: table.responses[number][name] for name in expected} == expected
        assert table.responses[number]["tokens"] == len(columns["token"])
        for name in ("token", "position", "top_tokens"):
            np.testing.assert_array_equal(columns[name], response["columns"][name])
        for name in ("text", "clip", "top_texts"):
            assert columns[name].tolist() == list(response["columns"][name])
        for name in ("reward", "value", "advantage", "ratio", "top_probs"):
            np.testing.assert_allclose(columns[name], response["columns"][name], rtol=5e-9)


def test_arrays_have_a_row_per_token_and_say_whose_it_is(path):
    table = read_tokens(path)
    count = sum(response["tokens"] for response in table.responses)
    assert {name: values.shape[0] for name, values in table.arrays.items()} == dict.fromkeys(
        [*COLUMNS, *WHOLE_COLUMNS, "response"], count
    )
    assert table.arrays["top_probs"].shape == (count, TOP)
    assert np.bincount(table.arrays["response"]).tolist() == [r["tokens"] for r in table.responses]


def test_float32_comes_back_as_it_was(tmp_path, responses):
    value = responses[0]["columns"]["value"].astype(np.float32)
    responses[0]["columns"]["value"] = value
    write_tokens(tmp_path / "1.jsonl", make_header(), responses)
    again = read_tokens(tmp_path / "1.jsonl").columns_of(0)["value"].astype(np.float32)
    np.testing.assert_array_equal(again, value)


def test_what_is_not_finite_is_null_in_the_file_and_nan_in_the_array(tmp_path, responses):
    responses[0]["columns"]["value"] = [math.nan, math.inf, *responses[0]["columns"]["value"][2:]]
    path = tmp_path / "1.jsonl"
    write_tokens(path, make_header(), responses)
    assert json.loads(path.read_text().splitlines()[1])["columns"]["value"][:2] == [None, None]
    assert np.isnan(read_tokens(path).columns_of(0)["value"][:2]).all()


def test_hostile_texts_come_back(tmp_path):
    rng = np.random.default_rng(0)
    response = make_response(rng, make_header(), length=len(HOSTILE), texts=HOSTILE)
    write_tokens(tmp_path / "1.jsonl", make_header(), [response])
    assert read_tokens(tmp_path / "1.jsonl").arrays["text"].tolist() == HOSTILE


def test_few_alternatives_are_filled_up(tmp_path, responses):
    columns = responses[0]["columns"]
    for name in WHOLE_COLUMNS:
        columns[name] = [list(entry)[:2] for entry in columns[name]]
    write_tokens(tmp_path / "1.jsonl", make_header(), responses[:1])
    arrays = read_tokens(tmp_path / "1.jsonl").arrays
    assert (arrays["top_tokens"][:, 2:] == -1).all() and (arrays["top_texts"][:, 2:] == "").all()
    assert np.isnan(arrays["top_probs"][:, 2:]).all()


def test_a_run_gives_its_last_step_or_the_one_that_is_asked_for(tmp_path):
    run = make_run(tmp_path / "run", steps=(1024, 512, 16384), counts={"fresh": 2})
    (run / "tokens" / ".2048.jsonl.7.tmp").write_text("half")
    assert list(token_files(run)) == [512, 1024, 16384]
    assert read_tokens(run).step == 16384 and read_tokens(str(run), 512).step == 512
    with pytest.raises(ValueError, match=r"no token tables of step 3; .* 512, 1024, 16384"):
        read_tokens(run, 3)


def test_no_run_and_no_tokens_are_said_apart(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: config.json is missing"):
        read_tokens(tmp_path)
    with pytest.raises(ValueError, match=r"has no token tables.*--explain-every"):
        read_tokens(make_run(tmp_path / "run", steps=()))
    with pytest.raises(ValueError, match="does not exist: give a run's folder"):
        read_tokens(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leave step out"):
        read_tokens(tmp_path / "run" / "config.json", 4)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1", None])
def test_another_version_is_refused(path, schema):
    rewrite(path, 0, lambda header: {**header, "schema": schema})
    with pytest.raises(ValueError, match=rf"schema {schema!r}, .* reads schema {SCHEMA}"):
        read_tokens(path)


def test_another_version_is_refused_as_such_however_it_ends(path):
    path.write_text('{"schema": 2, "kind": "tokens"}\n{"something": "else"}\n')
    with pytest.raises(ValueError, match="schema 2"):
        read_tokens(path)


@pytest.mark.parametrize("content", ['{"kind": "metrics"}', '{"schema": 1}', "[1]\n[2]", "{}\n{}"])
def test_a_file_of_something_else_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no file of token tables|needs a JSON object"):
        read_tokens(path)


def test_a_file_that_was_cut_anywhere_is_incomplete(path):
    whole = path.read_bytes()
    for size in [0, 1, 40, *range(100, len(whole) - 2, len(whole) // 40)]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"is incomplete: .* copy it again"):
            read_tokens(path)


def test_a_file_without_one_of_its_lines_is_refused(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="the last line says responses=6, and there are 5"):
        read_tokens(path)
    path.write_text("\n".join([lines[0], lines[-1].replace("6", "0", 1)]))
    with pytest.raises(ValueError, match=r"the last line says|no response"):
        read_tokens(path)


def test_broken_json_in_the_middle_is_named_by_its_line(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(ValueError, match=r"1024.jsonl, line 2: not valid JSON"):
        read_tokens(path)


def longer(response: dict, name: str) -> dict:
    response["columns"][name] = [*response["columns"][name], 0.0]
    return response


@pytest.mark.parametrize("name", ["value", "ratio", "token"])
def test_columns_of_unequal_length_are_refused_by_reader_and_writer(path, responses, name):
    with pytest.raises(ValueError, match=r"response 1: the column .* entries and 'token' has"):
        write_tokens(path, make_header(), [responses[0], longer(responses[1], name)])
    assert read_tokens(path).step == 1024  # the file is as it was
    rewrite(path, 2, lambda response: longer(response, name))
    with pytest.raises(ValueError, match=r"line 3: the column .* entries and 'token' has"):
        read_tokens(path)


COLUMN_FAULTS = {
    "value": ("much", "not a finite number or null"),
    "token": (1.5, "not a whole number"),
    "text": (None, "not a text"),
    "clip": ("middle", "not 'high', 'low', '' or null"),
    "position": (9, "must count up by 1"),
    "top_tokens": (7, "must be a list of at most 5"),
    "top_texts": ([1], "not a text"),
    "top_probs": ([0.1] * 6, "must be a list of at most 5"),
}


@pytest.mark.parametrize("name", COLUMN_FAULTS)
def test_an_entry_that_its_column_cannot_hold_is_refused(path, name):
    entry, message = COLUMN_FAULTS[name]

    def change(response):
        response["columns"][name][1] = entry
        return response

    rewrite(path, 1, change)
    with pytest.raises(ValueError, match=rf"line 2: .*{name}.*{message}"):
        read_tokens(path)


HEADER_FAULTS = {
    "gamma": ("1", "must be a finite number"),
    "estimator": ("magic", "must be one of 'gae'"),
    "whitening": ({"mean": 0, "deviation": 0, "of": "these responses"}, "must be null, or"),
    "reward_scale": ({"factor": 1}, "must be an object with the numbers"),
    "has_critic": (1, "must be true or false"),
    "step": (-1, "must be a whole number"),
    "columns": ({"token": "id"}, "'columns' lacks position"),
}


@pytest.mark.parametrize("name", HEADER_FAULTS)
def test_a_header_with_a_wrong_or_missing_field_is_refused(path, responses, name):
    value, message = HEADER_FAULTS[name]
    with pytest.raises(ValueError, match=rf"header: '{name}'.*{message}|{message}"):
        write_tokens(path, make_header(**{name: value}), responses)
    rewrite(path, 0, lambda header: {n: v for n, v in header.items() if n != name})
    with pytest.raises(ValueError, match=rf"line 1: '{name}'"):
        read_tokens(path)


RESPONSE_FAULTS = {
    "kind": "other",
    "score": "1",
    "prompt": 3,
    "finish_reason": "tired",
    "uniform": {"rloo": 1.0},
    "bootstrap_value": "0",
    "columns": [],
}


@pytest.mark.parametrize("name", RESPONSE_FAULTS)
def test_a_response_with_a_wrong_or_missing_field_is_refused(path, responses, name):
    with pytest.raises(ValueError, match=rf"response 0: '{name}' is .* must be"):
        write_tokens(path, make_header(), [{**responses[0], name: RESPONSE_FAULTS[name]}])
    rewrite(path, 1, lambda response: {n: v for n, v in response.items() if n != name})
    with pytest.raises(ValueError, match=rf"line 2: '{name}' is"):
        read_tokens(path)


def test_columns_are_those_of_the_header(path):
    def without(response):
        del response["columns"]["kl"]
        return response

    rewrite(path, 1, without)
    with pytest.raises(ValueError, match="the column 'kl' is missing"):
        read_tokens(path)
    rewrite(path, 1, lambda r: {**r, "columns": {**r["columns"], "kl": [], "mine": []}})
    with pytest.raises(ValueError, match="the column 'mine' is not in the header's list"):
        read_tokens(path)


def test_a_column_that_only_this_file_has_is_read(tmp_path, responses):
    header = make_header(columns={**COLUMNS, **WHOLE_COLUMNS, "mine": "a number", "word": "a text"})
    for response in responses:
        count = len(response["columns"]["token"])
        response["columns"] |= {"mine": [None, *range(count - 1)], "word": ["w"] * count}
    write_tokens(tmp_path / "1.jsonl", header, responses)
    arrays = read_tokens(tmp_path / "1.jsonl").arrays
    assert np.isnan(arrays["mine"][0]) and arrays["mine"][2] == 1.0 and arrays["word"][0] == "w"


def test_half_of_a_surrogate_pair_is_refused_by_the_writer(path, responses):
    responses[0]["columns"]["text"] = ["\ud800"] * len(responses[0]["columns"]["text"])
    with pytest.raises(ValueError, match="the column 'text' holds"):
        write_tokens(path, make_header(), responses)


def test_nothing_is_left_behind_where_writing_fails(tmp_path, responses):
    with pytest.raises(ValueError, match="at least one response"):
        write_tokens(tmp_path / "1.jsonl", make_header(), [])
    assert list(tmp_path.iterdir()) == []


def test_a_data_frame_has_the_columns(path):
    pandas = pytest.importorskip("pandas")
    table = read_tokens(path)
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(table.arrays["token"])
    assert {"kind", "index", "score", "response", *COLUMNS, *WHOLE_COLUMNS} == set(frame.columns)
    assert frame["value"].tolist() == table.arrays["value"].tolist()


def test_without_pandas_the_error_says_what_to_use(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"pip install pandas, or use `arrays`"):
        read_tokens(path).to_pandas()


def test_the_door_of_the_room_needs_no_torch():
    code = "import sys, agents.credit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
