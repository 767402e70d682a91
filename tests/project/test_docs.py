"""Every code block of README and docs is run, and what the pages name exists.

Of bash blocks, every line is checked for being a command with the options that it has. The slow
suite runs Python blocks as they are, and the commands of `tokenrlhf`, made small by more options. A
text block right below a Python block is what that prints.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import tyro
from support.warm_python import run_python

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """Its path below the project, as `docs/faq.md`."""
    return page.relative_to(ROOT).as_posix()


CORRECTNESS = ROOT / "docs" / "correctness.md"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of a page that are of one kind."""
    return [body for _, of, body in FENCE.findall(page.read_text(encoding="utf-8")) if of == kind]


def python_blocks(page: Path) -> list[tuple[str, str | None]]:
    """The Python blocks of a page, each with what it prints, or None where no text says it."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    printed: dict[int, str] = {
        before.start(): after[3]
        for before, after in pairwise(fences)
        if after[2] == "text" and text[before.end() : after.start()] == "\n\n"
    }
    return [(f[3], printed.get(f.start())) for f in fences if f[2] == "python"]


BLOCKS = [
    pytest.param(block, output, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, (block, output) in enumerate(python_blocks(page))
]
COMMANDS = {
    page: [
        words
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]
    for page in PAGES
}
LINES = [
    pytest.param(words, id=f"{name_of(page)}-{shlex.join(words)}")
    for page, lines in COMMANDS.items()
    for words in lines
]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_there_is_no_block_that_no_test_knows(page):
    kinds = [kind for _, kind, _ in FENCE.findall(page.read_text(encoding="utf-8"))]
    assert set(kinds) <= {"python", "bash", "text", "yaml"}
    assert 2 * len(kinds) == page.read_text(encoding="utf-8").count("```")


@pytest.mark.slow
@pytest.mark.parametrize(("block", "output"), BLOCKS)
def test_python_block_runs_and_prints_what_the_page_says(block, output, tmp_path):
    done = run_python(block, folder=tmp_path, environment={"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert output is None or done.stdout == output


def test_outputs_are_found_below_their_blocks():
    printed = {name_of(p): [o for _, o in python_blocks(p) if o is not None] for p in PAGES}
    assert len(printed["README.md"]) == 1 and printed["README.md"][0].startswith("prompt ")
    assert len(printed["docs/faq.md"]) == 2 and not printed["docs/training.md"]


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# Commands -----------------------------------------------------------------------------------------

SMALLER = {
    "train": "--total-tokens 512 --n-envs 16 --n-steps 16 --batch-size 128 --eval-prompts 4 "
    "--eval-responses 8 --device cpu",
    "evaluate": "--eval-prompts 4 --eval-responses 8",
    "sample": "--n 1",
    "explain": "--seed 1",
    "play": "--device cpu",
    "sft": "--epochs 1 --device cpu",
    "sample-pairs": "--n 1 --max-prompts 24 --device cpu",
    "reward-model": "--epochs 1 --device cpu",
    "labels": "--epochs 1 --seeds 1 --held-out-pairs 20 --device cpu",
    "audit": "--max-texts 80 --responses 2 --probed 40 --resamples 1000 --device cpu",
    "data": "",
    "best-of-n": "--eval-prompts 4 --device cpu",
    "verify": "--no-learning",
    "report": "",
    "plan": "",
    "zoo": "",
    "serve-reward": "",
    "compare": "--envs CartPole-v1 --agents ppo --steps 256 --seeds 1 --episodes 2 "
    "--fingerprint-episodes 4 --workers 1",
}
"""What is said again counts, so the options that a page shows are still read."""
RUN_ELSEWHERE = ("verify", "serve-reward")
"""What a page's folder changes nothing about, or what ends with a signal alone:
tests/compare/test_verification.py and tests/serving/test_serve_reward.py run them."""


@pytest.mark.parametrize("words", LINES)
def test_line_of_a_bash_block_is_a_command(words):
    program, *arguments = words
    if program == "make":
        dry = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *arguments], capture_output=True, text=True
        )
        assert dry.returncode == 0 and ".venv" in dry.stdout, dry.stderr
    elif program == "tokenrlhf":
        from agents.cli import Command

        assert arguments[0] in SMALLER
        tyro.cli(Command, args=arguments, prog="tokenrlhf")
    elif program == "pip":
        assert arguments[0] == "install"
        assert all((ROOT / path).exists() for path in {".", "constraints.txt"} & set(arguments))
        extras = re.findall(r"\.\[(\w+)\]", shlex.join(arguments))
        assert set(extras) <= {
            *("dev", "data", "ecosystem", "browser", "ranks", "real", "search", "serve", "openenv")
        }
    elif program in ("torchrun", "accelerate"):
        from agents.cli import Command

        place = arguments.index("agents.cli")
        assert arguments[place - 1] in ("-m", "--module")
        tyro.cli(Command, args=arguments[place + 1 :], prog="tokenrlhf")
    else:  # examples/*.py are run by tests/project/test_examples.py
        assert program == "python" and (ROOT / arguments[0]).parent == ROOT / "examples"
        assert (ROOT / arguments[0]).is_file() and len(arguments) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page, lines in COMMANDS.items() if "tokenrlhf" in str(lines)],
    ids=name_of,
)
def test_commands_of_a_page_run(page, tmp_path, monkeypatch):
    """One after another in one folder, as a reader would type them."""
    from agents.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\ne\nq\n"))
    pair = '{"prompt": "We saw %d films.", "chosen": " They were fun.", "rejected": " Bad."}'
    Path("pairs.jsonl").write_text("\n".join(pair % number for number in range(40)))
    for block in blocks(page, "yaml"):  # its first line is a comment with the file's name
        Path(block.splitlines()[0].removeprefix("#").strip()).write_text(block)
    good = '{"prompt": "We saw %d films.", "response": " They were fun."}'
    Path("demonstrations.jsonl").write_text("\n".join(good % number for number in range(40)))
    for program, *arguments in COMMANDS[page]:
        if program == "tokenrlhf" and arguments[0] not in RUN_ELSEWHERE:
            command = [*arguments, *SMALLER[arguments[0]].split()]
            assert main(command) == 0, shlex.join(command)


# Tests that pages name ----------------------------------------------------------------------------

NAMED_TEST = re.compile(r"tests/([\w/]+\.py)::(\w+)(?:\[[^]]*\])?( \(slow\))?")
NO_TEST = re.compile(r"no test \(none is called `(\w+)`\): ")
ALL_TESTS = {
    name
    for file in sorted((ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"^ *def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
}


@functools.cache
def known_tests(file: Path) -> dict[str, bool]:
    """Name of each test function of a file → whether it is a slow one, in all of its cases."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_module = "pytestmark = pytest.mark.slow" in map(ast.unparse, tree.body)
    return {
        node.name: of_module or "pytest.mark.slow" in map(ast.unparse, node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


def row_faults(row: dict[str, str], tests: set[str]) -> list[str]:
    """What is wrong with the tests that a row names, or says that there are none of."""
    faults = []
    for named in row["test"].split("<br>"):
        without = NO_TEST.match(named)
        if without is not None:
            key = without.group(1)
            stands = sorted(name for name in tests if key in name.lower())
            if stands:
                faults.append(f"says that nothing is called {key!r}, and {stands[0]} is")
            words = re.sub(r"\W+", "_", " ".join(row.values()).lower().replace(f"`{key}`", ""))
            if not set(key.split("_")) <= set(words.split("_")):
                faults.append(f"{key!r} is not what the row is about")
        elif not NAMED_TEST.fullmatch(named):
            faults.append(f"{named[:60]!r} is neither a test nor the name that one would have")
    return faults


def test_every_row_of_correctness_names_a_test_or_what_one_would_be_called():
    found = tables(CORRECTNESS)
    assert len(found) >= 10 and min(map(len, found)) >= 3
    for row in (row for table in found for row in table):
        assert row_faults(row, ALL_TESTS) == [], next(iter(row.values()))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("no test (none is called `trpo`): nobody has tried TRPO", "test_trpo_trains"),
        ("no test: TRPO is not tried", "neither a test nor the name"),
        ("no test (none is called `zebra`): TRPO is not tried", "not what the row is about"),
        ("tests/test_a.py::test_a, but not quite", "neither a test nor the name"),
        ("no test (none is called `twice`): it is not tried", None),
        ("tests/ecosystem/test_agents.py::test_trpo_trains", None),
    ],
)
def test_a_row_that_says_no_test_while_one_stands_is_noticed(said, fault):
    row = {"detail": "TRPO differentiates twice", "test": said}
    found = row_faults(row, {"test_trpo_trains", "test_a"})
    assert found == [] if fault is None else fault in found[0]


