"""The page without a browser: what stands in it, that it stays text, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.token_files import (
    HOSTILE,
    make_header,
    make_response,
    make_responses,
    make_run,
)

from agents.cli import main
from agents.credit import read_tokens, write_tokens
from agents.report.embedding import Texts, packed_column, packed_table, script_json
from agents.report.page import make_page, write_report
from agents.report.run_files import read_run
from tokenenv.printable import printable

PARTS = Path(__file__).resolve().parents[2] / "agents" / "report" / "page_parts"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Messages without line breaks."""
    monkeypatch.setenv("COLUMNS", "2000")


class Parsed(HTMLParser):
    """The elements of a page, and the text in each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return json.loads(self.texts["script"][0])


def hostile_run(root: Path) -> Path:
    """A run whose every text is hostile."""
    run = make_run(root, steps=(), task=HOSTILE[0], reward_model=HOSTILE[1])
    samples = [
        {
            **{"tokens": 1024 * (number + 1), "prompt": text[:50], "response": text, "score": 1.0},
            **{"gold_reward": None, "kl": 0.0, "finish_reason": "stop"},
        }
        for number, text in enumerate(HOSTILE)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    header = make_header(4096, task=HOSTILE[1])
    response = make_response(np.random.default_rng(0), header, length=len(HOSTILE), texts=HOSTILE)
    write_tokens(run / "tokens" / "4096.jsonl", header, [{**response, "prompt": "".join(HOSTILE)}])
    return run


def test_json_in_a_script_cannot_end_it_and_comes_back():
    value = {"".join(HOSTILE): HOSTILE, "x": [1.5, None, "é\u2028<>&"]}
    text = script_json(value)
    assert text.isascii() and not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_hostile_texts_are_neither_elements_nor_lost(tmp_path):
    page = make_page([read_run(hostile_run(tmp_path / "run"), 1e6)])
    parsed = Parsed(page)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2 and tags.count("style") == 1 and "img" not in tags
    assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)
    assert set(HOSTILE) <= set(parsed.data["texts"])
    shown = "".join(parsed.texts["bdi"])
    for text in HOSTILE[:9]:
        assert printable(text).strip() in shown
    assert "49" not in shown  # {{ 7*7 }} is no template
    assert not any(c in page for c in "\x00\x07\x1b\x9b\u202e\u2028")


def test_a_long_text_is_cut_and_its_length_said(tmp_path):
    page = make_page([read_run(hostile_run(tmp_path / "run"), 0)])
    assert "x" * 1500 + " … (10,000 characters)" in page and "x" * 1501 not in page


def test_only_the_pages_own_script_and_style_may_run(tmp_path):
    page = make_page([read_run(make_run(tmp_path / "run"), 1e6)])
    (policy,) = [
        attrs["content"]
        for tag, attrs in Parsed(page).elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    style = page[page.index("<style>") + len("<style>") : page.index("</style>")]
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any("style" in attrs for _, attrs in Parsed(page).elements)


def test_the_page_loads_nothing(tmp_path):
    page = make_page([read_run(make_run(tmp_path / "run"), 1e6)])
    for _, attrs in Parsed(page).elements:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith(("#", "data:,"))
    assert set(re.findall(r"https?://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp|import\(", page)


def test_the_script_writes_data_as_text_alone():
    for part in PARTS.glob("*.js"):
        text = part.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert word not in text, (part.name, word)


def unpacked(packed: dict[str, Any], count: int) -> np.ndarray:
    """As `unpack` of the page's script does it."""
    size = count * packed["width"]
    if "all" in packed:
        return np.full(size, np.nan if packed["all"] is None else packed["all"])
    kind = np.dtype("<" + packed["type"])
    return np.frombuffer(base64.b64decode(packed["data"]), dtype=kind).astype(float)


