"""Conversations and rows with columns as prompts, wherever an environment takes a prompt."""

from __future__ import annotations

import json
import logging
import pickle

import gymnasium as gym
import numpy as np
import pytest
from support.chat import NO_GENERATION_PROMPT, save_chat_classifier, save_chat_model

import tokenenv  # noqa: F401  (registers the ids)
from agents import make_vec_env
from tokenenv import notes
from tokenenv.data import Prompt
from tokenenv.env import TokenEnv
from tokenenv.rendering import draw_episode
from tokenenv.tasks import Task
from tokenenv.vector_env import TokenVectorEnv

BOS, EOS, START, END, USER_ID, ASSISTANT_ID = 1, 2, 37, 38, 32, 33
USER = [{"role": "user", "content": "w4 w5"}]
TALK = [
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w6"},
    {"role": "user", "content": "w5"},
]
TEXT = "<|im_start|> user w4 w5 <|im_end|> <|im_start|> assistant "
IDS = [BOS, START, USER_ID, 4, 5, END, START, ASSISTANT_ID]


def right(prompts, responses, answer):
    return [float(a in r.split()) for a, r in zip(answer, responses, strict=True)]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    return {
        "reference": save_chat_model(folder / "reference"),
        "reward_model": save_chat_classifier(folder / "reward"),
        "prompts": [USER, "w4 w5"],
        "max_prompt_tokens": 16,
        "max_new_tokens": 4,
        "kl_coef": 0.2,
        "device": "cpu",
    }


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(notes, "_SAID", set())
    caplog.set_level(logging.WARNING, logger="tokenenv")
    return caplog


def state(observation):
    return observation[observation >= 0].tolist()


def test_a_conversation_is_rendered_by_the_template_and_a_text_is_left_as_it_is(chat):
    env = TokenEnv(**chat)
    assert env.mdp.prompts == [TEXT, "w4 w5"]
    for prompt, expected in ((USER, IDS), ("w4 w5", [BOS, 4, 5]), (TEXT, IDS)):
        observation, info = env.reset(options={"prompt": prompt})
        assert state(observation) == expected
        assert info["prompt"] == ("w4 w5" if prompt == "w4 w5" else TEXT)
    assert info["origin"].content == tuple(USER), "the text is that of a known conversation"


def test_a_response_ends_with_the_end_of_the_assistants_turn(chat):
    env = TokenEnv(**chat)
    env.reset(options={"prompt": USER})
    env.step(7)
    *_, terminated, truncated, info = env.step(END)
    assert terminated and not truncated and info["finish_reason"] == "stop"
    assert info["response"] == "w7"


def test_seeded_resets_draw_conversations_and_a_batch_has_the_same(chat):
    single = TokenEnv(**chat)
    batch = TokenVectorEnv(3, **chat)
    observations, infos = batch.reset(seed=3)
    for row in range(3):
        observation, info = single.reset(seed=3 + row)
        np.testing.assert_array_equal(observation, observations[row])
        assert info["prompt"] == infos["prompt"][row]
        assert ("origin" in info) == bool(infos.get("_origin", np.zeros(3))[row])


def test_a_batch_takes_one_prompt_for_all_or_one_for_each(chat):
    batch = TokenVectorEnv(2, **chat)
    row = {"prompt": "w7", "answer": "w8"}
    for options, expected in (
        (USER, [IDS, IDS]),
        ([USER, "w7"], [IDS, [BOS, 7]]),
        (row, [[BOS, 7]] * 2),
        ([TALK, row], [state(TokenEnv(**chat).reset(options={"prompt": TALK})[0]), [BOS, 7]]),
    ):
        observations, _ = batch.reset(options={"prompt": options})
        assert [state(row) for row in observations] == expected


def test_files_tasks_and_specs_take_conversations(chat, tmp_path, monkeypatch):
    rows = [{"prompt": USER, "answer": "w7"}, {"messages": TALK}, {"prompt": "w4"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::2]))
    of_file = TokenEnv(**{**chat, "prompts": str(tmp_path / "p.jsonl")}).mdp
    assert of_file.prompts == [TEXT, "w4"] and of_file.origins[0].columns == {"answer": "w7"}
    task = Task("t", chat["reference"], chat["reward_model"], lambda _: [USER, TEXT], 16, 4, 0.1)
    (tmp_path / "chat_task.py").write_text("TASK = None")
    monkeypatch.syspath_prepend(str(tmp_path))
    import chat_task

    chat_task.TASK = task
    assert TokenEnv(task="chat_task:TASK", device="cpu").mdp.prompts == [TEXT, TEXT]
    env = gym.make("TokenRLHF-v0", **chat)
    assert gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).unwrapped.settings
    twin = pickle.loads(pickle.dumps(env.unwrapped.mdp))
    assert twin.prompts == [TEXT, "w4 w5"] and twin.encode_prompt(USER).tolist() == IDS


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (USER[0], "This is one message: give a list of them"),
        ([{"role": "user"}], "message 1 of 'prompt' has the content None"),
        ([{"role": 3, "content": "w4"}], "message 1 of 'prompt' has the role 3"),
        ([*USER, "w4"], "message 2 of 'prompt' is 'w4'"),
        ([*USER, {"role": "assistant", "content": "w6"}], "ends with an assistant turn"),
        ([], "it must be text, a list of messages"),
        ({"answer": "w4"}, "it must be text, a list of messages"),
        ({"prompt": None}, "None is a NoneType, it must be text"),
    ],
)
def test_what_is_no_prompt_is_refused(chat, prompt, words):
    with pytest.raises(ValueError, match=words):
        TokenEnv(**chat).reset(options={"prompt": prompt})
    with pytest.raises(ValueError, match=f"number 2: the prompt.*{words}"):
        TokenEnv(**{**chat, "prompts": ["w4", prompt]})


