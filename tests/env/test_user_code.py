"""What a user's own functions raise: one line with the function, the error and its place."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from tokenenv.mdp.token_mdp import TokenMDP
from tokenenv.rewards.sources import Episode
from tokenenv.settings import EnvSettings
from tokenenv.stop_signals import StopSignal, stop_signals
from tokenenv.user_code import UserCodeError, user_code

FUNCTIONS = """\
import sys

def helper(texts):
    raise LookupError("no\\n such word")

def fails(prompts, responses):
    return helper(responses)

def fails_in_a_library(prompts, responses):
    import json
    return json.loads("{")

def exits(prompts, responses):
    sys.exit("no licence")

def interrupts(prompts, responses):
    raise KeyboardInterrupt

def yields(prompts, responses):
    for response in responses:
        yield 1 / len("")

def inverse(response):
    return 1 / len("")

def maps(prompts, responses):
    return map(inverse, responses)

class Judge:
    def __call__(self, prompts, responses):
        raise OSError(28, "No space left on device")

judge = Judge()
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "users_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "users_rewards.py"
    sys.modules.pop("users_rewards", None)


def _episode(mdp: TokenMDP) -> Episode:
    return Episode(mdp.encode_prompt("w4"), np.array([5, 2]), True)


@pytest.mark.parametrize(
    ("name", "said", "line", "kind"),
    [
        ("fails", "LookupError: no such word", 4, LookupError),
        ("fails_in_a_library", "JSONDecodeError: Expecting property name.*", 11, ValueError),
        ("exits", "SystemExit: no licence", 14, SystemExit),
        ("interrupts", "KeyboardInterrupt", 17, KeyboardInterrupt),
        ("yields", "ZeroDivisionError: .*", 21, ZeroDivisionError),
        ("maps", "ZeroDivisionError: .*", 24, ZeroDivisionError),
        ("judge", "OSError: .*No space left on device", 31, OSError),
    ],
)
def test_a_reward_function_that_raises_is_named_with_the_place(
    functions, settings, name, said, line, kind
):
    mdp = TokenMDP(EnvSettings(**{**settings, "reward_model": f"users_rewards:{name}"}), 1)
    episode = _episode(mdp)
    with stop_signals(), pytest.raises(UserCodeError) as raised:
        mdp.scorer.score([episode])
    text = str(raised.value)
    assert "\n" not in text and isinstance(raised.value.__cause__, kind)
    wanted = rf"reward function 'users_rewards:{name}' failed with {said} \(at (.*):{line}\)\."
    assert re.fullmatch(wanted, text), text
    assert str(functions) in text


def test_an_interrupt_is_the_functions_own_only_where_signals_say_otherwise(functions, settings):
    """In a library, Ctrl-C may have raised it: it is passed on."""
    mdp = TokenMDP(EnvSettings(**{**settings, "reward_model": "users_rewards:interrupts"}), 1)
    with pytest.raises(KeyboardInterrupt):
        mdp.scorer.score([_episode(mdp)])
    with pytest.raises(StopSignal), stop_signals(), user_code("f", len):
        raise StopSignal(15)


TASKS = """\
from tokenenv.tasks import Task
import dataclasses

def gold(prompt, response, stopped):
    raise RuntimeError("gold is gone")

def prompts(split):
    raise RuntimeError("no prompts")

TASK = Task("mine", {reference!r}, {reward_model!r}, lambda split: ["w4 w5"], 4, 4, 0.1, gold)
NO_PROMPTS = dataclasses.replace(TASK, prompts=prompts)
NOTHING = dataclasses.replace(TASK, prompts=lambda split: None)
EMPTY = dataclasses.replace(TASK, prompts=lambda split: [])
NUMBERS = dataclasses.replace(TASK, prompts=lambda split: [1, 2])
"""


def test_the_functions_of_a_task_are_named_too(tmp_path, monkeypatch, settings):
    own = {name: settings[name] for name in ("reference", "reward_model")}
    (tmp_path / "users_task.py").write_text(TASKS.format(**own))
    (tmp_path / "users_exit.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    mdp = TokenMDP(EnvSettings(task="users_task:TASK", device="cpu"), 1)
    with pytest.raises(UserCodeError, match=r"gold_reward failed .*gold is gone \(at .*task.py:5"):
        mdp.scorer.score([_episode(mdp)])
    with pytest.raises(UserCodeError, match=r"prompts of the task 'mine' failed .*task.py:8\)"):
        TokenMDP(EnvSettings(task="users_task:NO_PROMPTS", device="cpu"), 1)
    for name in ("NOTHING", "EMPTY"):
        with pytest.raises(ValueError, match="must return a non-empty list of texts"):
            TokenMDP(EnvSettings(task=f"users_task:{name}", device="cpu"), 1)
    with pytest.raises(ValueError, match="task 'mine', number 1: the prompt 1 is a int, it must"):
        TokenMDP(EnvSettings(task="users_task:NUMBERS", device="cpu"), 1)
    with pytest.raises(ValueError, match="'users_exit:TASK' can't be loaded"):
        TokenMDP(EnvSettings(task="users_exit:TASK", device="cpu"), 1)
    sys.modules.pop("users_task", None)