def test_columns_come_back_from_their_packing(tmp_path):
    header = make_header()
    write_tokens(tmp_path / "1.jsonl", header, make_responses(header, {"rollout": 6}))
    table, texts = read_tokens(tmp_path / "1.jsonl"), Texts()
    packed = packed_table(table, texts)
    count = len(table.arrays["token"])
    for name, values in table.arrays.items():
        if name == "response":
            continue
        found = unpacked(packed["columns"][name], count)
        if values.dtype == object:
            assert [texts.all[int(i)] for i in found] == values.ravel().tolist()
        elif name in ("reward", "value", "token", "top_tokens"):
            np.testing.assert_array_equal(found, values.ravel())
        else:
            np.testing.assert_array_equal(found, values.ravel().astype(np.float32))


def test_a_column_with_one_value_is_that_value():
    texts = Texts()
    assert packed_column("kl_loss", np.zeros(4), texts)["all"] == 0.0
    assert packed_column("ratio", np.full(4, np.nan), texts)["all"] is None
    assert packed_column("clip", np.array([None, None], dtype=object), texts)["all"] == -1
    assert "data" in packed_column("kl", np.array([np.nan, 0.0]), texts)


@pytest.mark.parametrize(("largest", "kind"), [(127, "i1"), (128, "i2"), (50_000, "i4")])
def test_whole_numbers_take_the_smallest_type_that_holds_them(largest, kind):
    assert packed_column("token", np.array([0, largest]), Texts())["type"] == kind


def test_a_report_is_written_into_the_run_and_again(tmp_path):
    run = make_run(tmp_path / "run")
    assert write_report(run) == run / "report.html"
    assert write_report(run) == run / "report.html"
    assert write_report(run, tmp_path / "x.html") == tmp_path / "x.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    for said in ("reviews, seed 0", "69 %", "It has great scenes.", "learning_rate", "λ = 0, TD"):
        assert said in page


def said(capsys: Any) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_the_command_writes_one_run_or_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, other = (make_run(tmp_path / f"run-{s}", seed=s, steps=(16,)) for s in (0, 1))
    assert main(["report", str(one)]) == 0 and "wrote" in said(capsys)
    assert main(["report", str(one), str(other), "--out", "both.html"]) == 0
    assert main(["report", str(one), str(other)]) == 0
    both = Path("report.html").read_text(encoding="utf-8")
    assert both == Path("both.html").read_text(encoding="utf-8")
    assert "2 runs of reviews" in both and "mean and range of 2 seeds" in both
    assert [len(run["steps"]) for run in Parsed(both).data["runs"]] == [1, 1]


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run: config.json is missing" in said(capsys)
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in said(capsys)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["report", str(tmp_path)]) == 2
    assert "is no configuration of a run, task, seed, total_tokens is missing" in said(capsys)
    assert main(["report", str(tmp_path / "config.json")]) == 2
    assert "is a file, not a folder" in said(capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_run_without_tokens_has_a_page_that_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=())
    assert main(["report", str(run)]) == 0
    assert "has no token tables" in said(capsys)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "There is no view of tokens here" in page and 'id="chips"' not in page


def test_token_tables_of_another_version_are_left_out_and_it_is_said(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=(8, 16))
    path = run / "tokens" / "16.jsonl"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2', 1))
    assert main(["report", str(run)]) == 0
    assert "schema 2, and this version of tokenrlhf reads schema 1" in said(capsys)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "schema 2" in page
    (shown,) = Parsed(page).data["runs"]
    assert [step["header"]["step"] for step in shown["steps"]] == [8]


def test_a_run_that_was_stopped_has_a_page_of_what_there_is(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=(8, 16), finished=False)
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[:-30])
    cut = (run / "tokens" / "16.jsonl").read_bytes()
    (run / "tokens" / "16.jsonl").write_bytes(cut[:-100])
    (run / "samples.jsonl").unlink()
    assert main(["report", str(run)]) == 0
    notes = said(capsys)
    for note in (
        "There is no summary.json: the run is still going on, or was killed",
        "The last line of metrics.jsonl is cut off",
        "There is no samples.jsonl",
        "16.jsonl is incomplete",
    ):
        assert note in notes
    data = Parsed((run / "report.html").read_text(encoding="utf-8")).data
    (line, _) = next(c for c in data["charts"] if c["name"] == "score")["series"]
    assert len(line["x"]) == 15


