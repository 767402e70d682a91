"""Every script of `examples/agents` trains an unmodified agent that beats what learns nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tokenenv.optimum import enumerate_task, plain_return

pytestmark = pytest.mark.ecosystem

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "agents"
MARGIN = 0.1
"""Of the way from the reference to the optimum: by how much the greedy constant is beaten."""

GREEDY = 0.462
"""The score of greedy decoding, which is action 0 among the k likeliest tokens."""

SCRIPTS = [
    ("sb3_ppo", ()),
    ("sb3_a2c", ()),
    ("sb3_a2c", ("TokenRLHF-Features-v0",)),
    ("sb3_dqn", ()),
    ("contrib_maskable_ppo", ()),
    ("contrib_trpo", ()),
    ("contrib_qrdqn", ()),
    ("contrib_recurrent_ppo", ()),
    ("cleanrl_ppo", ()),
    pytest.param("cleanrl_dqn", (), marks=pytest.mark.long),
    ("tianshou_ppo", ()),
    ("rllib_ppo", ("vector_entry_point",)),
    pytest.param("rllib_ppo", ("sync",), marks=pytest.mark.long),
    pytest.param(
        *("rllib_ppo", ("vector_entry_point", "TokenRLHF-Features-v0")), marks=pytest.mark.long
    ),
    ("torchrl_ppo", ()),
]
"""`long`: of libraries that have a quicker one; `make test-ecosystem-long` runs them."""

LEARNERS = [getattr(script, "values", script) for script in SCRIPTS]
OTHERS = {"judging", "sb3_raw_token_ids", "contrib_trpo_language_model", "openenv_sb3_ppo"}
LANDMARK = re.compile(r"^(\w+) +plain return +(-?[\d.]+) +score +(-?[\d.]+)$", re.MULTILINE)


def run(script: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def scores(output: str) -> dict[str, float]:
    found = {name: float(score) for name, _, score in LANDMARK.findall(output)}
    assert set(found) == {"uniform", "reference", "best_constant", "optimum", "agent"}, output
    return found


def test_every_script_is_tested_short_and_in_the_table():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts == {script for script, _ in LEARNERS} | OTHERS
    for path in FOLDER.glob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (140 if path.stem == "judging" else 60), path.name
    table = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    found = set(
        re.findall(r"`python examples/agents/(\w+)\.py(?: (.+))?` \|$", table, re.MULTILINE)
    )
    commands = [(script, *arguments) for script, arguments in LEARNERS]
    commands += [(script,) for script in OTHERS - {"judging"}]
    assert found == {(script, " ".join(arguments)) for script, *arguments in commands}


def test_the_judge_agrees_with_the_enumerated_task(capsys, monkeypatch):
    """Greedy decoding and a uniform choice of the best three, from the tree instead of by steps."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from judging import judge

    verdict = judge(
        lambda _: 0,
        gym.make("tokenenv:TokenRLHF-Features-TopK-v0", split="eval", task="exact", k=3),
    )
    assert scores(capsys.readouterr().out)["agent"] == pytest.approx(GREEDY, abs=1e-3)
    tree = enumerate_task("exact")
    ranks = [(-level).argsort(axis=-1).argsort(axis=-1) for level in tree.ref_log_probs]
    greedy, uniform = ([np.where(r < k, -np.log(k), -np.inf) for r in ranks] for k in (1, 3))
    assert verdict.agent == pytest.approx(plain_return(greedy, tree), abs=1e-4)
    assert verdict.best_constant == verdict.agent  # of three actions: the others are worse
    assert verdict.reference == pytest.approx(plain_return(tree.ref_log_probs, tree), abs=1e-4)
    # 100 responses whose returns have a standard deviation of about 5
    assert verdict.uniform == pytest.approx(plain_return(uniform, tree), abs=4 * 5 / 100**0.5)


@pytest.mark.parametrize(
    ("script", "arguments"), SCRIPTS, ids=lambda x: "-".join(x) if isinstance(x, tuple) else x
)
def test_agent_beats_uniform_reference_and_the_best_constant_action(script, arguments, tmp_path):
    found = scores(run(script, *arguments, folder=tmp_path))
    if "TokenRLHF-Features-v0" not in arguments:  # its actions are tokens: no constant is greedy
        assert found["best_constant"] == pytest.approx(GREEDY, abs=1e-3)
    rivals = max(found["uniform"], found["reference"], found["best_constant"])
    assert found["agent"] >= rivals + MARGIN
    assert found["agent"] <= 1.0 + 1e-3  # the optimum is one


def test_an_mlp_on_raw_token_ids_learns_at_most_to_say_nothing(tmp_path):
    found = scores(run("sb3_raw_token_ids", folder=tmp_path))
    assert found["uniform"] < -1.0 and found["agent"] > -1.0  # far from the noise it began with
    assert found["agent"] <= found["best_constant"] + MARGIN  # EOS at once


def test_ppo_learns_behind_openenv(tmp_path):
    """A short training: it leaves the noise that it began with, and nothing more is asked."""
    pytest.importorskip("openenv.core", reason="OpenEnv is not installed")
    found = scores(run("openenv_sb3_ppo", folder=tmp_path))
    assert found["agent"] > max(found["uniform"], found["reference"]) + MARGIN


def test_trpo_trains_the_language_model(tmp_path):
    output = run("contrib_trpo_language_model", folder=tmp_path)
    fractions = dict(re.findall(r"^(\w+) .*objective_fraction +(-?[\d.]+)$", output, re.MULTILINE))
    assert float(fractions["reference"]) == pytest.approx(0.0, abs=1e-3)
    assert 0.3 <= float(fractions["agent"]) <= 1.0


def test_trpo_with_fused_attention_is_refused_with_the_remedy():
    from sb3_contrib import TRPO

    from agents import LMActorCriticPolicy, RLHFCallback, make_vec_env

    env = make_vec_env("TokenRLHF-Exact-v0", n_envs=4, seed=0)
    kwargs = {"n_steps": 8, "batch_size": 32, "policy_kwargs": {"actor": "exact"}}
    model = TRPO(LMActorCriticPolicy, env, **kwargs)
    with pytest.raises(ValueError, match="'attention': 'eager'"):
        model.learn(32, callback=RLHFCallback())
    with pytest.raises(RuntimeError, match="derivative"):  # what it would be without the check
        model.learn(32)
