"""The zoo: its files, their names on the command line, and what no file may say."""

from __future__ import annotations

import fnmatch
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from rich.console import Console

from agents.cli import _parse, main
from agents.config import TrainConfig
from agents.verification.learning import SETTINGS, exact_agent
from agents.zoo import environment_settings, settings_at, train_names, train_settings
from agents.zoo.command import show
from agents.zoo.config import ZooConfig
from agents.zoo.environments import ANY, read_environment
from agents.zoo.learners import ALGORITHMS
from agents.zoo.train_settings import FOLDER

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(FOLDER.glob("*.yaml"))
ENVIRONMENTS = [path.stem for path in FILES if path.stem not in (*train_names(), ANY)]


def test_every_task_and_environment_of_the_comparison_has_a_file():
    assert {"exact", "reviews"} <= set(train_names())
    assert {"CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"} <= set(ENVIRONMENTS)
    assert {"TokenRLHF-Exact-v0", "TokenRLHF-v0", "TokenRLHF-Features-v0"} <= set(ENVIRONMENTS)
    assert "TokenRLHF-Features-TopK-v0" in ENVIRONMENTS


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_files_for_environments_can_be_read(env):
    found = environment_settings(env)
    assert found.env == env and env in gym.registry and found.steps > 0
    assert {"ppo", "a2c", "dqn"} <= set(found.agents) <= set(ALGORITHMS)
    assert environment_settings(f"some.module:{env}") == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_in_the_head_of_each_file_is_one(path):
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    (line,) = re.findall(r"^#     (tokenrlhf .*)$", head, re.MULTILINE)
    command: Any = _parse(shlex.split(line)[1:])
    if path.stem in train_names():
        assert str(command.config) == f"zoo:{path.stem}"
    elif path.stem != ANY:
        assert command.envs == (path.stem,) and command.steps is None


def test_an_environment_without_a_file_has_the_settings_for_any():
    assert environment_settings("Nope-v0") == environment_settings("Other/Nope-v1")
    assert environment_settings("Nope-v0").path.name == "default.yaml"


def test_token_ppo_has_the_published_settings_of_ppo_on_classic_control():
    for env in ENVIRONMENTS:
        agents = environment_settings(env).agents
        if not env.startswith("TokenRLHF"):
            assert agents["token-ppo"] == agents["ppo"]
    car = environment_settings("MountainCar-v0")
    assert car.learner("ppo")["normalize"] is True and car.learner("ppo")["gae_lambda"] == 0.98


def test_the_wheel_takes_the_files_with_it():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["agents"]
    for path in FILES:
        name = str(path.relative_to(ROOT / "agents"))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


# `--config zoo:NAME` -----------------------------------------------------------------------------


def test_a_name_stands_for_its_file():
    config = _parse(["train", "--config", "zoo:exact", "--n-epochs", "2"])
    assert (config.task, config.total_tokens, config.n_envs) == ("exact", 300_000, 128)
    assert config.learning_rate == 3e-3 and config.clip_range_vf is None and config.n_epochs == 2
    assert settings_at("zoo:exact") == train_settings("exact") == SETTINGS
    assert settings_at(str(FOLDER / "exact.yaml")) == SETTINGS


def test_verify_trains_what_the_file_says():
    model = exact_agent("TokenPPO", seed=3)
    for name, value in SETTINGS.agent().items():
        if name not in (
            "learning_rate",
            "clip_range",
            "rollout_buffer_kwargs",
            "normalize_returns",
        ):
            assert getattr(model, name) == value, name
    assert model.lr_schedule(1.0) == 3e-3 and model.clip_range_vf is None
    assert model.n_envs == 128 and model.seed == 3
    stock = exact_agent("PPO", seed=0)
    assert stock.lr_schedule(1.0) == 3e-3 and stock.batch_size == SETTINGS.batch_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "zoo:exakt"], r"did you mean exact\? There are zoo:exact, zoo:"),
        (["train", "--config", "zoo:"], r"There are zoo:exact"),
        (["train", "--config", "zoo:CartPole-v1"], "no settings called 'CartPole-v1'"),
        (
            ["train", "--config", "zoo:exact", "--task", "reviews"],
            "tuned for the task 'exact', and task is 'reviews'",
        ),
        (["zoo", "CartPole"], r"no file 'CartPole'; did you mean CartPole-v1\?"),
        (["compare", "--zoo", "/nowhere"], "zoo='/nowhere' is no folder"),
    ],
)
def test_wrong_names_are_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not list(tmp_path.iterdir())