def test_why_a_run_ended_is_said(tmp_path):
    run = make_run(tmp_path / "run", steps=(), finished=False)
    (run / "summary.json").write_text('{"finished": false, "ended_by": "KeyboardInterrupt"}')
    page = make_page([read_run(run, 0)])
    assert "The run was stopped half-way (KeyboardInterrupt)" in page and "not finished" in page


def test_only_a_config_is_enough(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "x", "seed": 0, "total_tokens": 9}')
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()


def test_a_broken_line_in_the_middle_is_refused_by_its_number(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-5]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["report", str(run)]) == 2
    assert "metrics.jsonl, line 5: not valid JSON" in said(capsys)


def test_a_number_that_is_a_text_is_refused_by_its_name(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=())
    for file, row in (
        ("metrics.jsonl", {"time/total_timesteps": 1, "rlhf/score": "<b>"}),
        ("summary.json", {"score": "high"}),
        ("samples.jsonl", {"tokens": 1, "score": [], "prompt": "", "response": ""}),
    ):
        before = (run / file).read_text()
        (run / file).write_text(json.dumps(row) + "\n")
        assert main(["report", str(run)]) == 2
        assert "score' is" in said(capsys)
        (run / file).write_text(before)


def test_a_file_of_another_kind_is_not_replaced(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=())
    other = tmp_path / "thesis.html"
    other.write_text("<html>")
    for out, why in (
        (other, "is no page of this command: nothing was changed"),
        (run / "config.json", "is no page of this command"),
        (tmp_path, "is a folder: give a file"),
        (tmp_path / "no" / "x.html", "there is no folder"),
        (Path("/dev/null"), "is no file"),
    ):
        assert main(["report", str(run), "--out", str(out)]) == 2
        assert why in said(capsys)
    assert other.read_text() == "<html>"


def test_no_more_is_embedded_than_was_asked_for(tmp_path):
    root = make_run(tmp_path / "run", steps=tuple(range(200, 2200, 200)))
    whole, some, none = (read_run(root, budget) for budget in (1e9, 6e4, 0))
    assert len(whole.tables) == 10 and not whole.notes
    assert [table.step for table in some.tables][-1] == 2000 and len(some.tables) < 10
    assert f"Token tables of {len(some.tables)} of 10 steps are shown" in some.notes[0]
    assert not none.tables and "--megabytes 0" in none.notes[0]
    packed = len(script_json([packed_table(t, Texts()) for t in some.tables]))
    assert packed <= 6e4


def test_neither_the_page_needs_torch_nor_its_settings_a_template_engine():
    code = (
        "import sys, agents.report.config; assert 'jinja2' not in sys.modules;"
        "import agents.report.command; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_parts_of_the_page_are_installed_with_the_package():
    project = (PARTS.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"report/page_parts/*"' in project
    assert {path.suffix for path in PARTS.iterdir()} == {".js", ".css", ".j2"}


def test_an_interval_is_two_numbers(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=())
    (run / "summary.json").write_text('{"fraction_interval": [0.1, "x"]}')
    assert main(["report", str(run)]) == 2
    assert "'fraction_interval' is [0.1, 'x'], it must be two numbers or null" in said(capsys)


def test_what_is_not_finite_in_a_summary_is_not_known(tmp_path):
    run = make_run(tmp_path / "run", steps=())
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"objective": float("nan"), "score": float("nan")}
    (run / "summary.json").write_text(json.dumps(summary))
    page = make_page([read_run(run, 0)])
    assert "nan" not in page.replace("NaN", "").lower().split("<script")[0]
