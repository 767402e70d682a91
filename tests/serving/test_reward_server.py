"""What `serve-reward` serves is what the reward would give here; each request is scored once."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from support.chat import LLAMA, save_chat_classifier, save_chat_model
from support.models import save_classifier
from support.reward_servers import INFO, Counted, free_port, reward_of, serving
from support.tiny_task import PROMPTS

from agents import make_vec_env
from agents.cli import main
from tokenenv.data import as_prompt
from tokenenv.models import load_frozen
from tokenenv.prompts import training_prompts
from tokenenv.remote import SCHEMA
from tokenenv.rewards import Episode, resolve_reward
from tokenenv.rewards.combined import reference_episodes
from tokenenv.rewards.scoring import build_scorer

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tokenenv.serving import reward_app
from tokenenv.serving.replies import Replies
from tokenenv.serving.reward_app import create_reward_app
from tokenenv.serving.served import ServedFunction, ServedModel, served_reward


def app_of(name: str, **settings: Any) -> Any:
    return create_reward_app(served_reward(name, "cpu", "float32"), **settings)


def episodes(model: Any, prompts: list[Any], seed: int = 0, count: int = 12) -> list[Episode]:
    """Random responses of every length, finished and not, to prompts."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        origin = as_prompt(prompts[index % len(prompts)])
        text = origin.content if isinstance(origin.content, str) else None
        ids = model.encode(model.chat.prompt(origin.content) if text is None else text)
        response = rng.integers(3, 32, size=rng.integers(0, 7))
        stopped = bool(rng.integers(2)) or not len(response)
        if stopped:
            response = np.append(response, model.eos_token_ids[0])
        found.append(Episode(ids, response.astype(np.int64), stopped, origin))
    return found


