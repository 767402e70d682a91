"""The single environment: its contracts, its rewards by an independent forward, its bad inputs."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from support.models import save_classifier, save_language_model, word_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tokenenv  # noqa: F401  (registers the ids)
from agents import make_vec_env
from tokenenv.env import TokenEnv
from tokenenv.tasks import Task
from tokenenv.vector_env import TokenVectorEnv

EOS = 2
PROMPTS = ["w4 w5 w6", "w7", "w8 w9 w10 w11"]


def letters(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that `gym.make` can also find by name."""
    return [len(response) / 10 for response in responses]


OTHER_TASK = Task(
    name="other",
    reference="reviews",
    reward_model="reviews",
    prompts=lambda split: [f"{split} prompt"],
    max_prompt_tokens=32,
    max_new_tokens=4,
    kl_coef=0.5,
)
NO_TASK = 3


@pytest.fixture(scope="module")
def settings(reference_folder, reward_folder):
    return {
        "reference": reference_folder,
        "reward_model": reward_folder,
        "prompts": PROMPTS,
        "max_prompt_tokens": 6,
        "max_new_tokens": 5,
        "kl_coef": 0.2,
        "device": "cpu",
    }


def make(settings, **changes) -> TokenEnv:
    env = gym.make("TokenRLHF-v0", **{**settings, **changes}).unwrapped
    assert isinstance(env, TokenEnv)
    return env


def play(env, actions):
    """Rewards and infos of some actions."""
    steps = [env.step(action) for action in actions]
    return [step[1] for step in steps], [step[4] for step in steps]


def reference_log_probs(folder, prompt_ids, response, temperature=1.0):
    """The log π_ref of every response token, by one plain transformers forward in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = torch.tensor([[*prompt_ids, *response]])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0] / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    first = len(prompt_ids)
    return np.array([log_probs[first + t - 1, a].item() for t, a in enumerate(response)])


def raw_reward(folder, ids):
    """The classifier's output for one unpadded sequence, by plain transformers in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    model.config.pad_token_id = None  # a sequence of one row is then read at its last token
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits.item()


# Checkers, seeding, copies -----------------------------------------------------------------------


@pytest.fixture
def no_warning():
    """Every warning, gymnasium's logger included, is an error."""
    level = gym.logger.min_level
    gym.logger.min_level = gym.logger.WARN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    gym.logger.min_level = level


@pytest.mark.parametrize("render_mode", [None, "ansi", "human", "rgb_array"])
def test_gymnasium_check_env_has_nothing_to_say(no_warning, render_mode, capsys):
    env = gym.make("TokenRLHF-v0", render_mode=render_mode)
    assert env.spec is not None and env.unwrapped.spec is not None  # so that render is checked
    check_env(env.unwrapped)
    assert capsys.readouterr().err == ""


def test_sb3_check_env_has_nothing_to_say(no_warning, settings):
    sb3_check_env(gym.make("TokenRLHF-v0").unwrapped, warn=True)
    sb3_check_env(make(settings), warn=True)


def test_gymnasiums_own_warnings_would_be_seen(no_warning):
    """The checks above are worth something only if a warning fails them."""
    with pytest.raises(UserWarning, match="seen"):
        gym.logger.warn("seen")


def rollout(env, seed, steps=40):
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    trace = [(observation, info)]
    for _ in range(steps):
        step = env.step(env.action_space.sample())
        trace.append(step)
        if step[2]:
            trace.append(env.reset())
    return trace


def test_seeded_runs_are_equivalent_and_seeds_differ():
    env = gym.make("TokenRLHF-v0")
    first, second, other = rollout(env, 7), rollout(gym.make("TokenRLHF-v0"), 7), rollout(env, 8)
    assert data_equivalence(first, second, exact=True)
    assert not data_equivalence(first, other)


@pytest.mark.parametrize("env_id", ["TokenRLHF-v0", "tokenenv:TokenRLHF-v0"])
def test_both_ids_make_the_bundled_task(env_id):
    env = gym.make(env_id)
    observation, info = env.reset(seed=0)
    assert isinstance(env.unwrapped, TokenEnv) and env.unwrapped.settings.task == "reviews"
    assert env.observation_space.contains(observation)
    assert info["prompt"] in env.unwrapped.mdp.prompts


def test_spec_survives_json_and_makes_the_same_env(settings):
    env = gym.make("TokenRLHF-v0", **settings)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    assert json.loads(env.spec.to_json())["kwargs"] == settings
    assert data_equivalence(rollout(env, 3), rollout(again, 3), exact=True)


