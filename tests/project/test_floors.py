"""Rooms stand in storeys: imports go down, through doors; `import tokenenv` stays light."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STOREYS: list[list[str]] = [
    # what everything stands on: files and numbers, the state machine; pure maths
    [
        *("tokenenv.json_files", "tokenenv.memory", "tokenenv.printable", "tokenenv.ranges"),
        *("tokenenv.stop_signals", "tokenenv.episodes", "tokenenv.notes"),
    ],
    ["tokenenv.user_code", "tokenenv.maths", "tokenenv.addresses"],
    # what a task is; what people bring; language models
    ["tokenenv.tasks", "tokenenv.remote"],
    ["tokenenv.data", "tokenenv.combinations"],
    ["tokenenv.models"],
    ["tokenenv.settings", "tokenenv.prompts"],
    ["tokenenv.rewards"],
    # the environments
    ["tokenenv.mdp"],
    ["tokenenv.rendering"],
    ["tokenenv.env"],
    ["tokenenv.vector_env"],
    ["tokenenv.wrappers"],
    # what is made of them: two more ids, the exact optimum, the bundled tasks
    ["tokenenv.feature_envs", "tokenenv.optimum", "tokenenv.serving"],
    ["tokenenv.building"],
    ["tokenenv.tasks.reviews.build", "tokenenv.tasks.exact.build"],  # the commands
    # the agent
    ["agents.settings", "agents.atomic_files", "agents.console", "agents.scaling"],
    ["agents.config", "agents.vec_env", "agents.policy", "agents.checkpoints"],
    ["agents.rollout", "agents.zoo", "agents.labelling"],
    ["agents.ppo", "agents.evaluation"],
    ["agents.credit", "agents.sft", "agents.reward_quality"],
    # runs, and what is made of agents
    ["agents.runs"],
    [
        *("agents.compare", "agents.verification", "agents.report", "agents.play"),
        *("agents.inspection", "agents.serving", "agents.plan"),
    ],
    ["agents.command_line", "agents.reward_quality.labels"],
    ["agents.cli"],
]
"""Rooms, storey by storey: a module imports from its own room and from lower storeys. A room is a
module or a package; a module belongs to the room with the longest name that begins its own."""

ROOMS = {room: storey for storey, rooms in enumerate(STOREYS) for room in rooms}

DOORLESS = {
    "agents.command_line": "what the command line takes one by one, some of it before torch",
    "agents.runs": "its door is light and `training` is not",
    "agents.scaling": "its door needs no torch, and what trains does",
    "agents.sft": "its settings are read before torch, and `training` needs it",
    "agents.reward_quality": "each of its parts is one question, some of them before torch",
    "agents.reward_quality.labels": "two commands, whose configurations are read before torch",
    "agents.compare": "one command, whose configuration the command line reads before torch",
    "agents.verification": "one command",
    "agents.zoo": "its door is of settings alone; files of any kind and its command lie further in",
    "agents.inspection": "one command, whose configuration the command line reads before torch",
    "agents.plan": "one command, whose configuration the command line reads before torch",
    "agents.play": "one command, whose configuration the command line reads before torch",
    "agents.serving": "one command, whose configuration the command line reads before torch",
    "agents.labelling": "one command, whose configuration the command line reads before torch",
    "agents.report": "one command, whose configuration the command line reads before jinja2",
    "tokenenv.tasks": "one package per task",
    "tokenenv.serving": "each of its parts needs libraries of an extra",
    "tokenenv.wrappers": "single and vector wrappers have the same names",
    "tokenenv.optimum": "its door has what users need; builders and checks go further in",
    "tokenenv.building": "the builds of bundled tasks take what they need",
}
"""Packages whose modules others may name, and why; into every other room one goes by its door."""

NEVER_IN_TOKENENV = {"agents", "stable_baselines3", "sb3_contrib"}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("tokenenv", "agents"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Every module that `path` imports anywhere in it, absolute or relative."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
            base = base if node.level else (node.module or "")
            for alias in node.names:
                child = f"{base}.{alias.name}"
                found.add(child if child in known else base)
    return found


def is_older_path(path: Path) -> bool:
    """Whether a module is only another name of one that moved."""
    body = ast.parse(path.read_text(encoding="utf-8")).body[1:]
    return len(body) == 1 and isinstance(body[0], ast.ImportFrom) and body[0].names[0].name == "*"


EVERYTHING = modules()
MODULES = {name: path for name, path in EVERYTHING.items() if not is_older_path(path)}
GRAPH = {
    name: {i for i in imports(name, path, set(EVERYTHING)) if i in EVERYTHING}
    for name, path in MODULES.items()
}


def room_of(name: str) -> str | None:
    """The room of a module; None of the packages' own doors, which anything may stand behind."""
    fitting = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last one the first; empty without any."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for imported in sorted(graph.get(name, ())):
            if found := visit(imported, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_the_walk_finds_the_modules_and_their_imports():
    assert {"tokenenv.env", "tokenenv.tasks.reviews", "agents.policy"} <= set(MODULES)
    assert {"tokenenv.episodes", "tokenenv.mdp"} <= GRAPH["tokenenv.env"]
    assert "tokenenv.language_model" in EVERYTHING and "tokenenv.language_model" not in MODULES
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_has_a_room_and_every_room_a_module():
    homeless = [name for name in MODULES if room_of(name) is None]
    assert sorted(homeless) == ["agents", "tokenenv"]
    assert {room_of(name) for name in MODULES} - {None} == set(ROOMS)


def test_every_folder_of_modules_has_a_door():
    """An `__init__.py` with a text; a pattern of `.gitignore` once kept one out of the project."""
    for folder in {path.parent for path in EVERYTHING.values()}:
        door = folder / "__init__.py"
        assert door.is_file(), f"{folder} has no __init__.py"
        assert ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))), f"{door} has no text"


