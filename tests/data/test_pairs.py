"""Preference pairs in every layout, by hand; malformed ones by file, line, field and remedy."""

from __future__ import annotations

import csv
import json

import pytest

from tokenenv.data import MOST_MARGIN, PreferencePair, ReadReport, iterate_pairs, read_pairs
from tokenenv.data.implicit_prompts import split_dialogues, split_texts

USER, MORE = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}
GOOD, BAD = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be kind"}


def write(file, *rows):
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


H, A = "\n\nHuman:", "\n\nAssistant:"

LAYOUTS = {
    "explicit": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "id": 1},
        PreferencePair("p", "c", "r"),
    ),
    "empty responses and prompts are data": (
        {"prompt": "", "chosen": "", "rejected": " "},
        PreferencePair("", "", " "),
    ),
    "margin": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2},
        PreferencePair("p", "c", "r", 2.0),
    ),
    "soft label": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "preference": 0.75},
        PreferencePair("p", "c", "r", 0.0, 0.75),
    ),
    "dialogues": (
        {"chosen": f"{H} a{A} b{H} c{A} yes", "rejected": f"{H} a{A} b{H} c{A} yet"},
        PreferencePair(f"{H} a{A} b{H} c{A}", " yes", " yet"),
    ),
    "dialogues, an empty answer": (
        {"chosen": f"{H} a{A} ", "rejected": f"{H} a{A}"},
        PreferencePair(f"{H} a{A}", " ", ""),
    ),
    "dialogues that part early": (
        {"chosen": f"{H} a{A} b{H} c{A} d", "rejected": f"{H} a{A} x"},
        PreferencePair(f"{H} a{A}", f" b{H} c{A} d", " x"),
    ),
    "shared beginning": (
        {"chosen": "The sum is four", "rejected": "The sum is  five"},
        PreferencePair("The sum is", " four", "  five"),
    ),
    "messages, explicit": (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        PreferencePair((USER,), "Hello", "No"),
    ),
    "messages, explicit and repeated": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        PreferencePair((SYSTEM, USER), "Hello", "No"),
    ),
    "messages to a text": (
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PreferencePair((USER,), "Hello", "No"),
    ),
    "messages to a text, with a system turn": (
        {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        PreferencePair((SYSTEM, USER), "Hello", "No"),
    ),
    "texts to messages": (
        {"prompt": [USER], "chosen": "Hello", "rejected": ""},
        PreferencePair((USER,), "Hello", ""),
    ),
    "messages, implicit": (
        {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, GOOD, MORE, BAD]},
        PreferencePair((USER, GOOD, MORE), "Hello", "No"),
    ),
    "messages, implicit, of several turns": (
        {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, BAD]},
        PreferencePair((USER,), (GOOD, MORE, GOOD), "No"),
    ),
    "messages, implicit, of equal answers": (
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
        PreferencePair((USER,), "Hello", "Hello"),
    ),
    "a is better": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A"},
        PreferencePair("p", "x", "y"),
    ),
    "b is better": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "winner": " b "},
        PreferencePair("p", "y", "x"),
    ),
    "index of the better one": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "winner": 1},
        PreferencePair("p", "y", "x"),
    ),
    "index of the better one, the first": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "0"},
        PreferencePair("p", "x", "y"),
    ),
    "tie": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie"},
        PreferencePair("p", "x", "y", 0.0, 0.5),
    ),
    "both": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "preference": "both"},
        PreferencePair("p", "x", "y", 0.0, 0.5),
    ),
    "probability": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "preference": 0.25},
        PreferencePair("p", "y", "x", 0.0, 0.75),
    ),
    "probability of 1": (
        {"prompt": "p", "response_a": "x", "response_b": "y", "preference": 1, "margin": 3},
        PreferencePair("p", "x", "y", 3.0),
    ),
    "labelled, prompt implicit": (
        {"response_a": f"{H} a{A} x", "response_b": f"{H} a{A} y", "label": "b"},
        PreferencePair(f"{H} a{A}", " y", " x"),
    ),
    "ratings of two": (
        {"prompt": "p", "responses": ["x", "y"], "ratings": [1, 2.5]},
        PreferencePair("p", "y", "x"),
    ),
    "scores of completions in a conversation": (
        {"prompt": [USER], "completions": [[GOOD], [BAD]], "scores": [3, 2]},
        PreferencePair((USER,), "Hello", "No"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_pairs(layout, tmp_path):
    row, pair = LAYOUTS[layout]
    assert read_pairs(write(tmp_path / "pairs.jsonl", row, row)) == [pair, pair]


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("explicit", "chosen and rejected, with their prompt"),
        ("dialogues", "chosen and rejected, prompt implicit"),
        ("tie", "response_a, response_b and label"),
        ("labelled, prompt implicit", "response_a, response_b and label, prompt implicit"),
        ("ratings of two", "prompt, responses and ratings, all pairs"),
    ],
)
def test_the_report_says_what_was_understood(layout, name, tmp_path):
    report = ReadReport()
    file = write(tmp_path / "pairs.jsonl", {**LAYOUTS[layout][0], "id": 7})
    read_pairs(file, report=report)
    assert (report.layout, report.format, report.unused) == (name, "JSON Lines", ["id"])
    assert report.columns[-1] == "id"