def test_a_callable_reward_makes_an_env_whose_spec_is_not_json(settings):
    env = gym.make("TokenRLHF-v0", **{**settings, "reward_model": letters})
    assert env.unwrapped.scorer.reward.function is letters
    with pytest.raises(TypeError, match="function is not JSON serializable"):
        env.spec.to_json()


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"]
)
def test_copies_continue_identically_and_share_the_frozen_models(settings, twin_of):
    env = make(settings)
    env.reset(seed=1)
    env.step(9)
    env.step(11)
    env.set_kl_coef(0.7)
    assert len(pickle.dumps(env)) < 10_000  # a model among it would take hundreds of kilobytes
    twin = twin_of(env)
    language_model = env.mdp.language_model
    assert twin.mdp.language_model is language_model
    assert twin.scorer.reference.language_model.model is language_model.model
    assert twin.scorer.reward.reward_model is env.scorer.reward.reward_model
    assert twin.kl_coef == 0.7
    actions = [12, 30, EOS]
    rewards, infos = play(env, actions)
    twin_rewards, twin_infos = play(twin, actions)
    np.testing.assert_allclose(twin_rewards, rewards, rtol=0, atol=1e-5)
    for twin_info, info in zip(twin_infos, infos, strict=True):
        assert twin_info == {
            key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            for key, value in info.items()
        }
    assert twin_infos[-1]["response"] == infos[-1]["response"] == "w9 w11 w12 w30"
    # The state of the random generator is copied too: both draw the same next prompts.
    assert [env.reset()[1] for _ in range(8)] == [twin.reset()[1] for _ in range(8)]


def test_copies_are_independent(settings):
    env = make(settings)
    env.reset(seed=1)
    twin = copy.deepcopy(env)
    twin.step(9)
    twin.set_kl_coef(3.0)
    assert env.kl_coef == 0.2
    assert env.mdp.episodes.response_lengths[0] == 0


def test_models_are_shared_until_their_folder_is_written_anew(settings, tmp_path):
    reference = save_language_model(tmp_path / "reference", seed=5)
    reward = save_classifier(tmp_path / "reward", seed=5)
    own = {"reference": reference, "reward_model": reward}
    first, second = make(settings, **own), make(settings, **own)
    assert second.mdp.language_model is first.mdp.language_model
    assert second.scorer.reward.reward_model is first.scorer.reward.reward_model
    save_language_model(tmp_path / "reference", seed=6)
    save_classifier(tmp_path / "reward", seed=6)
    third = make(settings, **own)
    third.reset(options={"prompt": "w7"})
    info = third.step(EOS)[4]
    expected = reference_log_probs(reference, [1, 7], [EOS])[0]
    assert info["ref_logprob"] == pytest.approx(expected, abs=1e-5)
    assert info["rm_score"] == pytest.approx(raw_reward(reward, [1, 7, EOS]), abs=1e-5)
    assert third.mdp.language_model is not first.mdp.language_model


# Observations, rewards, ends ---------------------------------------------------------------------


def test_observations_hold_minus_one_wherever_there_is_no_token(settings):
    env = make(settings)
    observation, info = env.reset(options={"prompt": "w4 w5 w6"})
    assert info == {"prompt": "w4 w5 w6"}
    np.testing.assert_array_equal(observation, [-1, -1, 1, 4, 5, 6, -1, -1, -1, -1, -1])
    assert observation.dtype == np.int64
    observation = env.step(9)[0]
    np.testing.assert_array_equal(observation, [-1, -1, 1, 4, 5, 6, 9, -1, -1, -1, -1])
    observation = env.step(EOS)[0]
    np.testing.assert_array_equal(observation, [-1, -1, 1, 4, 5, 6, 9, EOS, -1, -1, -1])
    observation, _ = env.reset(options={"prompt": "w7"})
    np.testing.assert_array_equal(observation, [-1, -1, -1, -1, 1, 7, -1, -1, -1, -1, -1])
    assert env.observation_space == gym.spaces.Box(-1, 39, (11,), np.int64)
    assert env.action_space == gym.spaces.Discrete(40)


