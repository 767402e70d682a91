"""Settings, labels, tokens, whole runs and replies of servers, damaged: as `test_hostile_files`.

With the files of text that are changed word by word and row by row: payloads do no harm.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.hostile import acting, sample
from support.mutations import HARM, Kind, check, failures, mutations, require
from support.reward_servers import INFO, good_reply, scripted
from support.token_files import make_run

from agents.config import TrainConfig
from agents.credit import read_tokens
from agents.labelling.pair_file import PairFile
from agents.report.run_files import TOKENS, read_run
from agents.reward_quality.audit.edits import load_sentences
from agents.reward_quality.labels.pool import read_pool
from agents.reward_quality.text_features import load_word_lists
from agents.zoo.environments import FOLDER, read_environment
from agents.zoo.settings_files import read_settings
from tokenenv.addresses import parse_address
from tokenenv.data import read_examples, read_pairs, read_prompt_rows
from tokenenv.remote import RewardClient, RewardServerError

STEP = 2048


def read_train_settings(root: Path) -> None:
    """Settings that hold: they can be written down and read again."""
    config = read_settings(root / "train.yaml")
    text = json.dumps(config.as_json(), allow_nan=False)
    require(TrainConfig.from_json(json.loads(text)) == config, "settings that are not themselves")


def read_compare_settings(root: Path) -> None:
    """The settings of an environment, a whole number of steps among them."""
    settings = read_environment(root / "CartPole-v1.yaml", "CartPole-v1")
    require(type(settings.steps) is int and settings.steps >= 1, "no number of steps")


def read_labels(root: Path) -> None:
    """Pairs for labelling, which can be written again: texts that are UTF-8, and numbers."""
    file = PairFile(root / "asked.jsonl")
    for row in file.rows:
        row.as_json().encode("utf-8")
    require(sum(file.counts().values()) == len(file.rows), "rows that are neither open nor done")


def read_unlabelled(root: Path) -> None:
    """A pool, which can be written again."""
    for row in read_pool(root / "pool.jsonl").rows:
        row.as_json().encode("utf-8")


def read_token_file(root: Path) -> None:
    """Token tables: every column has a value for every token of every response."""
    file = read_tokens(root, STEP)
    tokens = sum(response["tokens"] for response in file.responses)
    for name, values in file.arrays.items():
        require(len(values) == tokens, f"the column {name} is shorter")


def read_reported_run(root: Path) -> None:
    """What a report is made of, its numbers finite."""
    run = read_run(root, 10**7)
    numbers = [row[TOKENS] for row in run.rows if TOKENS in row] + [run.tokens]
    numbers += [run.kl_coef] if run.kl_coef is not None else []
    require(all(math.isfinite(number) for number in numbers), "it is not finite")


ITEMS = [{"prompt": "p", "response": f"r{i}", "stopped": True} for i in range(3)]


def read_reply(root: Path) -> None:
    """What a server says: three finite rewards, or an error that names it and acts on nothing."""
    said = {file.stem: file.read_bytes() for file in sorted(root.glob("*.json"))}

    def answer(handler: Any, request: Any) -> None:
        if request is None:
            handler.say(200, said["info"])
        elif "error" in said:
            handler.say(422, said["error"])
        else:
            handler.say(200, said["score"].replace(b"REQUEST", request["request_id"].encode()))

    with scripted(answer) as url:
        try:
            rewards = RewardClient(parse_address(f"{url}#timeout=5&patience=0.02")).scores(ITEMS)
        except RewardServerError as error:
            require(url in str(error) and not acting(str(error)), f"{error!s:.300}")
            require(len(str(error)) < 900, f"a message of {len(str(error))} characters")
            if "error" not in said:
                raise ValueError(f"{root}: {error}") from error
            return
    numbers = [0.0 if reward is None else reward for reward in rewards]  # it may not apply
    require(len(numbers) == 3 and all(map(math.isfinite, numbers)), "it is not finite")


def write_replies(folder: Path) -> tuple[Path, Path]:
    """Folders with what a server says where it is in order, and where a request is refused."""
    places = folder / "replies", folder / "refusals"
    info = {**INFO.as_json(), "columns": ["answer"], "vocabulary": "ab" * 32}
    for place in places:
        place.mkdir()
        (place / "info.json").write_text(json.dumps({**info, "vocabulary_size": 40}))
    reply = json.loads(good_reply({"request_id": "REQUEST", "items": ITEMS}))
    (places[0] / "score.json").write_text(json.dumps(reply))
    (places[1] / "error.json").write_text(json.dumps({"error": "no text of 3 words", "items": [1]}))
    return places


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_rows(folder: Path) -> None:
    """Rows of every kind, small."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    pairs = [{"prompt": "p", "chosen": f" c{i}", "rejected": " r", "margin": 0.5} for i in range(4)]
    rated = {"prompt": "p", "responses": ["a", "b", "c"], "ratings": [1, 2, 3.5]}
    prompts = [{"prompt": turns[:1], "split": "train", "answer": i} for i in range(4)]
    pool = [
        {"id": f"{i}", "prompt": "p", "response_a": f" a{i}", "response_b": " b", "label": None,
         "finish_a": "stop", "finish_b": "length"} for i in range(4)
    ]  # fmt: skip
    asked = [{**row, "label": "a" if i % 2 else None} for i, row in enumerate(pool)]
    for name, rows in {
        "pairs": pairs, "rated": [rated] * 3, "chats": [{"messages": turns}] * 3,
        "prompts": prompts, "pool": pool, "asked": asked,
    }.items():  # fmt: skip
        (folder / f"{name}.jsonl").write_text(as_lines(rows))
    (folder / "pairs.csv").write_text(
        "prompt,chosen,rejected\n" + 'p," c, d"," r"\n' * 3 + '"p ""q""",a,b\n'
    )
    (folder / "prompts.txt").write_text("Why is it so?\nWhat then?\n\n" + "Tell me more.\n" * 9)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> list[Kind]:
    """The kinds of files."""
    root = tmp_path_factory.mktemp("formats")
    rows, settings, lists = root / "rows", root / "settings", root / "lists"
    for folder in (rows, settings, lists):
        folder.mkdir()
    write_rows(rows)
    run = make_run(root / "run", steps=(1024, STEP), counts={"fresh": 4}, length=4)
    shutil.copy(FOLDER / "CartPole-v1.yaml", settings)
    (settings / "train.yaml").write_text(
        "# my settings\ntask: exact\nkl-coef: 0.05\nlearning_rate: 3e-4\nseed: 3\n"
        "kl_estimator: k3\nout: runs/mine\nlora_target_modules: [q_proj, v_proj]\nlora_rank: 4\n"
    )
    (lists / "brands.txt").write_text("# brands\nacme\nblue sky  # two words\nzeta\n")
    (lists / "padding.txt").write_text("It is so.\nAs was said before.  # again\n")
    tokens = f"tokens/{STEP}.jsonl"
    replies, refusals = write_replies(root)
    return [
        Kind(replies, "score.json", read_reply, (30, 40), 30, 60),
        Kind(replies, "info.json", read_reply, (20, 40), 20, 40),
        Kind(refusals, "error.json", read_reply, (10, 10), 10, 10),
        Kind(settings, "train.yaml", read_train_settings, (120, 0), words=500),
        Kind(settings, "CartPole-v1.yaml", read_compare_settings, (80, 0), words=300),
        Kind(lists, "brands.txt", lambda r: load_word_lists(r), (60, 0), words=100),
        Kind(lists, "padding.txt", lambda r: load_sentences(r), (60, 0), words=100),
        Kind(rows, "asked.jsonl", read_labels, (60, 0), words=60, rows=300),
        Kind(rows, "pool.jsonl", read_unlabelled, (60, 0), words=60, rows=300),
        Kind(rows, "pairs.jsonl", lambda r: read_pairs(r / "pairs.jsonl"), (0, 0), 60, 300),
        Kind(rows, "rated.jsonl", lambda r: read_pairs(r / "rated.jsonl"), (0, 0), 60, 250),
        Kind(rows, "chats.jsonl", lambda r: list(read_examples(r / "chats.jsonl")),
             (0, 0), 60, 250),
        Kind(rows, "prompts.jsonl", lambda r: read_prompt_rows(r / "prompts.jsonl", "train"),
             (0, 0), 60, 250),
        Kind(rows, "pairs.csv", lambda r: read_pairs(r / "pairs.csv"), (60, 0), 200),
        Kind(rows, "prompts.txt", lambda r: read_prompt_rows(r / "prompts.txt", "eval"),
             (60, 0), 60),
        Kind(run, tokens, read_token_file, (60, 0), 0, 250),
        Kind(run, "summary.json", read_reported_run, (30, 120)),
        Kind(run, "samples.jsonl", read_reported_run, (30, 0), 0, 120),
        Kind(run, "metrics.jsonl", read_reported_run, (30, 0), 0, 120),
        Kind(run, "config.json", read_reported_run, (30, 60)),
    ]  # fmt: skip


def test_there_are_as_many_changed_files_as_promised_and_whole_ones_are_read(kinds, tmp_path):
    assert sum(len(mutations(kind)) for kind in kinds) >= 4800  # beside those of test_hostile_files
    for kind in kinds:
        assert check(kind, lambda file: None, tmp_path / "copy") is None
        kind.read(tmp_path / "copy")


def test_changed_files_are_read_as_they_are_or_refused_by_name(kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [(kind, case) for kind in kinds for case in sample(mutations(kind), 6)]
    found = failures(cases, tmp_path / "copy")
    assert not found, "\n".join(found)
    assert not list(tmp_path.rglob(HARM))


@pytest.mark.slow
def test_all_changed_files_are_read_as_they_are_or_refused_by_name(kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [(kind, case) for kind in kinds for case in mutations(kind)]
    found = failures(cases, tmp_path / "copy")
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n".join(found)
    assert not list(tmp_path.rglob(HARM)) and not Path(f"/tmp/{HARM}").exists()
