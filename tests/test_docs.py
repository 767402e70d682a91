"""Every Python block of README and docs runs, every example too; what they name exists."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CORRECTNESS = ROOT / "docs" / "correctness.md"
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example_runs(example, tmp_path):
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_of_the_pages_are_commands():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in makefile
    from agents.cli import Command

    names = re.findall(r'name="([\w-]+)"|name=\'([\w-]+)\'', repr(Command))
    known = {a or b for a, b in names}
    used = set(re.findall(r"^tokenrlhf ([\w-]+)", text, re.MULTILINE))
    assert used and used <= known


# Tests that pages name ----------------------------------------------------------------------------

NAMED_TEST = re.compile(r"tests/(\w+\.py)::(\w+)(?:\[[^]]*\])?( \(slow\))?")


def known_tests(file: Path) -> dict[str, bool]:
    """Name of each test function of a file → whether it is a slow one."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_module = "pytestmark = pytest.mark.slow" in map(ast.unparse, tree.body)
    return {
        node.name: of_module or any("mark.slow" in ast.unparse(d) for d in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for file, name, says_slow in NAMED_TEST.findall(text):
        known = known_tests(ROOT / "tests" / file)
        assert name in known, f"{page.name} names tests/{file}::{name}, which does not exist"
        assert bool(says_slow) == known[name], f"{page.name}: is tests/{file}::{name} slow?"
    for path in re.findall(r"`(?:python )?((?:agents|tokenenv|examples|tests)/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), f"{page.name}: {path}"


def tables(page: Path) -> list[list[dict[str, str]]]:
    """Every table of a page, as rows of header → cell."""
    found: list[list[dict[str, str]]] = []
    headers: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            headers = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not headers:
            headers = cells
            found.append([])
        elif not all(set(cell) <= {"-", ":"} for cell in cells):
            found[-1].append(dict(zip(headers, cells, strict=True)))
    return found


def test_every_row_of_correctness_names_a_test_or_says_that_there_is_none():
    found = tables(CORRECTNESS)
    assert len(found) >= 10 and min(map(len, found)) >= 3
    for row in (row for table in found for row in table):
        first = next(iter(row.values()))
        for named in row["test"].split("<br>"):
            assert NAMED_TEST.match(named) or named.startswith("no test: "), first


# Options that pages name --------------------------------------------------------------------------


def defaults() -> dict[str, dict[str, object]]:
    """Owner of options, as the page calls it → name → default."""
    from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, TokenPPO, config
    from tokenenv.env import TokenEnv

    owners = {
        "env": TokenEnv,
        "TokenPPO": TokenPPO,
        "buffer": EpisodeRolloutBuffer,
        "policy": LMActorCriticPolicy,
        "train": config.TrainConfig,
        "evaluate": config.EvaluateConfig,
        "sample": config.SampleConfig,
        "reward-model": config.RewardModelConfig,
    }
    return {
        owner: {name: p.default for name, p in inspect.signature(it).parameters.items()}
        for owner, it in owners.items()
    }


def test_options_of_correctness_and_their_defaults_are_those_of_the_code():
    """All options of a row together have the defaults that the row shows, flags included."""
    known, number = defaults(), 0
    words = re.compile(rf"({'|'.join(known)})(?= `)|`([^`]+)`( \(no flag\))?")
    for row in (row for table in tables(CORRECTNESS) for row in table if "option" in row):
        expected: set[str] = set()
        owner, has_option = "", row["option"] != "always"
        for said_owner, said_name, no_flag in words.findall(row["option"]):
            owner = said_owner or owner
            if said_owner:
                continue
            is_flag = said_name.startswith("--")
            assert is_flag == (owner in ("train", "evaluate", "sample", "reward-model")), row
            name = said_name.removeprefix("--").replace("-", "_") if is_flag else said_name
            assert name in known[owner], f"{owner} has no option {name}"
            expected.add(repr(known[owner][name]))
            if not is_flag:
                assert (name in known["train"]) != bool(no_flag), f"is {name} a flag?"
                expected |= set() if no_flag else {repr(known["train"][name])}
            number += 1
        shown = set(re.findall(r"`([^`]+)`", row["default"]))
        assert shown == expected, f"{row['option']}: {shown} is not {expected}"
        assert has_option == bool(expected) == (row["default"] != "—"), row
    assert number >= 30


def test_estimators_of_correctness_are_all_there_are():
    from tokenenv.credit import ADVANTAGE_ESTIMATORS
    from tokenenv.shaping import KL_ESTIMATORS

    found = [
        tuple(row["estimator"].split(" ")[0].strip("`") for row in table)
        for table in tables(CORRECTNESS)
        if "estimator" in table[0]
    ]
    assert found == [KL_ESTIMATORS, ADVANTAGE_ESTIMATORS]


def test_sections_of_verify_that_a_page_names_exist():
    source = (ROOT / "agents" / "verification" / "command.py").read_text(encoding="utf-8")
    named = re.findall(r"section \*([^*]+)\*", CORRECTNESS.read_text(encoding="utf-8"))
    assert named
    for section in named:
        assert f'"{section}": ' in source, section