# The cadence of `exact` ---------------------------------------------------------------------------


def test_how_often_the_cadence_is_played_is_said_as_the_card_has_it():
    """Wherever it is said, by the reference and at the optimum: the numbers are the card's."""
    import tokenenv.tasks.exact as exact

    card = json.loads((exact.FOLDER / "card.json").read_text(encoding="utf-8"))["optimum"]
    rare = f"once in {1 / card['reference_cadence_probability']:.0f} answers"
    often = f"{card['optimum_cadence_probability']:.0%}"
    places = [ROOT / "docs" / name for name in ("exact.md", "tasks.md")]
    texts = {str(place): place.read_text(encoding="utf-8") for place in places}
    texts["tokenenv.tasks.exact"] = exact.__doc__ or ""
    for place, text in texts.items():
        said = " ".join(text.split())
        assert rare in said and often in said, f"{place}: {rare}, {often}"
        assert set(re.findall(r"once in (?:\w+ )?\d+ answers", said)) == {rare}, place


# Options that pages name --------------------------------------------------------------------------


def defaults() -> dict[str, dict[str, object]]:
    """Owner of options, as the page calls it → name → default."""
    from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, TokenPPO
    from agents.config import TrainConfig
    from agents.labelling.config import SamplePairsConfig
    from agents.runs.config import EvaluateConfig, RewardModelConfig, SampleConfig
    from agents.sft.config import SFTConfig
    from tokenenv.env import TokenEnv

    owners = {
        "env": TokenEnv,
        "TokenPPO": TokenPPO,
        "buffer": EpisodeRolloutBuffer,
        "policy": LMActorCriticPolicy,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "sample": SampleConfig,
        "reward-model": RewardModelConfig,
        "sft": SFTConfig,
        "sample-pairs": SamplePairsConfig,
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
            assert is_flag == (owner not in ("env", "TokenPPO", "buffer", "policy")), row
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
    from tokenenv.maths.advantages import ADVANTAGE_ESTIMATORS
    from tokenenv.maths.kl import KL_ESTIMATORS

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
