"""Files of prompts for training: columns of other names, rows that can't be used."""

from __future__ import annotations

import json
import logging

import gymnasium as gym
import pytest

from agents.config import TrainConfig
from tokenenv.env import TokenEnv

ROWS = [
    {"question": "w3 w4", "solution": "w5"},
    {"question": None, "solution": "w5"},
    {"question": "w6", "solution": "w7"},
    {"question": "   ", "solution": "w7"},
]
COLUMNS = {"prompt": "question", "answer": "solution"}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return str(file)


def answers(prompts, responses, answer):
    """A reward that asks for a column by what it means."""
    return [float(one == "w7") for one in answer]


def test_columns_are_renamed_and_bad_rows_left_out_and_counted(tiny_task_kwargs, prompts, caplog):
    kwargs = {**tiny_task_kwargs, "prompts": prompts, "reward_model": answers}
    with caplog.at_level(logging.WARNING, "tokenenv"):
        env = TokenEnv(**kwargs, prompt_columns=COLUMNS, skip_bad_prompts=True)
    assert env.mdp.prompts == ["w3 w4", "w6"]
    assert [origin.columns for origin in env.mdp.origins] == [{"answer": "w5"}, {"answer": "w7"}]
    (said,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert prompts in said and "2 of 4 rows can't be used" in said and "line 2" in said
    with pytest.raises(ValueError, match=r"2 of 4 rows can't be used.*--skip-bad"):
        TokenEnv(**kwargs, prompt_columns=COLUMNS)
    with pytest.raises(ValueError, match="has no column 'prompt'"):
        TokenEnv(**kwargs, skip_bad_prompts=True)


def test_the_same_by_name(tiny_task_kwargs, prompts):
    kwargs = {**tiny_task_kwargs, "prompts": prompts, "prompt_columns": {"prompt": "question"}}
    env = gym.make("TokenRLHF-v0", **kwargs, skip_bad_prompts=True)
    assert env.unwrapped.mdp.prompts == ["w3 w4", "w6"]
    assert env.spec is not None and json.loads(env.spec.to_json())


def test_the_settings_of_train_reach_the_environment():
    config = TrainConfig(columns=("prompt=question", "answer=solution"), skip_bad=True)
    environment = config.environment("eval")
    assert environment["prompt_columns"] == COLUMNS and environment["skip_bad_prompts"] is True
    assert TrainConfig.from_json(config.as_json()) == config
    old = config.as_json()
    del old["columns"], old["skip_bad"]
    assert TrainConfig.from_json(old).columns == () and not TrainConfig.from_json(old).skip_bad
    with pytest.raises(ValueError, match="columns='question': give what a column means"):
        TrainConfig(columns=("question",))


@pytest.mark.parametrize("source", [["w3 w4"], "reviews", None])
def test_what_is_no_file_has_neither_columns_nor_bad_rows(tiny_task_kwargs, source):
    kwargs = {**tiny_task_kwargs, "prompts": source}
    for given in ({"prompt_columns": COLUMNS}, {"skip_bad_prompts": True}):
        name = next(iter(given))
        with pytest.raises(ValueError, match=rf"{name} .*file of prompts alone.*leave it out"):
            TokenEnv(**kwargs, **given)
