"""Files of every format give the same rows; what is no format of rows is refused by its name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import zipfile

import pytest

from tokenenv.data import ReadReport, read_prompt_rows
from tokenenv.data.row import BadRows
from tokenenv.data.rows import find_format, read_rows

ROWS = [
    {"prompt": "Two, three", "chosen": ' "four"\nfive', "rejected": ""},
    {"prompt": "Grüße\u2028!", "chosen": "{x}", "rejected": "a\tb; c"},
    {"prompt": "", "chosen": "[1]", "rejected": "\r\n."},
]


def as_csv(rows, delimiter=",", ending="\r\n"):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_json(value, **settings):
    return json.dumps(value, ensure_ascii=False, **settings).encode()


def columns_of(rows):
    return {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}


FORMATS = {
    "jsonl": ("JSON Lines", lambda rows: b"\n".join(map(as_json, rows))),
    "jsonl, CR LF and blank lines": (
        "JSON Lines",
        lambda rows: b"\xef\xbb\xbf" + b"\r\n \r\n".join(map(as_json, rows)) + b"\r\n",
    ),
    "json array": ("JSON", lambda rows: as_json(rows)),
    "json array, indented": ("JSON", lambda rows: b"\xef\xbb\xbf\n" + as_json(rows, indent=2)),
    "pandas columns": ("JSON Lines", lambda rows: as_json(columns_of(rows))),
    "pandas index": ("JSON Lines", lambda rows: as_json(dict(enumerate(rows)), indent=1)),
    "pandas split": (
        "JSON Lines",
        lambda rows: as_json(
            {"columns": list(rows[0]), "index": [0, 1, 2], "data": [list(r.values()) for r in rows]}
        ),
    ),
    "pandas table": (
        "JSON Lines",
        lambda rows: as_json({"schema": {"fields": [], "pandas_version": "1.4.0"}, "data": rows}),
    ),
    "csv": ("CSV", as_csv),
    "csv, LF and BOM": ("CSV", lambda rows: b"\xef\xbb\xbf" + as_csv(rows, ending="\n")),
    "csv, semicolons": ("CSV with ';'", lambda rows: as_csv(rows, ";")),
    "tsv": ("TSV", lambda rows: as_csv(rows, "\t")),
    "parquet": ("Parquet", as_parquet),
}


@pytest.mark.parametrize("suffix", ["", ".data", ".jsonl", ".txt"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_rows_whatever_the_file_is_called(kind, packed, suffix, tmp_path):
    title, write = FORMATS[kind]
    content = write(ROWS)
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    assert find_format(file).title == title + ", packed by gzip" * packed
    rows = list(read_rows(file))
    assert [row.fields for row in rows] == ROWS
    assert all(row.file == str(file) for row in rows)


def places(file, content):
    file.write_bytes(content)
    return [row.place for row in read_rows(file)]


def test_places_are_lines_where_there_are_lines(tmp_path):
    file = tmp_path / "rows"
    assert places(file, b'\n{"a": 1}\n\n{"a": 2}') == ["line 2", "line 4"]
    assert places(file, b'prompt,text\na,"b\nc"\n\nd,e\n') == ["line 2", "line 5"]
    assert places(file, b'[{"a": 1},\n {"a": 2}]') == ["row 1", "row 2"]
    assert places(file, b"Hello, you\n\nAnd you\n") == ["line 1", "line 3"]


def test_pandas_writes_what_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{**row, "prompt": row["prompt"] + "."} for row in ROWS])
    expected = frame.to_dict("records")
    file = tmp_path / "frame"
    for orient in ("records", "columns", "index", "split", "table"):
        frame.to_json(file, orient=orient)
        rows = [{k: v for k, v in row.fields.items() if k != "index"} for row in read_rows(file)]
        assert rows == expected, orient
    frame.to_json(file, orient="records", lines=True)
    assert [row.fields for row in read_rows(file)] == expected
    frame.to_csv(file, lineterminator="\n")  # with its index, a column without a name
    assert [row.fields for row in read_rows(file)] == expected
    frame.to_json(file, orient="values")
    with pytest.raises(ValueError, match=r'row 1: it is a list.*orient="records"'):
        list(read_rows(file))


def test_a_large_array_is_read_piece_by_piece(tmp_path, monkeypatch):
    """With pieces of seven bytes, which cut strings, escapes, numbers and characters."""
    monkeypatch.setattr("tokenenv.data.json_rows._PIECE", 7)
    rows = [{"text": 'é\u2028 " \\ \n' * n, "n": 10**n, "x": [1.5, {"a": None}]} for n in range(9)]
    file = tmp_path / "rows.json"
    for settings in ({}, {"indent": 3}):
        file.write_bytes(as_json(rows, **settings))
        assert [row.fields for row in read_rows(file)] == rows
    file.write_text(json.dumps(["a", "\ud83d\ude00", "c"]))
    assert [row.fields["text"] for row in read_rows(file)] == ["a", "\U0001f600", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it needs at least one row"),
        (b"\n \n", "is empty: it needs at least one row"),
        (pickle.dumps([{"prompt": "a"}]), "looks like a pickle, which could run any code"),
        (b"PK\x03\x04" + b"x" * 30, r"looks like a zip archive, as \.xlsx"),
        (
            gzip.compress(gzip.compress(b"a", mtime=0), mtime=0),
            "looks like a gzip file inside of a gzip file",
        ),
        (gzip.compress(b"a" * 1000, mtime=0)[:-9], "is a gzip file that is cut off or damaged"),
        (b"  <!DOCTYPE html><html>", "looks like HTML: a page was saved"),
        (b"<?xml version='1.0'?>", "looks like XML"),
        (b"\x89PNG\r\n\x1a\n", "looks like a PNG image"),
        ("prompt\nHello".encode("utf-16"), "looks like text in UTF-16: save it as UTF-8"),
        ("prompt\nHello".encode("utf-16-le"), "looks like text in UTF-16: save it as UTF-8"),
        (b"a\0\xffb" * 9, r"looks like binary data \(it holds NUL bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"one\rtwo\rthree", "lines end in CR alone"),
        (b"ARROW1\0\0", "looks like an Arrow file"),
        (b"PAR1 and no more", "is a damaged Parquet file"),
        (b"prompt\nTell me", "'prompt', the header of a table of one column: name the file .csv"),
        (b'[{"a": 1}, {"a": }]', r"row 2: not valid JSON \(Expecting value\)"),
        (b'[{"a": 1}, {"a": "b]', r"row 2: not valid JSON \(Unterminated string"),
        (b'[{"a": 1}, {"a": 2}', r"row 2: not valid JSON \(the array has no end\)"),
        (b'[{"a": 1} {"a": 2}]', r"row 1: not valid JSON \(expecting ',', got '{'\)"),
        (b'[{"a": 1}]]', r"there is more behind the end of the array"),
        (b'[{"a": 1, "a": 2}]', r"row 1: not valid JSON \(the key 'a' stands twice"),
        (b'[{"a": 1}, 5]', r"row 2: needs an object, got 5"),
        (b'{"data": [{"a": 1}]}', "holds its rows under the key 'data': save the list itself"),
        (b'{"a": {"x": 1}, "b": {"x": 2}}', 'write it with orient="records"'),
        (b'{"columns": ["a"], "data": [[1, 2]]}', "row 1: needs a list of 1 values"),
        (b"prompt,chosen,prompt\na,b,c", "the header has the column 'prompt' twice"),
        (b"prompt,chosen\na,b\nc\nd,e,f", "2 of 3 rows can't be used: line 3: 1 cells, where the "),
        (b'prompt,chosen\na,"b\nc,d\n', "line 2: a quote has no end"),
        (b'prompt,chosen\na,"b"c\n', r"line 2: not valid CSV .*double the quotes within quotes"),
        (b"prompt,chosen\na,b\xff\nc,d", r"line 2: not UTF-8 text \(invalid start byte\)"),
        (b"Hello\nGr\xfc\xdfe\n", r"line 2: not UTF-8 text"),
        (b'{"a": "b"}\n{"a": "\xff"}\n', r"line 2: not UTF-8 text"),
        (b'{"a": "b"}\n5\n', "line 2: needs a JSON object, got '5'"),
    ],
)
def test_what_is_not_read_is_refused_by_what_it_looks_like(content, message, tmp_path):
    file = tmp_path / "rows"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        list(read_rows(file))
    assert str(file) in str(refused.value)


def test_an_office_file_called_csv_is_refused(tmp_path):
    file = tmp_path / "pairs.csv"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(
        ValueError, match=r"looks like a zip archive, as \.xlsx.*What is read: JSON"
    ):
        find_format(file)


def test_text_in_a_file_called_parquet_is_refused(tmp_path):
    file = tmp_path / "pairs.parquet"
    file.write_text("Not found\n")
    with pytest.raises(ValueError, match=r"looks like text, and is called \.parquet"):
        find_format(file)


@pytest.mark.parametrize(
    "line",
    [
        "Hello, my name is",
        "Text, please",
        "[INST] Who wrote it?",
        "[1] Who wrote it?",
        "[1]",
        "{name} is a",
        "prompt, answer and more",
        '"Quoted," she said.',
        "a;b;c",
    ],
)
def test_a_text_stays_a_text(line, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{line}\nAnother\n")
    assert [row.fields["text"] for row in read_rows(file)] == [line, "Another"]


def test_a_long_cell_is_read_and_an_endless_one_refused(tmp_path, monkeypatch):
    """The csv module's own limit is 131,072 characters, and stays so for others."""
    file = tmp_path / "rows.csv"
    file.write_text("prompt,text\na," + "b" * 200_000 + "\n")
    (row,) = read_rows(file)
    assert len(row.fields["text"]) == 200_000 and csv.field_size_limit() == 131_072
    monkeypatch.setattr("tokenenv.data.csv_rows._MOST_CELL", 1000)
    with pytest.raises(ValueError, match="line 2: a cell of more than 1,000 characters begins"):
        list(read_rows(file))
    assert csv.field_size_limit() == 131_072


