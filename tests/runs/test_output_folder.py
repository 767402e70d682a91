"""An output folder is one process's, and gives up what it held only for something better."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents.runs.output_folder import OutputFolder, has_leftovers

NAMES = ("config.json", "policy", "checkpoints")


def content(root: Path) -> dict[str, str]:
    """Every file in a folder, links as they are, → its text."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder with a run, a link in it and a note."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model").write_text("of another run")
    root = tmp_path / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "checkpoints" / "a.zip").write_text("old")
    (root / "config.json").write_text("old")
    (root / "policy").symlink_to(tmp_path / "elsewhere")
    (root / "notes.txt").write_text("mine")
    return root


def write_new(root: Path) -> None:
    (root / "policy").mkdir()
    (root / "policy" / "model").write_text("new")
    (root / "config.json").write_text("new")


def test_what_is_replaced_comes_back_unless_there_is_something_to_keep(old):
    before = content(old)
    output = OutputFolder(old, NAMES)
    output.set_aside(NAMES)
    assert output.entries() == ["notes.txt"] and output.is_replacing
    write_new(old)
    output.close()
    assert content(old) == before
    assert (old.parent / "elsewhere" / "model").read_text() == "of another run"


def test_it_is_removed_when_there_is_and_links_are_not_followed(old):
    output = OutputFolder(old, NAMES)
    output.set_aside(NAMES)
    write_new(old)
    output.keep()
    output.keep()
    output.close()
    output.close()
    assert content(old) == {"config.json": "new", "notes.txt": "mine", "policy/model": "new"}
    assert (old.parent / "elsewhere" / "model").read_text() == "of another run"
    assert sorted(os.listdir(old)) == ["config.json", "notes.txt", "policy"]


KILLED = """
import os, signal, sys
from pathlib import Path
from agents.runs import output_folder
from agents.runs.output_folder import OutputFolder
root, at = Path(sys.argv[1]), int(sys.argv[2])
count = [0]
def counting(name):
    real = getattr(os, name)
    def call(*arguments, **named):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    setattr(os, name, call)
names = ("config.json", "policy", "checkpoints")
output = OutputFolder(root, names)
counting("rename")
output.set_aside(names)
(root / "policy").mkdir()
(root / "policy" / "model").write_text("new")
(root / "config.json").write_text("new")
if sys.argv[3] == "keep":
    output.keep()
output.close()
"""


@pytest.mark.parametrize("end", ["keep", "close"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_whole(old, end):
    before = content(old)
    after = {"config.json": "new", "notes.txt": "mine", "policy/model": "new"}
    found = []
    for at in range(1, 9):
        done = subprocess.run([sys.executable, "-c", KILLED, str(old), str(at), end])
        OutputFolder(old, NAMES).close()
        assert not has_leftovers(old)
        found.append(content(old))
        assert found[-1] in (before, after), at
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if found[-1] == after:
            break
    assert found[0] == before and found[-1] == (after if end == "keep" else before)
    assert len(found) >= 5


def test_a_second_writer_is_refused_by_name_and_a_dead_one_is_not(tmp_path):
    output = OutputFolder(tmp_path / "run", NAMES)
    with pytest.raises(ValueError, match=rf"/run' is being written by process {os.getpid()} on "):
        OutputFolder(tmp_path / "run", NAMES)
    output.close()
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from agents.runs.output_folder import OutputFolder\n"
        "output = OutputFolder(Path(sys.argv[1]), ())\n"
        "(output.root / 'file').write_text('')\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")])
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "file"]
    OutputFolder(tmp_path / "run", NAMES).close()
    assert os.listdir(tmp_path / "run") == ["file"]


def test_a_folder_that_nothing_came_into_is_not_left_behind(tmp_path):
    OutputFolder(tmp_path / "a" / "b" / "run", NAMES).close()
    assert not (tmp_path / "a").exists()
    (tmp_path / "own").mkdir()
    OutputFolder(tmp_path / "own", NAMES).close()
    assert (tmp_path / "own").is_dir()


@pytest.mark.parametrize("kind", ["file", "device", "dangling", "below"])
def test_what_is_no_folder_is_refused(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "dangling":
        place.symlink_to(tmp_path / "nothing")
    else:
        place.write_text("")
    given = {"device": Path("/dev/null"), "below": place / "run"}.get(kind, place)
    with pytest.raises((ValueError, OSError)) as raised:
        OutputFolder(given, NAMES)
    assert str(place if kind == "below" else given) in str(raised.value)


def test_a_process_that_just_ends_puts_back(old):
    before = content(old)
    code = (
        "import sys\nfrom pathlib import Path\nfrom agents.runs.output_folder import OutputFolder\n"
        "output = OutputFolder(Path(sys.argv[1]), ('config.json',))\n"
        "output.set_aside(['config.json'])\nraise RuntimeError\n"
    )
    subprocess.run([sys.executable, "-c", code, str(old)], stderr=subprocess.DEVNULL)
    assert content(old) == before


def test_temporaries_of_killed_processes_are_cleared_and_no_others(old):
    (old / ".policy.tmp").mkdir()
    (old / ".config.json.123.tmp").write_text("half")
    (old / "checkpoints" / ".tokens-5.tmp.zip").write_text("half")
    (old / ".mine.tmp").write_text("mine")
    before = content(old)
    OutputFolder(old, NAMES).close()
    gone = {".config.json.123.tmp", "checkpoints/.tokens-5.tmp.zip"}
    assert content(old) == {name: text for name, text in before.items() if name not in gone}
    assert not (old / ".policy.tmp").exists()