@pytest.mark.parametrize("response", [[9, 12, EOS], [EOS], [9, 12, 30, 31, 8], [9, 1, 0, 3, EOS]])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rewards_are_beta_log_ref_plus_the_score_at_the_end(settings, response, temperature):
    env = make(settings, temperature=temperature)
    env.reset(options={"prompt": "w4 w5 w6"})
    rewards, infos = play(env, response)
    ids = [1, 4, 5, 6]
    expected = reference_log_probs(settings["reference"], ids, response, temperature)
    raw = raw_reward(settings["reward_model"], [*ids, *response])
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=1e-5)
    score = (raw - 0.3) / 2.0  # the statistics that the checkpoint's config names
    expected_rewards = 0.2 * expected
    expected_rewards[-1] += score
    np.testing.assert_allclose(rewards, expected_rewards, rtol=0, atol=1e-5)
    assert infos[-1]["rm_score"] == pytest.approx(raw, abs=1e-5)
    assert infos[-1]["score"] == pytest.approx(score, abs=1e-5)
    assert all(set(info) == {"ref_logprob", "kl_coef"} for info in infos[:-1])
    assert all(info["kl_coef"] == 0.2 for info in infos)


@pytest.mark.parametrize(
    ("response", "reason", "text"),
    [([9, EOS], "stop", "w9"), ([9, 12, 30, 31, 8], "length", "w9 w12 w30 w31 w8")],
)
def test_eos_and_the_budget_terminate_and_nothing_truncates(settings, response, reason, text):
    env = make(settings)
    env.reset(options={"prompt": "w7"})
    for position, action in enumerate(response):
        _, _, terminated, truncated, info = env.step(action)
        assert terminated == (position == len(response) - 1)
        assert truncated is False
    assert info["finish_reason"] == reason
    assert info["response"] == text
    assert info["response_length"] == len(response)


def test_eos_as_the_last_possible_token_is_a_stop(settings):
    env = make(settings)
    env.reset(options={"prompt": "w7"})
    infos = play(env, [9, 9, 9, 9, EOS])[1]
    assert infos[-1]["finish_reason"] == "stop" and infos[-1]["response_length"] == 5


@pytest.mark.parametrize("response", [[9, 12, EOS], [9, EOS]])
def test_pad_that_is_eos_masks_nothing(settings, pad_is_eos_folder, tmp_path, response):
    """Trap 1: neither the reference nor the reward model may mistake EOS for padding."""
    reward = save_classifier(tmp_path / "rm", "gpt2", tokenizer=word_tokenizer("<eos>"))
    env = make(settings, reference=pad_is_eos_folder, reward_model=reward)
    tokenizer = env.mdp.language_model.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    observation, _ = env.reset(options={"prompt": "w4 w5 w6"})
    assert EOS not in observation
    rewards, infos = play(env, response)
    ids = [1, 4, 5, 6]
    expected = reference_log_probs(pad_is_eos_folder, ids, response)
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=1e-5)
    raw = raw_reward(reward, [*ids, *response])
    without_eos = raw_reward(reward, [*ids, *response[:-1]])
    assert abs(raw - without_eos) > 1e-2  # reading one token too early would show
    assert infos[-1]["rm_score"] == pytest.approx(raw, abs=1e-5)
    assert rewards[-1] == pytest.approx(0.2 * expected[-1] + raw, abs=1e-5)
    assert infos[-1]["finish_reason"] == "stop" and infos[-1]["response_length"] == len(response)


def test_without_kl_shaping_only_the_score_is_paid(settings):
    env = make(settings, kl_shaping="none")
    env.reset(options={"prompt": "w7"})
    rewards, infos = play(env, [9, 12, EOS])
    assert rewards[:2] == [0.0, 0.0]
    assert rewards[2] == infos[2]["score"] != 0.0
    expected = reference_log_probs(settings["reference"], [1, 7], [9, 12, EOS])
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("raw", "paid"), [(7.0, 1.5), (-7.0, -1.5), (0.25, 0.25)])
def test_scores_are_clipped_on_both_sides(settings, raw, paid):
    env = make(settings, reward_model=lambda p, r: [raw] * len(r), score_clip=1.5, kl_coef=0.0)
    env.reset(seed=0)
    rewards, infos = play(env, [EOS])
    assert (rewards[0], infos[0]["score"], infos[0]["rm_score"]) == (paid, paid, raw)


def test_missing_eos_is_penalised_after_clipping_and_eos_is_not(settings):
    env = make(
        settings,
        reward_model=lambda p, r: [4.0] * len(r),
        score_clip=3.0,
        missing_eos_penalty=2.5,
        kl_coef=0.0,
    )
    env.reset(seed=0)
    assert play(env, [9, 9, 9, 9, 9])[0] == [0.0, 0.0, 0.0, 0.0, 0.5]  # 3 − 2.5
    env.reset()
    assert play(env, [9, EOS])[0] == [0.0, 3.0]