def test_a_reference_without_a_usable_template_is_refused_at_the_start(chat, tmp_path):
    for template, words in ((None, "no chat template"), (NO_GENERATION_PROMPT, "generation")):
        folder = save_chat_model(tmp_path / words.split()[0], template)
        with pytest.raises(ValueError, match=words):
            TokenEnv(**{**chat, "reference": folder})
        TokenEnv(**{**chat, "reference": folder, "prompts": ["w4"]})


def test_rendering_shows_roles(chat):
    env = TokenEnv(**{**chat, "render_mode": "ansi"})
    env.reset(options={"prompt": TALK})
    lines = env.render().splitlines()
    assert [line.strip() for line in lines[:3]] == [
        "prompt    user: w4",
        "assistant: w6",
        "user: w5",
    ]
    assert draw_episode(env.mdp, 0).dtype == np.uint8


# Columns ------------------------------------------------------------------------------------------


def rows(*answers):
    return [{"prompt": "w4", "answer": answer} for answer in answers]


def test_two_rows_with_one_text_keep_their_columns(chat):
    env = TokenEnv(**{**chat, "prompts": rows("w7", "w8"), "reward_model": right})
    for seed in range(8):
        _, info = env.reset(seed=seed)
        env.step(7)
        score = env.step(EOS)[4]["score"]
        assert info["prompt"] == "w4" and score == float(info["origin"].columns["answer"] == "w7")
    with pytest.raises(ValueError, match="2 times among the prompts, with different columns"):
        env.reset(options={"prompt": "w4"})
    env.reset(options={"prompt": {"prompt": "w4", "answer": "w9"}})
    env.step(9)
    assert env.step(EOS)[4]["score"] == 1.0


def test_a_text_that_is_one_of_the_prompts_has_its_columns(chat):
    env = TokenEnv(**{**chat, "prompts": rows("w7", "w7"), "reward_model": right})
    _, info = env.reset(options={"prompt": "w4"})
    assert info["origin"] == Prompt("w4", {"answer": "w7"})
    with pytest.raises(ValueError, match="asks for the column 'answer', which no prompt has"):
        env.reset(options={"prompt": "w5"})


def test_a_fork_keeps_the_columns_of_the_episode(chat):
    env = TokenEnv(**{**chat, "prompts": rows("w7", "w8"), "reward_model": right})
    env.reset(options={"prompt": {"prompt": "w4", "answer": "w9"}})
    twin = env.fork()
    env.reset(options={"prompt": {"prompt": "w4", "answer": "w7"}})
    twin.step(9)
    assert twin.step(EOS)[4]["score"] == 1.0


def test_sb3s_reset_infos_hold_the_rows_of_the_episodes_that_begin(chat):
    kwargs = {**chat, "prompts": rows("w7", "w8"), "reward_model": right}
    env = make_vec_env(n_envs=4, seed=0, **kwargs)
    env.reset()
    for _ in range(3):
        current = [info["origin"].columns["answer"] for info in env.reset_infos]
        env.step(np.full(4, 7))
        _, _, dones, infos = env.step(np.full(4, EOS))
        assert dones.all()
        assert [info["score"] for info in infos] == [float(a == "w7") for a in current]


# Prompts that are too long ------------------------------------------------------------------------


LONG = "w4 w5 w6 w7 w8"


def test_long_prompts_are_refused_cut_or_left_out_and_counted(chat, said):
    kwargs = {**chat, "prompts": ["w9", LONG, "w10 w11"], "max_prompt_tokens": 4}
    with pytest.raises(ValueError, match=r"has 6 tokens.*prompt_truncation to 'keep-end'"):
        TokenEnv(**kwargs)
    cut = TokenEnv(**kwargs, prompt_truncation="keep-end")
    assert cut.mdp.prompts == kwargs["prompts"]
    assert state(cut.reset(options={"prompt": LONG})[0]) == [BOS, 6, 7, 8], "BOS stays"
    assert state(cut.reset(options={"prompt": LONG + " w9"})[0]) == [BOS, 7, 8, 9]
    assert TokenEnv(**kwargs, prompt_truncation="drop").mdp.prompts == ["w9", "w10 w11"]
    TokenEnv(**kwargs, prompt_truncation="drop")
    counted = [r.message for r in said.records if "1 of 3 prompts have more than" in r.message]
    assert len(counted) == 2, "each is said once"
    with pytest.raises(ValueError, match="has 6 tokens"):
        TokenEnv(**kwargs, prompt_truncation="drop").reset(options={"prompt": LONG})
    with pytest.raises(ValueError, match="would leave none"):
        TokenEnv(**{**kwargs, "prompts": [LONG]}, prompt_truncation="drop")


def test_prompts_that_fit_are_left_alone_whatever_the_setting(chat, said):
    for truncation in ("keep-end", "drop"):
        assert TokenEnv(**chat, prompt_truncation=truncation).mdp.prompts == [TEXT, "w4 w5"]
    assert not [r for r in said.records if "prompts have more" in r.message]
