"""Modules import only from lower floors, and `import tokenenv` stays light."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: dict[str, float] = {
    # 0: pure maths, the state machine, what a task is
    "tokenenv": 0.0,
    "tokenenv.memory": 0.0,
    "tokenenv.printable": 0.0,
    "tokenenv.json_files": 0.0,
    "tokenenv.ranges": 0.0,
    "tokenenv.shaping": 0.0,
    "tokenenv.credit": 0.0,
    "tokenenv.episodes": 0.0,
    "tokenenv.stop_signals": 0.0,
    "tokenenv.user_code": 0.05,
    "tokenenv.tasks.prompts": 0.05,
    "tokenenv.tasks": 0.1,
    "tokenenv.tasks.reviews.nodes": 0.0,
    "tokenenv.tasks.reviews.grammar": 0.1,
    "tokenenv.tasks.reviews.parsing": 0.2,
    "tokenenv.tasks.reviews.prompts": 0.3,
    "tokenenv.tasks.reviews.gold": 0.3,
    "tokenenv.tasks.reviews": 0.4,
    "tokenenv.tasks.reviews.build": 0.5,  # finds `tokenenv.building.reviews` by name
    "tokenenv.tasks.exact.grammar": 0.2,
    "tokenenv.tasks.exact.gold": 0.3,
    "tokenenv.tasks.exact": 0.4,
    "tokenenv.tasks.exact.build": 0.5,  # finds `tokenenv.building.exact` by name
    # 1: language models
    "tokenenv.decode_step": 1.0,
    "tokenenv.encoding": 1.0,
    "tokenenv.model_preparation": 1.0,
    "tokenenv.language_model": 1.05,
    "tokenenv.log_probs": 1.1,
    "tokenenv.weight_watch": 1.0,
    "tokenenv.slot_cache": 1.1,
    "tokenenv.step_comparison": 1.2,
    "tokenenv.cache_check": 1.3,
    # 2: what is frozen, and the arguments of an environment
    "tokenenv.settings": 2.0,
    "tokenenv.sampling": 2.0,
    "tokenenv.reference": 2.0,
    "tokenenv.reward_model": 2.0,
    "tokenenv.rewards": 2.1,
    # 3: scoring, preferences
    "tokenenv.scoring": 3.0,
    "tokenenv.state_reader": 3.0,
    "tokenenv.preferences": 3.0,
    # 4: the environments
    "tokenenv.token_mdp": 4.0,
    "tokenenv.episode_image": 4.1,
    "tokenenv.rendering": 4.1,
    "tokenenv.vector_infos": 4.0,
    "tokenenv.env": 4.2,
    "tokenenv.vector_env": 4.3,
    "tokenenv.wrappers.checks": 4.4,
    "tokenenv.wrappers.hidden_state": 4.5,
    "tokenenv.wrappers.top_k": 4.5,
    "tokenenv.wrappers.log_prob_shaping": 4.5,
    "tokenenv.wrappers.mask_rules": 4.5,
    "tokenenv.wrappers.action_mask": 4.6,
    "tokenenv.wrappers.vector": 4.7,
    "tokenenv.wrappers": 4.8,
    "tokenenv.feature_envs": 4.9,
    # 5: the optimum, and what is made from all of it
    "tokenenv.optimum.log_sums": 5.0,
    "tokenenv.optimum.mixture": 5.02,
    "tokenenv.optimum.prefix_tree": 5.0,
    "tokenenv.optimum.policies": 5.05,
    "tokenenv.optimum.enumeration": 5.1,
    "tokenenv.optimum.tree_sampling": 5.1,
    "tokenenv.optimum.exact": 5.2,
    "tokenenv.optimum.gradients": 5.3,
    "tokenenv.optimum.plain_return": 5.3,
    "tokenenv.optimum.short_sighted": 5.3,
    "tokenenv.optimum": 5.4,
    "tokenenv.laboratory": 5.45,
    "tokenenv.building": 5.5,
    "tokenenv.building.parts": 5.6,
    "tokenenv.building.builder": 5.6,
    "tokenenv.building.card_parts": 5.6,
    "tokenenv.building.measuring": 5.65,
    "tokenenv.building.reviews_card": 5.65,
    "tokenenv.building.reviews_measuring": 5.7,
    "tokenenv.building.reviews": 5.8,
    "tokenenv.building.exact_card": 5.65,
    "tokenenv.building.exact_measuring": 5.7,
    "tokenenv.building.exact_melodies": 5.7,
    "tokenenv.building.exact": 5.8,
    # 6: the parts of an agent
    "agents.call_stack": 6.0,
    "agents.checks": 6.05,
    "agents.console": 6.0,
    "agents.value_head": 6.0,
    "agents.critic": 6.02,
    "agents.episode_records": 6.0,
    "agents.fast_paths": 6.0,
    "agents.files": 6.0,
    "agents.output_folder": 6.05,
    "agents.json_settings": 6.0,
    "agents.kl_settings": 6.0,
    "agents.kl_penalty": 6.05,
    "agents.losses": 6.1,
    "agents.minibatch_update": 6.2,
    "agents.new_steps": 6.02,
    "agents.packing": 6.0,
    "agents.policy_checks": 6.0,
    "agents.policy_files": 6.05,
    "agents.precision": 6.0,
    "agents.precision_choice": 6.4,
    "agents.sampling_check": 6.2,
    "agents.rollout_numbers": 6.0,
    "agents.segments": 6.0,
    "agents.token_scores": 6.0,
    "agents.vec_infos": 6.0,
    "agents.vec_env": 6.05,
    "agents.deferred_scoring": 6.1,
    "agents.groups": 6.1,
    "agents.policy": 6.1,
    "agents.buffer": 6.2,
    "agents.critic_warmup": 6.0,
    "agents.agreement": 6.3,
    "agents.env_checks": 6.3,
    # 7: the agent
    "agents.callbacks": 7.0,
    "agents.held_out": 6.0,
    "agents.evaluation": 7.0,
    "agents.ppo": 7.1,
    "agents": 7.9,
    # 8: runs. A run's configuration is a record that the parts of a run read, so it lies below them
    "agents.config": 8.0,
    "agents.curves": 8.0,
    "agents.runs": 8.1,
    "agents.run_log": 8.2,
    "agents.progress": 8.2,
    "agents.training": 8.3,
    "agents.reward_model_command": 8.3,
    "agents.verification": 8.0,
    "agents.verification.checks": 8.1,
    "agents.verification.mathematics": 8.2,
    "agents.verification.environment": 8.2,
    "agents.verification.estimate": 8.2,
    "agents.verification.learning": 8.2,
    "agents.verification.command": 8.3,
    "agents.compare": 8.0,
    "agents.compare.config": 8.1,
    "agents.compare.statistics": 8.1,
    "agents.compare.worlds": 8.1,
    "agents.compare.rollouts": 8.2,
    "agents.compare.best_response": 8.1,
    "agents.compare.policy_gradient": 8.3,
    "agents.compare.scales": 8.3,
    "agents.compare.fingerprints": 8.4,
    "agents.compare.learners": 8.2,
    "agents.compare.judges": 8.3,
    "agents.compare.kept_results": 8.45,
    "agents.compare.jobs": 8.5,
    "agents.compare.workers": 8.6,
    "agents.compare.results": 8.2,
    "agents.compare.figures": 8.3,
    "agents.compare.page": 8.4,
    "agents.compare.terminal": 8.5,
    "agents.compare.command": 8.7,
    # 9: the command line
    "agents.cli": 9.0,
}
"""Module → floor. A module may import only from strictly lower ones, so there can be no cycle."""

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


MODULES = modules()


def test_the_walk_finds_the_modules_and_their_imports():
    assert {"tokenenv.env", "tokenenv.tasks.reviews", "agents.policy"} <= set(MODULES)
    found = imports("tokenenv.env", MODULES["tokenenv.env"], set(MODULES))
    assert {"numpy", "tokenenv.episodes", "tokenenv.token_mdp"} <= found


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_strictly_downwards(name):
    assert name in FLOORS, f"{name} is new: give it a floor in tests/test_floors.py"
    for imported in imports(name, MODULES[name], set(MODULES)):
        if imported.split(".")[0] not in ("tokenenv", "agents"):
            continue
        assert imported in FLOORS, f"{name} imports {imported}, which has no floor"
        assert FLOORS[imported] < FLOORS[name], (
            f"{name} (floor {FLOORS[name]}) imports {imported} (floor {FLOORS[imported]})"
        )


def test_the_map_in_the_readme_is_this_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = {
        f"{package}.{name.rstrip('/')}": int(floor)
        for floor, package, names in re.findall(
            r"^\| (\d) \| `(\w+)/`: (.*) \|$", readme, re.MULTILINE
        )
        for name in re.findall(r"`([\w/]+)`", names)
    }
    known: dict[str, int] = {}
    for name, floor in FLOORS.items():
        if "." in name:  # a folder stands for what is in it
            known.setdefault(".".join(name.split(".")[:2]), int(floor))
    assert drawn == known


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