def test_set_kl_coef_changes_the_rewards_and_the_info(settings):
    env = make(settings)
    env.reset(options={"prompt": "w7"})
    first, infos = play(env, [9])
    env.set_kl_coef(2.0)
    assert env.kl_coef == 2.0
    second, more = play(env, [12])
    assert infos[0]["kl_coef"] == 0.2 and more[0]["kl_coef"] == 2.0
    assert first[0] == pytest.approx(0.2 * infos[0]["ref_logprob"], abs=1e-12)
    assert second[0] == pytest.approx(2.0 * more[0]["ref_logprob"], abs=1e-12)
    with pytest.raises(ValueError, match=r"kl_coef=-1.*0 or a positive"):
        env.set_kl_coef(-1)
    assert env.kl_coef == 2.0


def test_float64_models_and_bfloat16_models_run(settings):
    exact = make(settings, dtype="float64")
    exact.reset(options={"prompt": "w7"})
    infos = play(exact, [9, 12, EOS])[1]
    expected = reference_log_probs(settings["reference"], [1, 7], [9, 12, EOS])
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=1e-12)
    coarse = make(settings, dtype="bfloat16")
    coarse.reset(options={"prompt": "w7"})
    infos = play(coarse, [9, 12, EOS])[1]
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=0.2)


def test_gold_reward_is_reported_and_not_paid():
    env = gym.make("TokenRLHF-v0", kl_coef=0.0).unwrapped
    env.reset(options={"prompt": env.mdp.prompts[0]})
    rewards, infos = play(env, [env.mdp.language_model.eos_token_ids[0]])
    expected = env.mdp.task.gold_reward(env.mdp.prompts[0], "", True)
    assert infos[0]["gold_reward"] == expected
    assert rewards[0] == infos[0]["score"] != infos[0]["gold_reward"]


def test_resets_tell_the_number_of_the_group_where_there_are_groups(settings):
    env = make(settings, group_size=3)
    found = [env.reset(seed=1)[1], *(env.reset()[1] for _ in range(6))]
    assert [info["group"] for info in found] == [0, 0, 0, 1, 1, 1, 2]
    assert type(found[0]["group"]) is int
    for i in range(0, 6, 3):
        assert len({info["prompt"] for info in found[i : i + 3]}) == 1
    given = env.reset(options={"prompt": found[0]["prompt"]})[1]
    assert given == {"prompt": found[0]["prompt"]}, "it counts to no group"
    assert env.reset()[1]["group"] == 2
    assert env.reset(seed=1)[1]["group"] == 3, "a seed begins another, of the same prompt or not"
    assert make(settings).reset(seed=1)[1].keys() == {"prompt"}


def test_deferred_scoring_pays_nothing_and_tells_only_the_end(settings):
    env = make(settings, scoring="deferred")
    env.unwrapped.leave_scoring_to_caller()
    env.reset(options={"prompt": "w7"})
    rewards, infos = play(env, [9, EOS])
    assert rewards == [0.0, 0.0]
    assert infos == [{}, {"finish_reason": "stop", "response": "w9", "response_length": 2}]


# Rendering ---------------------------------------------------------------------------------------