def test_pairs_of_tables_are_those_of_json_lines(tmp_path):
    """CSV has texts alone: numbers, lists and messages are read from them."""
    rows = [LAYOUTS[name][0] for name in ("margin", "soft label", "messages, explicit")]
    for row in rows:
        file = tmp_path / "pairs.csv"
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(row)
            writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in row.values()])
        assert read_pairs(file) == read_pairs(write(tmp_path / "pairs.jsonl", row))
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["prompt", "responses", "scores"], ["p", '["x", "y"]', "[1, 2]"]]
        )
    assert read_pairs(file) == [PreferencePair("p", "y", "x")]
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for name, (row, pair) in LAYOUTS.items():
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "pairs")
        assert read_pairs(tmp_path / "pairs") == [pair], name


def test_prompts_that_two_texts_share():
    """Cut at the end of a word; equal texts and texts without a common word have no prompt."""
    assert split_texts("2 + 2 = 4", "2 + 2 = 5") == ("2 + 2 =", " 4", " 5")
    assert split_texts("Is it? Yes", "Is it? Yesterday") == ("Is it?", " Yes", " Yesterday")
    assert split_texts("Hello there", "Hello there you") == ("Hello there", "", " you")
    assert split_texts("Hello \n a", "Hello \n b") == ("Hello", " \n a", " \n b")
    assert split_texts("one", "two") == ("", "one", "two")
    assert split_texts(" one", " two") == ("", " one", " two")
    assert split_texts("same", "same") == ("", "same", "same")
    assert split_texts("", "a") == ("", "", "a")
    for a, b in (("the cat", "the car"), ("x" * 999 + " y", "x" * 999 + " z")):
        prompt, rest_a, rest_b = split_texts(a, b)
        assert (prompt + rest_a, prompt + rest_b) == (a, b)
    with pytest.raises(ValueError, match="share no turn"):
        split_dialogues(f"{H} a{A} x", f"{H} b{A} x")


# Ratings ------------------------------------------------------------------------------------------


RATED = {"prompt": "p", "responses": ["x", "y", "z", "x"], "ratings": [2, 1, 2, 3]}


@pytest.mark.parametrize(
    ("ratings", "pairs", "counts"),
    [
        # x2>y1, x2=z2, x3 is x, z2>y1, x3>y1, x3>z2
        ("all", [("x", "y"), ("z", "y"), ("x", "y"), ("x", "z")], {"equal": 1, "rated twice": 1}),
        ("best-worst", [("x", "y")], {}),
    ],
)
def test_ratings_of_several_responses(ratings, pairs, counts, tmp_path):
    report = ReadReport()
    found = read_pairs(write(tmp_path / "r.jsonl", RATED), ratings=ratings, report=report)
    assert sorted((pair.chosen, pair.rejected) for pair in found) == sorted(pairs)
    assert sorted(report.counts.values()) == sorted(counts.values())
    assert all(any(word in what for what in report.counts) for word in counts)


def test_one_response_per_row_is_put_together_by_the_prompt(tmp_path):
    rows = [("p", "x", 1), ("q", "a", 5), ("p", "y", 2), ("o", "alone", 1), ("q", "b", 4)]
    names = ("prompt", "response", "score")
    file = write(tmp_path / "r.jsonl", *(dict(zip(names, row, strict=True)) for row in rows))
    report = ReadReport()
    expected = [PreferencePair("p", "y", "x"), PreferencePair("q", "a", "b")]
    assert read_pairs(file, report=report) == expected
    assert report.notes == ["prompts with one response alone, which makes no pair: 1."]
    table = tmp_path / "r.csv"
    table.write_text("prompt,response,score\n" + "".join(f"{p},{r},{s}\n" for p, r, s in rows))
    assert read_pairs(table) == expected


def test_all_equal_ratings_make_no_pair_and_say_so(tmp_path):
    file = write(tmp_path / "r.jsonl", {**RATED, "ratings": [1, 1, 1, 1]})
    with pytest.raises(ValueError, match=r"has no pair\. pairs of equal ratings, left out: 1"):
        read_pairs(file, ratings="best-worst")


# Columns ------------------------------------------------------------------------------------------