def test_all_bad_rows_are_counted_and_the_first_of_each_kind_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(['{"a": 1}', "5", "[", *["{}x"] * 7, '{"a": 2}']))
    bad = BadRows()
    assert [row.fields["a"] for row in read_rows(file, bad)] == [1, 2]
    assert (bad.rows, bad.count) == (11, 9)
    assert bad.describe("F") == (
        "F: 9 of 11 rows can't be used: line 2: needs a JSON object, got '5'; line 3: not valid "
        "JSON (Expecting value: column 2); not valid JSON (Extra data: column 3) (7 rows: line 4, "
        "line 5, line 6, line 7, line 8, …)."
    )
    with pytest.raises(ValueError, match=r"9 of 11 rows.*Mend or remove them; skip_bad=True"):
        list(read_rows(file))


ROWS_OF_ONE_OBJECT = {
    "columns": {"prompt": {"0": "a", "1": None, "2": None}},
    "index": {"0": {"prompt": "a"}, "1": {"prompt": None}, "2": {"prompt": None}},
    "split": {"columns": ["prompt"], "data": [["a"], [None], [None]]},
    "table": {"schema": {}, "data": [{"prompt": "a"}, {"prompt": None}, {"prompt": None}]},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("orient", ROWS_OF_ONE_OBJECT)
def test_the_rows_of_one_object_are_counted_one_by_one(tmp_path, orient, indent):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS_OF_ONE_OBJECT[orient], indent=indent))
    bad = BadRows()
    assert len(list(read_rows(file, bad))) == bad.rows == 3
    with pytest.raises(ValueError, match=r"2 of 3 rows can't be used.*\(2 rows: row 2, row 3\)"):
        read_prompt_rows(file, "train")
    report = ReadReport()
    assert len(read_prompt_rows(file, "train", skip_bad=True, report=report)) == 1
    assert (report.bad.count, report.bad.rows) == (2, 3)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"columns": ["prompt"], "data": [[1], [2], [3]]}', 3),
        ('{\n"prompt": {"0": 1, "1": 2}\n}', 2),
        ('{\n"prompt": 1\n}', 1),
        ('{"prompt": 1}\n{"prompt": 2}\n', 2),
        ('[{"prompt": 1}, {"prompt": 2}]', 2),
    ],
)
def test_where_all_rows_are_bad_none_is_left(tmp_path, text, rows):
    file = tmp_path / "rows.json"
    file.write_text(text)
    report = ReadReport()
    with pytest.raises(ValueError, match=r"the field 'prompt' is a int.* There is none left\.$"):
        read_prompt_rows(file, "train", skip_bad=True, report=report)
    assert report.bad.rows == report.bad.count == rows