def test_ansi_shows_prompt_response_and_the_reward_of_every_token(settings, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    env = make(settings, render_mode="ansi")
    env.reset(options={"prompt": "w4 w5"})
    assert env.render() == "prompt    w4 w5\nresponse  \n"
    rewards, _ = play(env, [9, EOS])
    lines = env.render().splitlines()
    assert lines[:3] == ["prompt    w4 w5", "response  w9", "reward    token"]
    assert lines[3].split() == [f"{rewards[0]:+.4f}", "'w9'"]
    assert lines[4].split() == [f"{rewards[1]:+.4f}", "'<eos>'"]
    assert lines[5].split() == [f"{sum(rewards):+.4f}", *"sum of 2 tokens (stop)".split()]
    assert len(lines) == 6


def test_human_writes_every_token_as_it_comes(settings, capsys):
    env = make(settings, render_mode="human")
    env.reset(options={"prompt": "w4 w5"})
    assert capsys.readouterr().out == "prompt    w4 w5\nreward    token\n"
    reward = env.step(9)[1]
    assert capsys.readouterr().out == f"{reward:+8.4f}  'w9'\n"
    assert env.render() is None
    last = env.step(EOS)[1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{last:+8.4f}  '<eos>'"
    assert lines[1].split() == [f"{reward + last:+.4f}", *"sum of 2 tokens (stop)".split()]
    assert lines[2:] == ["response  w9", ""]


# Prompts -----------------------------------------------------------------------------------------


def test_splits_of_the_bundled_task_are_disjoint():
    train = gym.make("TokenRLHF-v0", split="train").unwrapped.mdp.prompts
    held_out = gym.make("TokenRLHF-v0", split="eval").unwrapped.mdp.prompts
    assert len(train) >= 64 and len(held_out) >= 64
    assert not set(train) & set(held_out)


def test_prompts_are_drawn_uniformly_from_the_split(settings):
    env = make(settings)
    env.reset(seed=0)
    drawn = [env.reset()[1]["prompt"] for _ in range(900)]
    for prompt in PROMPTS:  # standard deviation of a share: sqrt(1/3·2/3/900) = 0.0157
        assert abs(drawn.count(prompt) / 900 - 1 / 3) < 4 * 0.0157


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_prompts_from_a_text_file(settings, tmp_path, ending):
    file = tmp_path / "prompts.txt"
    file.write_bytes(ending.join([*PROMPTS, "", ""]).encode())
    assert make(settings, prompts=str(file)).mdp.prompts == PROMPTS


def test_models_and_prompts_may_be_given_as_paths(settings, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    folders = {name: Path(settings[name]) for name in ("reference", "reward_model")}
    env = make(settings, prompts=file, **folders)
    assert env.mdp.prompts == PROMPTS
    assert env.mdp.settings.reference == str(folders["reference"])
    assert env.mdp.settings.reward_model == str(folders["reward_model"])


def test_every_tenth_prompt_of_a_file_without_splits_is_held_out(settings, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"w{i}" for i in range(4, 34)))
    train = make(settings, prompts=str(file)).mdp.prompts
    held_out = make(settings, prompts=str(file), split="eval").mdp.prompts
    assert held_out == ["w13", "w23", "w33"]
    assert len(train) == 27 and not set(train) & set(held_out)


def test_prompts_from_a_jsonl_file_with_splits(settings, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "w4"}, {"prompt": "w5", "split": "eval"}, {"prompt": "w6\u2028w7"}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("\ufeff" + text, encoding="utf-8")  # a BOM, as Windows' editors write it
    assert make(settings, prompts=str(file)).mdp.prompts == ["w4", "w6\u2028w7"]
    assert make(settings, prompts=str(file), split="eval").mdp.prompts == ["w5"]


def test_prompts_by_the_name_of_a_task(settings):
    bundled = gym.make("TokenRLHF-v0").unwrapped.mdp.prompts
    assert gym.make("TokenRLHF-v0", prompts="reviews").unwrapped.mdp.prompts == bundled
    others = {"prompts": f"{__name__}:OTHER_TASK", "reward_model": "reviews"}
    named = gym.make("TokenRLHF-v0", **others, split="eval")
    assert named.unwrapped.mdp.prompts == ["eval prompt"]


@pytest.mark.parametrize("own", [("prompts",), ("reference",), ("reference", "prompts")])
def test_a_reward_is_not_inherited_with_a_reference_or_prompts_of_ones_own(settings, own):
    """The reward model of film reviews would score whatever is brought, without a word."""
    brought = {name: settings[name] for name in own}
    named = " and ".join(own)
    with pytest.raises(ValueError, match=f"reward_model is missing: with {named} of your own"):
        gym.make("TokenRLHF-v0", **brought)
    gym.make("TokenRLHF-v0", **settings)
    for same in ({"prompts": "reviews"}, {"reference": "reviews"}):
        assert gym.make("TokenRLHF-v0", **same).unwrapped.mdp.task.name == "reviews"
    # A task of the user's own has the reward that the user gave it.
    gym.make("TokenRLHF-v0", task=f"{__name__}:OTHER_TASK", prompts=["a prompt"])


def test_a_task_of_the_users_own_gives_the_defaults():
    env = gym.make("TokenRLHF-v0", task=f"{__name__}:OTHER_TASK").unwrapped
    assert (env.kl_coef, env.mdp.max_new_tokens, env.mdp.prompts) == (0.5, 4, ["train prompt"])
    assert "gold_reward" not in play_to_the_end(env)
    overridden = gym.make("TokenRLHF-v0", task=f"{__name__}:OTHER_TASK", kl_coef=0.0).unwrapped
    assert overridden.kl_coef == 0.0


def play_to_the_end(env):
    env.reset(seed=0)
    return play(env, [env.mdp.language_model.eos_token_ids[0]])[1][-1]


# Wrong steps -------------------------------------------------------------------------------------


def test_steps_without_a_running_episode_need_a_reset(settings):
    env = make(settings)
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(9)
    env.reset(seed=0)
    env.step(EOS)
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(9)
    with pytest.raises(ResetNeeded):
        gym.make("TokenRLHF-v0").step(0)


@pytest.mark.parametrize("action", [40, -1, 10**12, 3.0, "w4", None, True, [4, 5]])
def test_an_action_that_is_no_token_id_raises_and_changes_nothing(settings, action):
    env = make(settings)
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0 … 39"):
        env.step(action)
    after = env.step(np.int64(39))[0]
    assert after[6] == 39
    np.testing.assert_array_equal(after[:6], before[:6])


# Bad arguments -----------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"task": "review"}, r"task='review' is unknown.*'reviews'"),
    ({"task": 3}, r"task=3 must be the name"),
    ({"task": "no_such_module:TASK"}, r"'no_such_module:TASK' can't be loaded"),
    ({"task": f"{__name__}:NO_TASK"}, r"names a int, it must be a tokenenv Task"),
    ({"split": "test"}, r"split='test' is unknown.*'train', 'eval'"),
    ({"kl_shaping": "k3"}, r"kl_shaping='k3' is unknown.*'k1', 'none'"),
    ({"scoring": "later"}, r"scoring='later' is unknown.*'step', 'deferred'"),
    ({"dtype": "int8"}, r"dtype='int8' is unknown.*float32"),
    ({"device": "nonsense"}, r"device='nonsense' can't be used here.*try 'cpu'"),
    ({"kl_coef": -0.1}, r"kl_coef=-0.1 must be 0 or a positive number"),
    ({"kl_coef": float("nan")}, r"kl_coef=nan must be"),
    ({"kl_coef": "0.1"}, r"kl_coef='0.1' must be"),
    ({"temperature": 0.0}, r"temperature=0.0 must be a positive"),
    ({"temperature": "hot"}, r"temperature='hot' must be a positive"),
    ({"score_clip": -1.0}, r"score_clip=-1.0 must be positive, or None"),
    ({"missing_eos_penalty": -1.0}, r"missing_eos_penalty=-1.0 must be"),
    ({"max_new_tokens": 0}, r"max_new_tokens=0 must be a whole number of at least 1"),
    ({"max_new_tokens": 2.5}, r"max_new_tokens=2.5 must be a whole number"),
    ({"max_new_tokens": True}, r"max_new_tokens=True must be a whole number"),
    ({"max_prompt_tokens": 0}, r"max_prompt_tokens=0 must be a whole number"),
    ({"max_new_tokens": 60}, r"max_prompt_tokens \+ max_new_tokens = 66 exceeds the 64 positions"),
    ({"reference": "/no/such/folder"}, r"reference='/no/such/folder' is neither"),
    ({"reference": "no-such-model"}, r"reference='no-such-model' can't be loaded"),
    ({"reference": ["a"]}, r"reference=\['a'\]: give a model's folder or hub id"),
    ({"reference": 5}, r"reference=5: give a model's folder or hub id"),
    ({"reward_model": "/no/such/folder"}, r"reward_model='/no/such/folder' is neither"),
    ({"reward_model": 5}, r"reward_model=5: give a model's folder or hub id"),
    ({"reward_model": torch.nn.Linear(1, 1)}, r"reward_model is a Linear, a torch module"),
    ({"reward_model": "no_such_module:f"}, r"'no_such_module:f' can't be loaded"),
    ({"reward_model": f"{__name__}:EOS"}, r"names no function"),
    ({"prompts": []}, r"prompts=\[\]: give a non-empty list"),
    ({"prompts": ["w4", 5]}, r"number 2: the prompt 5 is a int"),
    ({"prompts": 5}, r"prompts=5: give a non-empty list"),
    ({"prompts": ["w4", "  "]}, r"the prompt '  ' is empty"),
    ({"prompts": ["w4 w5 w6 w7 w8 w9"]}, r"has 7 tokens, more than max_prompt_tokens=6"),
    ({"prompts": "nowhere.jsonl"}, r"prompts='nowhere.jsonl' is no file"),
    ({"prompts": "nowhere"}, r"prompts='nowhere' is no file, and no dataset"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_ARGUMENTS, ids=[str(changes) for changes, _ in BAD_ARGUMENTS]
)
def test_bad_arguments_are_refused_with_what_to_do(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        TokenEnv(**{**settings, **changes})


def test_render_mode_unknown(settings):
    with pytest.raises(ValueError, match=r"render_mode='svg' is unknown.*'ansi', 'human'"):
        TokenEnv(**settings, render_mode="svg")


def test_own_prompts_of_a_task_that_do_not_fit_are_refused_at_once():
    with pytest.raises(ValueError, match=r"more than max_prompt_tokens=3"):
        gym.make("TokenRLHF-v0", max_prompt_tokens=3)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("w4 w5 w6 w7 w8 w9", "has 7 tokens, more than max_prompt_tokens=6"),
        (7, "is a int, it must be text"),
    ],
)
def test_bad_prompt_options_are_refused(settings, prompt, message):
    env = make(settings)
    with pytest.raises(ValueError, match=message):
        env.reset(options={"prompt": prompt})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", r"p.txt is empty"),
        ("p.txt", b"\n \n", r"p.txt is empty"),
        ("p.txt", b"w4\n\xff\xfe\n", r"p.txt, line 2: not UTF-8"),
        ("p.jsonl", b'{"prompt": "w4"}\n\n{"prompt": "w5"', r"p.jsonl, line 3: not valid JSON"),
        ("p.jsonl", b'{"prompt": "w4"}\n["w5"]\n', r"p.jsonl, line 2: needs a JSON object"),
        ("p.jsonl", b'{"text": "w4"}\n', r"p.jsonl has no column 'prompt'; its columns are 'text'"),
        ("p.jsonl", b'{"prompt": 4}\n', r"p.jsonl, line 1: the field 'prompt' is a int"),
        ("p.jsonl", b'{"prompt": " "}\n', r"p.jsonl, line 1: the prompt is empty"),
        ("p.jsonl", b'{"prompt": "w4", "split": "dev"}', r"line 1: 'split' is 'dev'"),
        ("p.jsonl", b'{"prompt": "w4", "split": "eval"}', r"no prompt whose 'split' is 'train'"),
    ],
)
def test_malformed_prompt_files_name_the_line(settings, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TokenEnv(**{**settings, "prompts": str(file)})


def test_folders_that_hold_no_usable_model_are_refused(settings, reference_folder, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "config.json").write_text("[1, 2")
    torn = save_language_model(tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    for role in ("reference", "reward_model"):
        with pytest.raises(ValueError, match=rf"{role}='.*empty'.*without config.json"):
            TokenEnv(**{**settings, role: str(empty)})
        with pytest.raises(ValueError, match=rf"{role}='.*broken' can't be loaded"):
            TokenEnv(**{**settings, role: str(broken)})
    with pytest.raises(ValueError, match=r"reference='.*torn' can't be loaded"):
        TokenEnv(**{**settings, "reference": torn})


def test_a_classifier_is_no_reference(settings, reward_folder):
    with pytest.raises(ValueError, match=r"reference='.*reward'.*lm_head"):
        TokenEnv(**{**settings, "reference": reward_folder})


def test_a_reward_model_has_one_output_and_is_a_classifier(settings, reference_folder, tmp_path):
    several = save_classifier(tmp_path / "several", num_labels=3)
    with pytest.raises(ValueError, match=r"has 3 outputs .*; a reward model has exactly one"):
        TokenEnv(**{**settings, "reward_model": several})
    with pytest.raises(ValueError, match=r"LlamaForCausalLM, no sequence classifier.*--pairs"):
        TokenEnv(**{**settings, "reward_model": reference_folder})


def test_a_reward_model_without_positions_for_the_episodes_is_refused(settings, tmp_path):
    short = save_classifier(tmp_path / "short", "gpt2", n_positions=8)
    with pytest.raises(ValueError, match=r"= 11 exceeds the 8 positions of the reward model"):
        TokenEnv(**{**settings, "reward_model": short})


def test_a_model_without_eos_is_refused(settings, tmp_path):
    folder = save_language_model(tmp_path / "m")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = tmp_path / "m" / name
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "eos_token_id": None, "eos_token": None}))
    with pytest.raises(ValueError, match=r"has no EOS token"):
        TokenEnv(**{**settings, "reference": folder})