def test_columns_of_other_names(tmp_path):
    row = {"question": "p", "good": "c", "bad": "r", "prompt": "other", "gap": 0.5}
    file = write(tmp_path / "p.jsonl", row)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "margin": "gap"}
    assert read_pairs(file, columns) == [PreferencePair("p", "c", "r", 0.5)]
    rated = write(tmp_path / "r.jsonl", {"x": "p", "a": ["b", "c"], "s": [2, 1], "ratings": "no"})
    named = {"prompt": "x", "responses": "a", "ratings": "s"}
    assert read_pairs(rated, named) == [PreferencePair("p", "b", "c")]


def test_a_number_gets_its_meaning_by_the_name_of_its_column(tmp_path):
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "label": v} for v in (0, 1, 0.5)]
    file = write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(
        ValueError, match=r"line 1: 'label' is 0: a number, which may count .*winner"
    ):
        read_pairs(file, skip_bad=True)
    assert [p.chosen for p in read_pairs(file, {"winner": "label"})] == ["x", "y", "x"]
    assert [p.chosen for p in read_pairs(file, {"preference": "label"})] == ["y", "x", "x"]
    assert [p.preference for p in read_pairs(file, {"winner": "label"})] == [1, 1, 0.5]


def test_how_responses_finished_goes_with_their_label(tmp_path):
    cut_off = {**TWO, "finish_a": "length", "finish_b": "stop"}
    rows = [{**cut_off, "label": "a"}, {**cut_off, "label": "b"}, {**TWO, "label": "a"}]
    rows.append({**TWO, "finish_a": None, "finish_b": " ", "label": "b"})
    report = ReadReport()
    pairs = read_pairs(write(tmp_path / "p.jsonl", *rows), report=report)
    assert [(pair.chosen_stopped, pair.rejected_stopped) for pair in pairs] == [
        *((False, True), (True, False), (True, True), (True, True))
    ]
    assert report.unused == []


def test_the_difference_of_two_scores_is_the_margin_only_where_asked_for(tmp_path):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 9, "score_rejected": 7.5}
    file = write(tmp_path / "p.jsonl", row)
    report = ReadReport()
    assert read_pairs(file, report=report)[0].margin == 0.0
    assert "(--columns margin=score_chosen-score_rejected)" in report.notes[0]
    asked = {"margin": "score_chosen-score_rejected"}
    assert read_pairs(file, asked)[0].margin == 1.5
    with pytest.raises(ValueError, match="has no column 'nothing'"):
        read_pairs(file, {"margin": "score_chosen-nothing"})


# What is refused ----------------------------------------------------------------------------------

