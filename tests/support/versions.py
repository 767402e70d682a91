"""`make test-versions`: part of the suite with the oldest and the newest libraries, and its table.

For each set of versions in constraints/ and each Python that is here, an environment is made in
.venv-versions/ and the tests of FILES run in it. torch is taken only where a build of it lies in a
folder that pip was told of (`find-links`), or with `--torch-from-index` wherever pip finds one:
what an index has for Linux may be gigabytes. Without torch, the part that needs none is run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from support.environments import new_environment, variables

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "versions.md"
SETS = {"oldest": ("3.10", "3.11"), "newest": ("3.10", "3.11", "3.12", "3.13")}
"""Set of constraints/ → the Pythons for which its versions have builds."""

FILES = (
    *("tests/maths", "tests/env/test_env_contract.py", "tests/env/test_gymnasium_wrappers.py"),
    *("tests/env/test_vector_infos.py", "tests/models/test_decode_step.py"),
    *("tests/rollout/test_vec_env.py", "tests/ppo/test_archives.py", "tests/ppo/test_ppo.py"),
)
SHOWN = ("gymnasium", "stable-baselines3", "transformers", "torch", "numpy")
NO_TORCH = """
import compileall, subprocess, sys
assert compileall.compile_dir("tokenenv", quiet=1, force=True)
assert compileall.compile_dir("agents", quiet=1, force=True)
import gymnasium, tokenenv, tokenenv.maths, agents, agents.cli
assert all(gymnasium.spec(name) for name in tokenenv.ENV_IDS)
for command in ("", *agents.cli._CONFIGS):
    call = [sys.executable, "-m", "agents.cli", *command.split(), "--help"]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
"""
"""Every module is read by this Python, the environments are registered, every command has help."""


@dataclass(frozen=True)
class Row:
    """A row of the table: cells as text."""

    libraries: str
    python: str
    gymnasium: str = "—"
    sb3: str = "—"
    transformers: str = "—"
    torch: str = "—"
    numpy: str = "—"
    result: str = ""


HEADER = ("libraries", "Python", *SHOWN, "result")


# The table ----------------------------------------------------------------------------------------


def rows_of(text: str) -> list[Row]:
    """The rows of the table of a page."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(*row) for row in cells if tuple(row) != HEADER and len(row) == len(fields(Row))]


def with_rows(text: str, new: list[Row]) -> str:
    """The page with these rows in the place of those with the same libraries and Python."""
    rows = {(row.libraries, row.python): row for row in [*rows_of(text), *new]}
    order = [(name, python) for name, pythons in SETS.items() for python in pythons]
    body = [astuple(rows[key]) for key in order if key in rows]
    lines = [HEADER, ("---",) * len(HEADER), *body]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")
    return re.sub(r"(?ms)^\| libraries .*?(?=\n\n|\n?\Z)", lambda _: table, text, count=1)


# Environments -------------------------------------------------------------------------------------


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    there = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for python in there:
        if python and subprocess.run([python, "-V"], capture_output=True).returncode == 0:
            return str(python)
    return None


def pip(python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call this process's pip for another interpreter."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=variables())


def pins(name: str) -> dict[str, str]:
    """Library → its line in a file of constraints, the marker included."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return {re.split(r"==", line)[0].lower().replace("_", "-"): line for line in lines}


def torch_for(python: Path | str, wanted: list[str], from_index: bool) -> str | None:
    """The first of the wanted versions (`torch==X`) that can be had."""
    if from_index:
        return wanted[0]
    for line in wanted:
        if (
            pip(
                python,
                "install",
                "--dry-run",
                "--ignore-installed",
                "--no-index",
                "--no-deps",
                line,
            ).returncode
            == 0
        ):
            return line
    return None


def dependencies() -> list[str]:
    """What pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["dependencies"]


def make(name: str, version: str, python: str, from_index: bool) -> tuple[Path, str | None]:
    """Make an environment of a set; its interpreter, and its torch.

    For the Python of this process its own torch is linked, where it is the one; pip installs the
    rest, as old libraries ask for others than new ones do.

    Raises:
        RuntimeError: pip could not install it, or its parts don't fit together; with what pip said.
    """
    folder = ROOT / ".venv-versions" / f"{name}-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    constraints = pins(f"constraints/{name}.txt")
    torch = torch_for(python, [constraints["torch"], pins("constraints.txt")["torch"]], from_index)
    lines = [line for library, line in constraints.items() if library != "torch"]
    lines += [torch] if torch else []
    own = importlib.metadata.distribution("torch")
    is_own = (
        version == f"{sys.version_info.major}.{sys.version_info.minor}"
        and f"torch=={own.version.split('+')[0]}" == torch
    )
    inside = new_environment(folder, python, [own] if is_own else [])
    (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
    needs_torch = ("torch", "stable-baselines3")
    wanted = [d for d in dependencies() if torch or not d.startswith(needs_torch)]
    more = ["pytest", "hypothesis"] if torch else []
    _install(inside, "-c", str(folder / "constraints.txt"), *wanted, *more)
    checked = pip(inside, "check")
    if checked.returncode:
        raise RuntimeError("; ".join(checked.stdout.strip().splitlines()))
    return inside, torch


def _install(python: Path, *arguments: str) -> None:
    done = pip(python, "install", "--quiet", "--only-binary", ":all:", *arguments)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def check(name: str, version: str, from_index: bool) -> Row:
    """Make an environment and run what can be run in it."""
    python = interpreter(version)
    if python is None:
        return Row(name, version, result="not run: this Python is not here")
    try:
        inside, torch = make(name, version, python, from_index)
    except RuntimeError as error:
        return Row(name, version, result=f"can't be installed: {error}")
    ask = "import importlib.metadata as m;print([m.version(n) for n in {!r}])"
    names = [n for n in SHOWN if torch or n not in ("torch", "stable-baselines3")]
    said = subprocess.run([inside, "-c", ask.format(names)], capture_output=True, text=True)
    found = dict(zip(names, re.findall(r"'([^']+)'", said.stdout), strict=True))
    command = [
        inside,
        "-m",
        "pytest",
        "-o",
        "addopts=-m 'not slow and not long'",
        "-p",
        "no:cacheprovider",
        *FILES,
    ]
    if torch is None:
        command = [inside, "-c", NO_TORCH]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=variables(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    say(done.stdout + done.stderr)
    last = re.sub(r" in [\d.]+s.*|=+ ?", "", (done.stdout.strip() or "?").splitlines()[-1])
    result = last if torch else "without torch: " + ("failed" if done.returncode else "passed")
    return Row(name, version, *(found.get(n, "—") for n in SHOWN), result)


def say(text: str) -> None:
    """Print at once, so that a stopped call has told what it found."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Renew the rows that are asked for; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = [f"{name}-{python}" for name, pythons in SETS.items() for python in pythons]
    parser.add_argument("rows", nargs="*", metavar="SET-PYTHON", help=f"of {', '.join(every)}")
    parser.add_argument("--torch-from-index", action="store_true", help="take torch from an index")
    arguments = parser.parse_args()
    if wrong := [row for row in arguments.rows if row not in every]:
        parser.error(f"{', '.join(wrong)}: no row of {', '.join(every)}")
    new = []
    for row in arguments.rows or every:
        new.append(check(*row.split("-"), arguments.torch_from_index))
        say(" | ".join(astuple(new[-1])))
        PAGE.write_text(with_rows(PAGE.read_text(encoding="utf-8"), new), encoding="utf-8")
    return int(any("failed" in row.result or "can't" in row.result for row in new))


if __name__ == "__main__":
    raise SystemExit(main())