def test_dropout_is_off_whatever_the_config_says(settings, tmp_path):
    """Trap 4: the floats in configs that attention reads, and every dropout module."""
    folder = save_language_model(tmp_path / "m", attention_dropout=0.5)
    env = make(settings, reference=folder)
    model = env.mdp.language_model.model
    model.train()
    try:
        env.reset(options={"prompt": "w7"})
        infos = play(env, [9, 12, EOS])[1]
    finally:
        model.eval()
    expected = reference_log_probs(folder, [1, 7], [9, 12, EOS])
    np.testing.assert_allclose([i["ref_logprob"] for i in infos], expected, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())


# The surface that Gymnasium's users touch ---------------------------------------------------------


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_every_integer_is_the_token_that_it_names(settings, scoring):
    single, vector = make(settings, scoring=scoring), TokenVectorEnv(2, **settings)
    expected = None
    given = [9, *(kind(9) for kind in INTEGERS), np.array(9), np.array([9], np.int8)]
    for action in [*given, torch.tensor(9), torch.tensor([9], dtype=torch.uint8)]:
        single.reset(options={"prompt": "w7"})
        found = single.step(action)
        expected = expected or found
        assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
        assert single.action_space.contains(np.int64(np.asarray(action).reshape(-1)[0]))
    for kind in INTEGERS:
        vector.reset(options={"prompt": "w7"})
        found = vector.step(np.full(2, 9, dtype=kind))
        assert np.allclose(found[1], expected[1], atol=1e-6) or scoring == "deferred"
        assert (found[0][:, 6] == 9).all()