EXPLICIT, TWO = LAYOUTS["explicit"][0], {"prompt": "p", "response_a": "x", "response_b": "y"}
THREE = {"prompt": "p", "responses": ["x", "y"], "ratings": [1, 2]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "p", "chosen": "c"}, "no column 'rejected'; its columns are 'promt', 'chosen'"),
        (
            {"prompt": "p", "choosen": "c", "rejected": "r"},
            r"Did you mean 'choosen' \(--columns ch",
        ),
        ({"question": "p", "answer": "c"}, "no column 'chosen'.*Pairs are 'chosen' and 'rejected'"),
        (TWO, "no column 'label'"),
        ({**TWO, "label": "a", "winner": "b"}, "several columns that may be the preference"),
        ({"prompt": "p", "responses": ["a", "b"]}, "no column 'ratings'"),
        ({"responses": ["a", "b"], "ratings": [1, 2]}, "no column 'prompt'"),
        ({**EXPLICIT, "chosen": None}, "line 1: the field 'chosen' is null, it must be text or a"),
        ({**EXPLICIT, "chosen": 5}, "line 1: the field 'chosen' is a int, it must be a string"),
        ({**EXPLICIT, "chosen": "\ud800"}, "line 1: .* half of a surrogate pair"),
        ({**EXPLICIT, "margin": "1"}, "line 1: 'margin' is '1', it must be a finite number"),
        ({**EXPLICIT, "margin": 2 * MOST_MARGIN}, "line 1: 'margin' is 2000000.0, it must be"),
        ({**EXPLICIT, "preference": 1.5}, "'preference' is 1.5, it must be the probability from 0"),
        ({**EXPLICIT, "preference": "a"}, "'preference' is 'a', it must be the probability"),
        ({**EXPLICIT, "chosen": [BAD]}, None),
        (
            {**EXPLICIT, "chosen": [USER]},
            "'chosen' goes on with a 'user' turn, where the assistant",
        ),
        ({"chosen": "a", "rejected": [BAD]}, "one of 'chosen' and 'rejected' is text, the other"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "share no message that a turn of the assistant"),
        ({"chosen": [USER, GOOD], "rejected": [MORE, BAD]}, "share no message"),
        ({"chosen": f"{H} a{A} x", "rejected": f"{H} b{A} x"}, "share no turn that"),
        ({**TWO, "label": None}, "line 1: 'label' is empty: nobody has said"),
        ({**TWO, "label": "left"}, "line 1: 'label' is 'left', it must be 'a', 'b' or 'tie'"),
        ({**TWO, "label": 0.7}, "'label' is 0.7: a number, which may count responses from 0 or"),
        ({**TWO, "label": True}, "'label' is True, it must be"),
        ({**TWO, "label": "a", "finish_b": "eos"}, "'finish_b' is 'eos', it must be 'stop' for"),
        ({**TWO, "label": "a", "finish_a": []}, "'finish_a' is .*, it must be 'stop' for"),
        ({**TWO, "winner": 2}, "'winner' is 2: neither 0"),
        ({**TWO, "preference": 3}, "'preference' is 3: no probability from 0 to 1"),
        ({**THREE, "ratings": [1]}, "line 1: 2 responses and 1 ratings"),
        ({**THREE, "ratings": [1, None]}, "line 1: 'ratings' is None, it must be a finite number"),
        ({**THREE, "responses": "xy"}, "line 1: the field 'responses' is 'xy', it must be a list"),
        ({**THREE, "responses": ["x"], "ratings": [1]}, "a pair needs two responses, there is 1"),
        ({"prompt": "p", "response": "x", "rating": "5"}, "'rating' is '5', it must be a finite"),
    ],
)
def test_malformed_pairs_are_named_with_what_to_do(row, message, tmp_path):
    file = write(tmp_path / "p.jsonl", row)
    if message is None:
        assert read_pairs(file)
        return
    with pytest.raises(ValueError, match=message) as refused:
        read_pairs(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("with_label", [False, True])
def test_a_prompt_that_comes_after_rows_without_one_is_not_dropped(tmp_path, skip_bad, with_label):
    row = {"response_a": "x y", "response_b": "x z", "label": "a"}
    if not with_label:
        row = {"chosen": "x y", "rejected": "x z"}
    file = write(tmp_path / "p.jsonl", *[row] * 70, {**row, "prompt": "p"})
    with pytest.raises(ValueError, match=r"line 71: it has a 'prompt', which the first rows"):
        read_pairs(file, skip_bad=skip_bad)
    early = write(tmp_path / "early.jsonl", {**row, "prompt": "p"}, *[row] * 2)
    with pytest.raises(ValueError, match=r"the field 'prompt' is missing .2 rows: line 2, line 3"):
        read_pairs(early)


def test_all_bad_rows_are_reported_at_once_or_skipped_and_counted(tmp_path):
    rows = [EXPLICIT if n % 3 else {**EXPLICIT, "rejected": None} for n in range(1, 31)]
    file = write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(ValueError) as refused:
        read_pairs(file)
    assert str(refused.value) == (
        f"{file}: 10 of 30 rows can't be used: the field 'rejected' is null, it must be text or a "
        "list of messages (10 rows: line 3, line 6, line 9, line 12, line 15, …). Mend or remove "
        "them; skip_bad=True (--skip-bad) reads on without them."
    )
    report = ReadReport()
    assert len(read_pairs(file, skip_bad=True, report=report)) == 20
    assert (report.bad.count, report.bad.rows) == (10, 30)
    seen = []
    with pytest.raises(ValueError, match="10 of 30 rows"):
        for pair in iterate_pairs(file):
            seen.append(pair)
    assert len(seen) == 2  # nothing comes after the first bad row


def test_plain_text_holds_no_pairs(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"is plain text, which has no columns\. Pairs are"):
        read_pairs(tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"ratings='some' must be one of 'all', 'best-worst'"):
        read_pairs(tmp_path / "p.txt", ratings="some")


# Real data ----------------------------------------------------------------------------------------


def test_hh_rlhf_is_read_with_its_traps(shared):
    """Split at the last turn of each text, 5 pairs would have two prompts.

    At the last turn that both texts share, the responses of these hold several turns.
    """
    report = ReadReport()
    file = shared / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    pairs = read_pairs(file, report=report)
    assert len(pairs) == 2312 and report.format == "JSON Lines, packed by gzip"
    assert all(pair.prompt.endswith(A) and pair.prompt.startswith(H) for pair in pairs)
    several = [p for p in pairs if A in p.chosen + p.rejected or H in p.chosen + p.rejected]
    assert len(several) == 5 and list(report.counts.values()) == [5]
    assert sum(not pair.chosen.strip() for pair in pairs) == 4
    assert sum(not pair.rejected.strip() for pair in pairs) == 0
