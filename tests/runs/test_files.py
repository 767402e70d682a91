"""Files are whole or as they were, JSON is JSON, and failures to write name the path."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agents import LMActorCriticPolicy, make_vec_env
from agents.atomic_files import (
    append_lines,
    discard,
    json_text,
    remove,
    whole_file,
    whole_folder,
    write_json,
)
from agents.config import TrainConfig
from tokenenv.rewards.reward_model import load_reward_model


def strict(text: str):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_numbers_that_are_not_finite():
    content = {
        "a": math.nan,
        "b": [math.inf, -math.inf, 1.5],
        "c": (np.float32("nan"), np.float64(2), np.int64(3), np.bool_(True)),
        "d": np.array([[1.0, math.nan]]),
        "e": {"f": {"g": math.nan}},
        "h": "NaN",
        "i": None,
    }
    assert strict(json_text(content)) == {
        "a": None,
        "b": [None, None, 1.5],
        "c": [None, 2.0, 3, True],
        "d": [[1.0, None]],
        "e": {"f": {"g": None}},
        "h": "NaN",
        "i": None,
    }


def test_text_that_is_no_unicode_is_still_json(tmp_path):
    append_lines(tmp_path / "lines", [json_text({"said": "\udc80 é"})])
    assert strict((tmp_path / "lines").read_text("utf-8")) == {"said": "\udc80 é"}


def test_a_file_that_fails_leaves_the_old_one_and_no_temporary(tmp_path):
    place = tmp_path / "report.json"
    write_json(place, {"a": 1})
    with pytest.raises(TypeError):
        write_json(place, {"a": object()})
    with pytest.raises(KeyError), whole_file(place) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert strict(place.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere" / "report.json")
    for number in (1, 2):
        write_json(tmp_path / "link.json", {"a": number})
        assert (tmp_path / "link.json").is_symlink()
        assert strict((tmp_path / "elsewhere" / "report.json").read_text()) == {"a": number}


def test_devices_and_pipes_are_written_through(tmp_path, capsys):
    write_json(Path("/dev/null"), {"a": 1})
    assert Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(timeout=10)
    assert strict(read[0]) == {"a": 1} and pipe.is_fifo()


def test_our_own_output_is_no_file_to_replace(tmp_path, monkeypatch):
    """/dev/stdout is a link to the pipe, terminal or file that the output goes to."""
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    before = os.lstat("/dev/stdout")
    write_json(Path("/dev/stdout"), {"a": 1})
    after = os.lstat("/dev/stdout")
    assert strict(shown.getvalue()) == {"a": 1}
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


@pytest.mark.parametrize("where", ["json", "weights", "torch", "lines", "plain"])
def test_a_full_disk_is_named_with_the_path(tmp_path, where):
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("this system has no /dev/full")
    weights = {"w": torch.zeros(1000)}
    with pytest.raises(OSError) as raised:
        if where == "json":
            write_json(full, {"a": 1})
        elif where == "lines":
            append_lines(full, ["a"])
        elif where == "plain":
            with whole_folder(tmp_path / "policy") as folder:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            with whole_folder(tmp_path / "policy") as folder:
                (folder / "file").symlink_to(full)
                if where == "torch":
                    torch.save(weights, folder / "file")
                else:
                    (folder / "deep").mkdir()
                    save_file(weights, folder / "no" / "file")
    wanted = full if where in ("json", "lines") else tmp_path / "policy"
    assert raised.value.filename == str(wanted) and raised.value.strerror
    assert not os.listdir(tmp_path)


def test_what_is_discarded_gives_its_room_back_though_it_is_open_still(tmp_path):
    (tmp_path / "half").mkdir()
    with (tmp_path / "half" / "file").open("wb") as file:
        file.write(b"0" * 10_000)
        file.flush()
        discard(tmp_path / "half")
        assert os.fstat(file.fileno()).st_size == 0
    (tmp_path / "kept").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    discard(tmp_path / "link")
    assert (tmp_path / "kept").read_text() == "mine" and not (tmp_path / "link").exists()


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "link", "dangling", "never-there"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["file"]


def test_a_linked_folder_is_replaced_by_a_folder_again_and_again(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model").write_text("of another run")
    (tmp_path / "policy").symlink_to(tmp_path / "elsewhere")
    for number in "123":
        with whole_folder(tmp_path / "policy") as folder:
            (folder / "model").write_text(number)
        assert (tmp_path / "policy" / "model").read_text() == number
    assert (tmp_path / "elsewhere" / "model").read_text() == "of another run"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "policy"]


def test_a_folder_killed_between_its_last_steps_is_put_back(tmp_path):
    (tmp_path / ".policy.old").mkdir()
    (tmp_path / ".policy.old" / "model").write_text("old")
    with pytest.raises(KeyError), whole_folder(tmp_path / "policy"):
        raise KeyError
    assert (tmp_path / "policy" / "model").read_text() == "old"
    assert os.listdir(tmp_path) == ["policy"]


# Places to save to -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "  ", "\t", "file", None])
def test_saving_to_an_empty_name_or_to_no_folder_is_refused(name, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    env = make_vec_env(n_envs=1, **settings)
    policy = LMActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 0.0, actor=settings["reference"]
    )
    for model in (policy, load_reward_model(settings["reward_model"])):
        with pytest.raises(ValueError, match="folder="):
            model.save_pretrained(name)
    assert os.listdir(tmp_path) == ["file"] and Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["task", "actor", "reference", "reward_model", "prompts", "critic"]
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_name_in_a_runs_settings_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}' is empty"):
        TrainConfig(**{name: value})
