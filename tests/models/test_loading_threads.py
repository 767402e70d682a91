"""Threads that load models at the same time get whole ones, and leave the process as it was."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from support.models import save_classifier, save_language_model

from agents import LMActorCriticPolicy, make_vec_env
from tokenenv.models.language_model import load_frozen, load_trainable
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model

COLD = """
import threading
import gymnasium as gym
import tokenenv
from transformers.utils import logging
before = logging.get_verbosity(), logging.is_progress_bar_enabled()
errors, models, start = [], {0: set(), 1: set()}, threading.Barrier(16)
def work(i):
    start.wait()
    try:
        name = ("TokenRLHF-v0", "TokenRLHF-Exact-v0")[i % 2]
        env = gym.make(name, device="cpu").unwrapped
        models[i % 2].add(id(env.mdp.language_model.model))
    except BaseException as error:
        errors.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, (len(errors), errors[0])
assert [len(found) for found in models.values()] == [1, 1], "each model was loaded once"
assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
from tokenenv.language_model import load_frozen
load_frozen.cache_clear()
gym.make("TokenRLHF-v0", device="cpu")
"""


@pytest.mark.slow
def test_16_threads_over_two_tasks_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def in_threads(tasks) -> list[BaseException]:
    """Do all tasks at the same time; what they raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(tasks))

    def work(task) -> None:
        start.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_every_kind_of_loading_at_once_a_failing_one_included(tmp_path):
    """The weights are those of a load alone, new heads are initialised, dtypes do not mix."""
    model = save_language_model(tmp_path / "model")
    reward = save_classifier(tmp_path / "reward")
    broken = save_language_model(tmp_path / "broken", seed=1)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"half a file")
    env = make_vec_env(
        n_envs=1,
        reference=model,
        reward_model=reward,
        prompts=["w4"],
        max_prompt_tokens=2,
        max_new_tokens=2,
        device="cpu",
    )

    def policy() -> None:
        made = LMActorCriticPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3, actor=model
        )
        heads.append(made.value_net)

    heads: list[torch.nn.Linear] = []
    frozen: list[torch.Tensor] = []
    tasks = [
        lambda: frozen.append(load_frozen(model).model.lm_head.weight),
        lambda: load_frozen(model, dtype="bfloat16"),
        lambda: load_trainable(model, dtype="float64"),
        lambda: load_reward_model(reward),
        lambda: new_reward_model(model),
        policy,
        lambda: load_frozen(broken),
        lambda: load_reward_model(broken),
    ] * 2
    load_frozen.cache_clear()
    load_reward_model.cache_clear()
    errors = in_threads(tasks)
    assert len(errors) == 4 and all(isinstance(error, ValueError) for error in errors)
    assert all(broken in str(error) for error in errors)
    for head in heads:
        assert head.weight.dtype == torch.float32 and not head.weight.any()
    load_frozen.cache_clear()
    assert len(frozen) == 2 and frozen[0] is frozen[1]
    assert torch.equal(frozen[0], load_frozen(model).model.lm_head.weight)
    assert torch.get_default_dtype() == torch.float32


def test_a_failed_load_leaves_nothing_behind(tmp_path):
    model = save_language_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="can't be loaded"):
        load_frozen(model)
    (tmp_path / "away").rename(tmp_path / "model" / "model.safetensors")
    assert load_frozen(model).model.lm_head.weight.isfinite().all()
