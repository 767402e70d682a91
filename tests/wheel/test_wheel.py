"""The wheel of `make wheel` works alone: in an empty environment, away from these files."""

from __future__ import annotations

import email
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.environments import closure, new_environment, variables

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "--total-tokens 512 --n-envs 16 --n-steps 16 --batch-size 128 --eval-prompts 4 "
    "--eval-responses 8 --device cpu"
)


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The one wheel in dist/."""
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    assert len(wheels) == 1, f"{len(wheels)} wheels in dist/: run `make wheel`"
    return wheels[0]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment that the wheel was installed in.

    Of the libraries here, those are linked into it that the wheel's metadata ask for, directly or
    in turn, and no others: what it needs and does not say is missing there.
    """
    (metadata,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA"))
    said = email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata))
    required = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    python = new_environment(folder, sys.executable, closure(required))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    install += ["--no-deps", "--no-index", "--no-compile", wheel]
    done = subprocess.run(install, capture_output=True, text=True, env=variables())
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(program: Path, arguments: str, folder: Path) -> str:
    """What a program of the environment prints; it has to succeed."""
    done = subprocess.run(
        [program, *arguments.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        env=variables(COLUMNS="150"),
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_both_packages_and_their_files_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("tokenenv", "agents")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == ours
    kinds = {Path(name).suffix for name in names}
    assert kinds >= {".py", ".safetensors", ".json", ".md", ".yaml", ".txt", ".j2", ".js", ".css"}


def test_the_wheel_has_license_and_readme_in_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in archive.namelist())
    text = archive.read(metadata).decode()
    assert (ROOT / "README.md").read_text(encoding="utf-8") in text
    assert "Requires-Python: >=3.10" in text and "License-Expression: MIT" in text


def test_it_is_imported_from_its_environment(environment, tmp_path):
    code = "import json,tokenenv,agents;print(json.dumps([tokenenv.__file__,agents.__file__]))"
    (tmp_path / "where.py").write_text(code)
    found = json.loads(run(environment / "python", "where.py", tmp_path))
    assert all(Path(file).is_relative_to(environment.parent) for file in found), found


def test_no_other_library_is_there(environment, tmp_path):
    """So that what stands below needs none."""
    (tmp_path / "spec.py").write_text(
        "from importlib.util import find_spec\n"
        "print([n for n in ('pytest', 'peft', 'datasets', 'mkdocs') if find_spec(n)])"
    )
    assert run(environment / "python", "spec.py", tmp_path).strip() == "[]"


def test_verify_passes(environment, tmp_path):
    printed = run(environment / "tokenrlhf", "verify --no-learning --json v.json", tmp_path)
    assert "all passed" in printed
    result = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert result["passed"] and len(result["checks"]) >= 20


def test_a_training_and_its_page(environment, tmp_path):
    run(environment / "tokenrlhf", f"train --out run {SMALL}", tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    run(environment / "tokenrlhf", "report run", tmp_path)
    (page,) = (tmp_path / "run").rglob("*.html")
    assert "<script" in page.read_text(encoding="utf-8")


def test_the_tuned_settings_and_the_word_lists_are_read(environment, tmp_path):
    assert "CartPole-v1" in run(environment / "tokenrlhf", "zoo", tmp_path)
    (tmp_path / "lists.py").write_text(
        "from agents.reward_quality.text_features import load_word_lists\n"
        "from agents.reward_quality.audit.edits import load_sentences\n"
        "print(bool(load_word_lists()) and bool(load_sentences()))"
    )
    assert run(environment / "python", "lists.py", tmp_path).strip() == "True"