@pytest.mark.parametrize(
    "action", [9.0, np.float32(9), True, np.bool_(False), "9", None, [9, 9], 10**30, 2**63, -1, 99]
)
def test_anything_else_is_refused_with_what_is_allowed(settings, action):
    single, vector = TokenEnv(**settings), TokenVectorEnv(2, **settings)
    single.reset(seed=0)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"0 … 39"):
        single.step(action)
    with pytest.raises(ValueError, match=r"0 … 39"):
        vector.step([action] * 2)
    single.step(9)  # nothing has changed
    vector.step(np.array([9, 9]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"promt": "w7"}, r"no option 'promt': it takes 'prompt'"),
        ({"prompt": "w7", 3: 1}, r"no option 3"),
        ({"prompt": 7}, "it must be text"),
        ({"prompt": b"w7"}, "it must be text"),
        ([("prompt", "w7")], "is a list; it must be a dict"),
        ("w7", "is a str; it must be a dict"),
    ],
)
def test_options_that_reset_does_not_know_are_refused(settings, options, words):
    with pytest.raises(ValueError, match=words):
        make(settings).reset(options=options)
    with pytest.raises(ValueError, match=f"{words}|must be one prompt"):
        TokenVectorEnv(2, **settings).reset(options=options)


def test_an_id_of_the_users_own(settings):
    """Registered with keyword arguments; made in every way, and through its spec."""
    name = "tests/Own-v0"
    gym.register(
        name,
        entry_point="tokenenv.env:TokenEnv",
        vector_entry_point="tokenenv.vector_env:TokenVectorEnv",
        kwargs={**settings, "kl_coef": 0.7},
    )
    try:
        single = gym.make(name)
        assert single.unwrapped.kl_coef == 0.7
        assert gym.make(name, kl_coef=0.1).unwrapped.kl_coef == 0.1
        again = gym.make(EnvSpec.from_json(single.spec.to_json()))
        copied, pickled = copy.deepcopy(single), pickle.loads(pickle.dumps(single))
        for env in (single, again, copied, pickled):
            env.reset(seed=3, options={"prompt": "w7"})
        steps = [env.step(9)[1] for env in (single, again, copied, pickled)]
        assert steps == pytest.approx([steps[0]] * 4, abs=1e-6)
        for mode in ("sync", "vector_entry_point", None):
            vector = gym.make_vec(name, num_envs=2, vectorization_mode=mode)
            vector.reset(options={"prompt": "w7"})
            assert vector.step(np.array([9, 9]))[1] == pytest.approx([steps[0]] * 2, abs=1e-5)
        assert make_vec_env(name, 2).inner.kl_coef == 0.7
    finally:
        gym.registry.pop(name)


def test_an_id_without_a_vector_environment_says_what_to_register(settings):
    name = "tests/Single-v0"
    gym.register(name, entry_point="tokenenv.env:TokenEnv", kwargs=settings)
    try:
        with pytest.raises(ValueError, match=r"vector_entry_point='tokenenv.vector_env:Token"):
            make_vec_env(name, 2)
    finally:
        gym.registry.pop(name)


def test_prompts_that_callers_bring_are_remembered_up_to_a_bound(tiny_task_kwargs, monkeypatch):
    """A service that is asked for ever new prompts does not grow."""
    monkeypatch.setattr("tokenenv.prompts.MOST_OTHERS", 3)
    env = TokenEnv(**tiny_task_kwargs)
    own = [env.mdp.book.encode(origin.content) for origin in env.mdp.book.origins]
    for number in range(3, 20):
        env.reset(options={"prompt": f"w{number} w{number} w{number}"})
    assert len(env.mdp.book._others) == 3
    again = [env.mdp.book.encode(origin.content) for origin in env.mdp.book.origins]
    assert all(one is two for one, two in zip(own, again, strict=True))
    env.reset(options={"prompt": "w3 w3 w3"})
    assert env.mdp.book.encode("w3 w3 w3").tolist() == [3, 3, 3]