TALKS = [
    {"prompt": [{"role": "user", "content": "w4 w5"}], "answer": "w9"},
    {"prompt": "w6 w7", "answer": "w8"},
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    save_chat_model(folder / "model")
    save_chat_classifier(folder / "same")
    save_chat_classifier(folder / "other", template=LLAMA)
    save_classifier(folder / "untemplated", reward_mean=0.3, reward_std=2.0)
    return folder


@pytest.mark.parametrize("kind", ["same", "other", "untemplated"])
def test_a_served_model_gives_the_rewards_that_it_gives_here(chat, kind):
    """With the reference's vocabulary or another, a template of its own or none: bit for bit."""
    model = load_frozen(str(chat / "model"), "cpu")
    here = resolve_reward(str(chat / kind), model, "cpu", "float32")
    with serving(app_of(str(chat / kind))) as url:
        there = resolve_reward(url, model, "cpu", "float32")
        assert there.feeds_tokens == here.feeds_tokens
        asked = episodes(model, TALKS)
        found, expected = there(asked), here(asked)
    np.testing.assert_array_equal(found.raw, expected.raw)
    np.testing.assert_array_equal(found.normalized, expected.normalized)
    assert len(set(found.raw)) > 6


def columns_and_talk(prompts, responses, answer, messages=None, extra=None):
    return [
        len(p) + 10 * len(r) + 100 * (a == "w9") + 1000 * (m is not None) + 10_000 * (x or 0)
        for p, r, a, m, x in zip(
            *(prompts, responses, answer, messages, extra or [0] * len(prompts)), strict=True
        )
    ]


def of_trl(completions, prompts, answer, **kwargs):
    return [
        (len(c) if isinstance(c, str) else 100 * len(c[0]["content"]))
        + (len(p) if isinstance(p, str) else 10_000 * len(p))
        for c, p in zip(completions, prompts, strict=True)
    ]


@pytest.mark.parametrize("function", [columns_and_talk, of_trl])
def test_a_served_function_gets_what_it_gets_here(chat, function):
    model = load_frozen(str(chat / "model"), "cpu")
    here = resolve_reward(function, model, "cpu", "float32")
    with serving(create_reward_app(ServedFunction(function, "f"))) as url:
        there = resolve_reward(url, model, "cpu", "float32")
        if function is columns_and_talk:
            with pytest.raises(ValueError, match=r"asks for the column 'answer', which 1 of 2"):
                there.check_prompts([as_prompt(TALKS[0]), as_prompt("w4")])
            beyond = as_prompt({"prompt": "w4", "answer": {1, 2}})
            with pytest.raises(ValueError, match="can't be sent to the reward server"):
                there.check_prompts([beyond])
        asked = [e for e in episodes(model, TALKS) if len(e.response) > 1]
        found, expected = there(asked), here(asked)
    np.testing.assert_array_equal(found.raw, expected.raw)
    np.testing.assert_array_equal(found.normalized, expected.normalized)
    assert len(set(found.raw)) > 3


def needs_tokens(prompts, responses, response_tokens):
    return [0.0] * len(prompts)


def per_token(prompts, responses):
    return [[1.0] * (len(r.split()) + 1) for r in responses]


def breaks(prompts, responses):
    raise OSError("the judge \x1b[31mis down")


def test_functions_that_no_server_can_pass_on_are_refused(chat):
    with pytest.raises(ValueError, match="asks for response_tokens"):
        ServedFunction(needs_tokens, "f")
    with pytest.raises(ValueError, match="already"):
        served_reward("http://127.0.0.1:1", "cpu", "float32")
    with pytest.raises(ValueError, match="is the address of a reward server"):
        main_error(["audit", f"http://127.0.0.1:{free_port()}", "--device", "cpu"])


def main_error(arguments: list[str]) -> None:
    from agents.reward_quality.audit.rewards import reward_of as audited

    audited(arguments[1], "cpu")


# The environment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_both_scorings_pay_what_the_model_pays_here(tiny_task_kwargs, scoring):
    with serving(app_of(tiny_task_kwargs["reward_model"], max_batch=3)) as url:
        kwargs = {**tiny_task_kwargs, "scoring": scoring}
        here, there = (
            make_vec_env(n_envs=3, seed=1, **{**kwargs, "reward_model": reward})
            for reward in (kwargs["reward_model"], url)
        )
        asked = episodes(load_frozen(kwargs["reference"], "cpu"), PROMPTS)
        scores = [env.inner.mdp.scorer.score(asked).score for env in (here, there)]
        np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)  # in parts of three
        if scoring == "deferred":
            return
        observations = [env.reset() for env in (here, there)]
        rng = np.random.default_rng(0)
        for _ in range(30):
            actions = rng.integers(2, 40, size=3)
            found = [env.step(actions) for env in (here, there)]
            np.testing.assert_allclose(found[1][1], found[0][1], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(found[1][0], found[0][0])
            assert [i.get("score") is None for i in found[0][3]] == [
                i.get("score") is None for i in found[1][3]
            ]
        assert observations[0].shape == observations[1].shape


def test_gym_make_takes_an_address_and_stays_json(tiny_task_kwargs):
    with serving(app_of(tiny_task_kwargs["reward_model"])) as url:
        made = gym.make("tokenenv:TokenRLHF-v0", **{**tiny_task_kwargs, "reward_model": url})
        again = gym.make(gym.envs.registration.EnvSpec.from_json(made.spec.to_json()))
        paid = []
        for env in (made, again):
            env.reset(seed=3)
            env.step(3)
            paid.append(env.unwrapped.fork().step(2)[1])
        assert paid[0] == paid[1] != 0.0
        assert url in made.spec.to_json()


def test_several_rewards_may_mix_folders_and_addresses(tiny_task_kwargs, tmp_path):
    folder = tiny_task_kwargs["reward_model"]
    second = save_classifier(tmp_path / "second", seed=8)
    model = load_frozen(tiny_task_kwargs["reference"], "cpu")
    asked = episodes(model, PROMPTS)
    with serving(app_of(second)) as url:
        for combine in ("sum", "mean", "min", "uncertainty"):
            kwargs = {**tiny_task_kwargs, "reward_combine": combine}
            scorers = [
                make_vec_env(n_envs=1, **{**kwargs, "reward_model": [folder, one]}).inner.mdp.scorer
                for one in (second, url)
            ]
            here, there = (scorer.reward(asked) for scorer in scorers)
            np.testing.assert_allclose(there.normalized, here.normalized, rtol=0, atol=1e-5)
            np.testing.assert_allclose(there.disagreement, here.disagreement, rtol=0, atol=1e-5)
            assert list(there.parts) == ["reward_model", url.removeprefix("http://")]


class Unnormalised(Counted):
    """A reward that names no normalisation, as one that others wrote may not."""

    def info(self, max_batch: int) -> Any:
        return type(INFO)("counted", "one", max_batch)


class Constant(Unnormalised):
    def scores(self, items: Any) -> list[float | None]:
        return [1.0] * len(items)


def test_where_a_server_names_no_normalisation_it_is_measured_on_the_references_responses(
    tiny_task_kwargs,
):
    with serving(create_reward_app(Unnormalised())) as url:
        kwargs = {**tiny_task_kwargs, "reward_model": url}
        scorer = make_vec_env(n_envs=1, **kwargs).inner.mdp.scorer
        mdp = make_vec_env(n_envs=1, **kwargs).inner.mdp
        samples = reference_episodes(mdp.settings, mdp.scorer.reference)
        rewards = scorer.reward(samples)
    decode = mdp.language_model.decode
    texts = [{"prompt": decode(e.prompt), "response": decode(e.response)} for e in samples]
    raw = np.array(list(map(reward_of, texts)))
    np.testing.assert_allclose(rewards.raw, raw, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rewards.normalized, (raw - raw.mean()) / raw.std(), atol=1e-9)
    with (
        serving(create_reward_app(Constant())) as url,
        pytest.raises(ValueError, match="gives the same reward to all of 256 responses"),
    ):
        make_vec_env(n_envs=1, **{**tiny_task_kwargs, "reward_model": url})


# Requests -----------------------------------------------------------------------------------------


def ask(url: str, body: Any = None, path: str = "/score", **headers: str) -> tuple[int, Any]:
    """Status and content of the reply to a request."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    asked = urllib.request.Request(url + path, data, headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def request(count: int = 2, request_id: str | None = None) -> dict[str, Any]:
    items = [{"prompt": "p", "response": f"r{i}", "stopped": True} for i in range(count)]
    return {"schema": SCHEMA, "request_id": request_id or uuid.uuid4().hex, "items": items}


def test_a_request_is_scored_once_however_often_and_fast_it_is_asked():
    served = Counted(seconds=0.2)
    with serving(create_reward_app(served)) as url:
        asked = request()
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask(url, asked), range(16)))
        assert replies == [replies[0]] * 16 and replies[0][0] == 200
        assert replies[0][1]["rewards"] == [reward_of(item) for item in asked["items"]]
        assert set(served.scored.values()) == {1}
        other = {**asked, "items": request(3)["items"]}
        assert ask(url, other)[0] == 409, "an id is of one request"


@pytest.mark.parametrize("is_kept", [True, False])
def test_with_a_file_replies_outlive_the_server(tmp_path, is_kept):
    served, asked = Counted(), request()
    for _ in range(2):
        file = tmp_path / "replies.sqlite" if is_kept else None
        with serving(create_reward_app(served, Replies(file))) as url:
            assert ask(url, asked)[0] == 200
    assert set(served.scored.values()) == {1 if is_kept else 2}


def test_replies_are_of_one_model_and_the_newest_ones(tmp_path):
    replies = Replies(tmp_path / "file", most=2)
    for number in range(3):
        replies.put(f"id{number}", "model", "digest", [0.5, None])
    assert replies.get("id0", "model") is None, "the oldest made place"
    assert replies.get("id2", "model") == ("digest", [0.5, None])
    assert replies.get("id2", "another model") is None
    replies.close()
    (tmp_path / "no-file").write_text("this is no database " * 400)
    for place in (tmp_path / "no-file", tmp_path, Path("/nowhere/x")):
        with pytest.raises(ValueError, match="can't be used"):
            Replies(place)


def test_too_many_waiting_requests_are_told_to_come_again():
    served = Counted(seconds=0.3)
    with serving(create_reward_app(served, max_waiting=1)) as url:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: ask(url, request(1))[0], range(6)))
        assert sorted(set(found)) == [200, 503]
        assert found.count(200) == 2, "one that is scored and one that waits"


WRONG = {
    "no JSON": (b"{", 422),
    "nested": (b"[" * 100_000, 422),
    "another schema": ({**request(), "schema": "tokenrlhf-reward/2"}, 422),
    "no id": ({**request(), "request_id": ""}, 422),
    "no items": ({**request(), "items": None}, 422),
    "an item without a response": ({**request(), "items": [{"prompt": "p"}]}, 422),
    "ids of text": ({**request(), "items": [{**request()["items"][0], "prompt_ids": "1"}]}, 422),
    "a lone surrogate": (
        json.dumps(request()).replace('"p"', '"\\\\ud800"'.replace("\\\\", "\\")).encode(),
        422,
    ),
    "too many items": (request(65), 413),
}


def test_wrong_requests_are_answered_with_what_is_wrong(monkeypatch):
    served = Counted()
    with serving(create_reward_app(served)) as url:
        for name, (body, status) in WRONG.items():
            found, said = ask(url, body)
            assert found in (status, 400) and said, name
        assert ask(url, request(0))[1]["rewards"] == []
        assert sum(served.scored.values()) <= 2, "of the surrogate alone, which fails then"
        monkeypatch.setattr(reward_app, "MOST_BYTES", 1000)
        assert ask(url, request(64))[0] == 413
        assert ask(url, None, "/health") == (200, {"status": "ok", "schema": SCHEMA})
        assert "ScoreRequest" in str(ask(url, None, "/openapi.json"))


def test_what_a_model_can_not_read_is_said_and_what_a_function_raises_too(tiny_task_kwargs):
    model = served_reward(tiny_task_kwargs["reward_model"], "cpu", "float32")
    assert isinstance(model, ServedModel)
    items = [{**request()["items"][0], "prompt_ids": [1, 40], "response_ids": [3]}]
    with serving(create_reward_app(model)) as url:
        status, said = ask(url, {**request(), "items": items})
        assert status == 422 and "token id 40" in said["error"]
        items[0]["prompt_ids"] = [3] * 65
        status, said = ask(url, {**request(), "items": items})
        assert status == 422 and "67 tokens, more than the 64" in said["error"]
    for function, status in ((breaks, 500), (per_token, 422)):
        with serving(create_reward_app(ServedFunction(function, "f"))) as url:
            assert ask(url, request())[0] == status


def test_a_token_is_asked_for_where_there_is_one():
    with serving(create_reward_app(Counted(), token="s3cret")) as url:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer s3cre\xe4"}):
            status, said = ask(url, request(), **headers)
            assert status == 401 and "s3cret" not in str(said)
        assert ask(url, request(), Authorization="Bearer s3cret")[0] == 200
        assert ask(url, None, "/health")[0] == 200


def test_fingerprints_tell_models_apart(tiny_task_kwargs, tmp_path):
    folder = tiny_task_kwargs["reward_model"]
    first, same = (served_reward(folder, "cpu", "float32") for _ in range(2))
    other = served_reward(save_classifier(tmp_path / "other", seed=2), "cpu", "float32")
    assert first.fingerprint == same.fingerprint != other.fingerprint
    with torch.no_grad():
        weight = next(other.reward_model.model.parameters())
        weight[0, 0] += 1e-3
    assert ServedModel(other.reward_model, "x").fingerprint != other.fingerprint


# The command --------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with serving(create_reward_app(Counted())) as url:
        port = url.rpartition(":")[2]
        assert main(["serve-reward", "/nowhere", "--port", port]) == 2
    assert f"port={port} of host='127.0.0.1' can't be listened at" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve-reward", "exact", "--port", "0"]) == 2
    assert "pip install 'tokenrlhf[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_a_signal(tmp_path):
    command = [sys.executable, "-m", "agents.cli", "serve-reward", "exact", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "500", "TOKENRLHF_REWARD_TOKEN": "abc"},
    ) as process:
        killer = threading.Timer(180, process.kill)
        killer.start()
        said = process.stdout.readline()
        url = said.split(" at ")[1].split(";")[0]
        status, info = ask(url, None, "/info", Authorization="Bearer abc")
        assert status == 200 and info["model"] == "exact"
        assert ask(url, None, "/info")[0] == 401
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
        killer.cancel()
    assert process.returncode == 143 and "Traceback" not in rest and "abc" not in said + rest


def test_prompts_of_the_scorer_are_those_of_the_environment(tiny_task_kwargs):
    """`build_scorer` checks what the server reads against P + T."""
    info = dataclasses.replace(INFO, max_tokens=3, **vocabulary(tiny_task_kwargs))
    with serving(create_reward_app(Counted(info))) as url:
        mdp = make_vec_env(n_envs=1, **tiny_task_kwargs).inner.mdp
        assert training_prompts(mdp.settings, mdp.language_model)
        settings = dataclasses.replace(mdp.settings, reward_model=url)
        with pytest.raises(ValueError, match=r"13 tokens, more than the 3 that"):
            build_scorer(settings)


def vocabulary(kwargs: dict[str, Any]) -> dict[str, Any]:
    from tokenenv.remote import vocabulary_hash

    tokenizer = load_frozen(kwargs["reference"], "cpu").tokenizer
    return {"vocabulary": vocabulary_hash(tokenizer.get_vocab()), "vocabulary_size": 40}