def test_the_list_and_a_file_are_shown():
    console = Console(file=io.StringIO(), width=120)
    show(ZooConfig(), console)
    listed = console.file.getvalue()
    assert all(path.stem in listed for path in FILES) and "--config zoo:exact" in listed
    console = Console(file=io.StringIO(), width=40)
    show(ZooConfig("zoo:exact"), console)
    assert console.file.getvalue() == (FOLDER / "exact.yaml").read_text(encoding="utf-8")
    assert TrainConfig().config is None


# What no file may say ----------------------------------------------------------------------------

GOOD = """env: CartPole-v1
steps: 64
agents:
  ppo: {n_steps: 8, learning_rate: 1e-3}
"""


def test_numbers_are_numbers_and_schedules_stay(tmp_path):
    path = tmp_path / "CartPole-v1.yaml"
    path.write_text(GOOD.replace("}", ", clip_range: lin_0.20}"))
    found = environment_settings("CartPole-v1", tmp_path)
    assert found.learner("ppo") == {"n_steps": 8, "learning_rate": 1e-3, "clip_range": "lin_0.2"}
    assert environment_settings("Acrobot-v1", tmp_path).path.parent == FOLDER
    with pytest.raises(ValueError, match="no settings for 'dqn': write them there"):
        found.learner("dqn")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CartPole-v1", "Acrobot-v1", "for the environment 'Acrobot-v1', and settings for 'CartP"),
        ("env: CartPole-v1", "x: 1", "no field 'x'"),
        ("steps: 64\n", "", "lacks steps"),
        ("steps: 64", "stepps: 64", r"no field 'stepps'; did you mean steps\?"),
        ("steps: 64", "steps: 0", "steps=0 must be a whole number"),
        ("steps: 64", "steps: many", "steps='many' must be a whole number"),
        ("  ppo", "  pppo", r"no agent 'pppo'; did you mean"),
        ("{n_steps: 8, learning_rate: 1e-3}", "fast", "'fast' must be a mapping"),
        ("n_steps", "n_stepz", r"CartPole-v1.yaml', ppo: there is no setting 'n_stepz'; did you"),
        ("n_steps: 8", "buffer_size: 8", "no setting 'buffer_size'"),
        ("n_steps: 8", "n_steps: 0", "n_steps=0 must be a whole number"),
        ("n_steps: 8", "n_steps: 8.5", "n_steps=8.5 must be a whole number"),
        ("1e-3", "fast", "learning_rate='fast' must be a positive, finite number, or such a"),
        ("1e-3", "lin_fast", "learning_rate='lin_fast' must be"),
        ("1e-3", "-1", "learning_rate=-1 must be"),
        ("n_steps: 8", "normalize: maybe", "normalize='maybe' must be true or false"),
        ("n_steps: 8", "normalize: true, frame_stack: 4", "exclude each other"),
        ("n_steps: 8", "net_arch: [0]", "net_arch=.* must be a list of widths"),
        ("n_steps: 8", "env_kwargs: {kl_coef: 0}", "would be another problem"),
        ("n_steps: 8", "train: exact", "'train' names settings .* for token-ppo"),
        ("agents:\n  ppo: {n_steps: 8, learning_rate: 1e-3}", "agents: []", "must map agents"),
        ("steps: 64", "steps: 64\nsteps: 65", "stands there twice"),
    ],
)
def test_mistakes_in_a_file_are_named(old, new, message, tmp_path):
    path = tmp_path / "CartPole-v1.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_environment(path, "CartPole-v1")