def test_one_line_that_is_no_json_is_one_bad_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"')
    bad = BadRows()
    assert list(read_rows(file, bad)) == [] and (bad.rows, bad.count) == (1, 1)


# Folders of datasets and the hub ------------------------------------------------------------------


def test_a_folder_of_datasets_is_read_split_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    assert [row.fields for row in read_rows(tmp_path / "one")] == ROWS
    parts = datasets.DatasetDict({"train": whole, "test": whole.select([0])})
    parts.save_to_disk(tmp_path / "two")
    rows = list(read_rows(tmp_path / "two"))
    assert [row.fields["split"] for row in rows] == ["train"] * 3 + ["eval"]
    assert rows[3].where == f"{tmp_path / 'two'}@test, row 1"
    assert [row.fields for row in read_rows(f"{tmp_path / 'two'}@test")] == ROWS[:1]
    with pytest.raises(ValueError, match=r"has no split 'dev': it has 'train', 'test'"):
        list(read_rows(f"{tmp_path / 'two'}@dev"))


def test_a_folder_that_datasets_has_not_written_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"is a folder that.*it holds 'a\.jsonl': name a file"):
        find_format(tmp_path)


def test_a_hub_that_can_not_be_reached_says_so(monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"'owner/name' is no file here.*Give a file, or a folder"):
        list(read_rows("owner/name"))


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
    import sys

    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'pip install "tokenrlhf\[data\]"'):
        list(read_rows(file))