def test_git_ignores_no_source():
    """Linters leave out what git ignores, too."""
    sources = [str(path.relative_to(ROOT)) for path in EVERYTHING.values()]
    sources += [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")]
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", *sources], cwd=ROOT, capture_output=True, text=True
    )
    if asked.returncode not in (0, 1):
        pytest.skip(f"git can't be asked here: {asked.stderr.strip()}")
    assert asked.stdout.split() == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downwards_and_through_doors(name):
    own = room_of(name)
    for imported in GRAPH[name]:
        room = room_of(imported)
        if own is None or room is None or room == own:
            continue
        assert imported in MODULES, f"{name} imports by an older path, {imported}"
        assert ROOMS[room] < ROOMS[own], f"{name} of {own} imports {imported}, of a higher storey"
        assert imported == room or room in DOORLESS, f"{name}: import {imported} from {room}"


@pytest.mark.parametrize("room", ROOMS)
def test_there_are_no_cycles_in_a_room(room):
    inside = {
        name: {i for i in GRAPH[name] if room_of(i) == room}
        for name in MODULES
        if room_of(name) == room
    }
    assert cycle(inside) == []


def test_the_page_on_architecture_has_the_storeys():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(STOREYS)))
    assert [re.findall(r"`([\w.]+)`", rooms) for _, rooms in rows] == STOREYS


def test_few_modules_lie_outside_of_rooms():
    """Besides older paths: `agents` has six at its top."""
    top = [name for name in MODULES if name.count(".") == 1 and name.startswith("agents.")]
    assert sum(MODULES[name].name != "__init__.py" for name in top) <= 5  # and `__init__`


def test_older_paths_are_short_and_hold_what_moved():
    """And the changelog says where to."""
    older = sorted(set(EVERYTHING) - set(MODULES))
    assert older
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in older:
        text = EVERYTHING[name].read_text(encoding="utf-8")
        assert len([line for line in text.splitlines() if line]) <= 3
        module = importlib.import_module(name)
        (target,) = imports(name, EVERYTHING[name], set(EVERYTHING))
        assert f"| `{name}` | `{target}` |" in changelog
        moved = importlib.import_module(target)
        for public in moved.__all__:
            assert getattr(module, public) is getattr(moved, public)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("tokenenv")])
def test_tokenenv_knows_no_agents(name):
    roots = {imported.split(".")[0] for imported in imports(name, MODULES[name], set(MODULES))}
    assert not roots & NEVER_IN_TOKENENV


_IMPORT = """
import json, sys, time
start = time.process_time()
import gymnasium
gymnasiums = time.process_time() - start
import tokenenv
ours = time.process_time() - start - gymnasiums
spec = gymnasium.spec("TokenRLHF-v0")
print(json.dumps({
    "over_gymnasium": ours / gymnasiums,
    "heavy": [m for m in ("torch", "transformers", "stable_baselines3") if m in sys.modules],
    "ids": list(tokenenv.ENV_IDS),
    "entry_points": [spec.entry_point, spec.vector_entry_point],
}))
"""


def test_import_registers_the_ids_and_is_light_and_fast():
    """In CPU time, and beside Gymnasium's import, which it needs anyway: found 0.004 of that."""
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert runs[0]["ids"] == [
        "TokenRLHF-v0",
        "TokenRLHF-Exact-v0",
        "TokenRLHF-Features-v0",
        "TokenRLHF-Features-TopK-v0",
    ]
    assert runs[0]["entry_points"] == [
        "tokenenv.env:TokenEnv",
        "tokenenv.vector_env:TokenVectorEnv",
    ]
    assert all(run["heavy"] == [] for run in runs)
    assert min(run["over_gymnasium"] for run in runs) <= 0.1
