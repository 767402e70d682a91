"""Every script of `examples/agents` trains an unmodified agent that beats what learns nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ecosystem

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "agents"
MARGIN = 0.1
"""Of the way from the reference to the optimum: by how much the greedy constant is beaten."""

LEARNERS = [
    ("sb3_ppo", ()),
    ("sb3_a2c", ()),
    ("sb3_dqn", ()),
    ("contrib_maskable_ppo", ()),
    ("contrib_trpo", ()),
    ("contrib_qrdqn", ()),
    ("contrib_recurrent_ppo", ()),
    ("cleanrl_ppo", ()),
    ("cleanrl_dqn", ()),
    ("tianshou_ppo", ()),
    ("rllib_ppo", ("vector_entry_point",)),
    ("rllib_ppo", ("sync",)),
    ("torchrl_ppo", ()),
]
OTHERS = {"judging", "sb3_raw_token_ids", "contrib_trpo_language_model"}
LANDMARK = re.compile(r"^(\w+) +plain return +(-?[\d.]+) +score +(-?[\d.]+)$", re.MULTILINE)


def run(script: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def scores(output: str) -> dict[str, float]:
    found = {name: float(score) for name, _, score in LANDMARK.findall(output)}
    assert set(found) == {"uniform", "reference", "best_constant", "optimum", "agent"}, output
    return found


def test_every_script_is_tested_and_short():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts == {script for script, _ in LEARNERS} | OTHERS
    for path in FOLDER.glob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (120 if path.stem == "judging" else 60), path.name


@pytest.mark.parametrize(
    ("script", "arguments"), LEARNERS, ids=lambda x: "-".join(x) if isinstance(x, tuple) else x
)
def test_agent_beats_uniform_reference_and_greedy_decoding(script, arguments, tmp_path):
    found = scores(run(script, *arguments, folder=tmp_path))
    assert found["reference"] == 0.0 and found["optimum"] == 1.0
    rivals = max(found["uniform"], found["reference"], found["best_constant"])
    assert found["agent"] >= rivals + MARGIN
    assert found["agent"] <= 1.0 + 1e-3  # the optimum is one


def test_an_mlp_on_raw_token_ids_runs_and_stays_below_the_reference(tmp_path):
    found = scores(run("sb3_raw_token_ids", folder=tmp_path))
    assert found["uniform"] < found["agent"] < found["reference"]


def test_trpo_trains_the_language_model(tmp_path):
    output = run("contrib_trpo_language_model", folder=tmp_path)
    fractions = dict(re.findall(r"^(\w+) .*objective_fraction +(-?[\d.]+)$", output, re.MULTILINE))
    assert float(fractions["reference"]) == pytest.approx(0.0, abs=1e-3)
    assert float(fractions["agent"]) >= 0.1


def test_trpo_with_fused_attention_is_refused_with_the_remedy():
    from sb3_contrib import TRPO

    from agents import LMActorCriticPolicy, RLHFCallback, make_vec_env

    env = make_vec_env("TokenRLHF-Exact-v0", n_envs=4, seed=0)
    model = TRPO(LMActorCriticPolicy, env, n_steps=8, policy_kwargs={"actor": "exact"})
    with pytest.raises(ValueError, match="'attention': 'eager'"):
        model.learn(32, callback=RLHFCallback())
    with pytest.raises(RuntimeError, match="derivative"):  # what it would be without the check
        model.learn(32)
