"""What a project has besides code: its hooks, its license, its metadata."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_hooks_are_the_lines_of_make_check():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook for repo in hooks["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in entries] == lines
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in entries)


def test_ci_is_what_contributing_says():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(r"^make (.+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    targets = {word for line in lines for word in line.split() if not word.startswith("-")}
    assert targets - {"setup"} == set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize(("mark", "folder"), [("browser", "report"), ("ecosystem", "ecosystem")])
def test_marked_tests_are_where_make_looks_for_them(mark, folder):
    """Collecting all tests takes longer than some of these runs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"pytest tests/{folder} -m ({mark}|\$\({mark.upper()}\)) ", makefile)
    marked = {
        path.relative_to(ROOT / "tests").parts[0]
        for path in (ROOT / "tests").rglob("*.py")
        if f"mark.{mark}\n" in path.read_text(encoding="utf-8")
    }
    assert marked == {folder}


def test_the_license_is_that_of_the_metadata():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "MIT"' in project and 'license-files = ["LICENSE"]' in project
    version = importlib.metadata.version("tokenrlhf")
    assert f'version = "{version}"' in project
