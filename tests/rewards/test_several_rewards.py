"""Several rewards with weights: sums, None, names; classifiers with templates of their own."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from support.chat import (
    CHATML,
    LLAMA,
    RAISES,
    chat_tokenizer,
    save_chat_classifier,
    save_chat_model,
)
from support.models import save_classifier, word_tokenizer

from agents import make_vec_env
from tokenenv import notes
from tokenenv.data import PreferencePair, Prompt
from tokenenv.env import TokenEnv
from tokenenv.models import load_frozen
from tokenenv.rewards import (
    Episode,
    LearnedReward,
    WeightedRewards,
    as_token_pair,
    is_learned,
    learned_rewards,
    load_reward_model,
    resolve_reward,
)
from tokenenv.rewards.pairs import seam_differences_of

EOS, END = 2, 38
USER = ({"role": "user", "content": "w4 w5"},)


def words(prompts, responses):
    return [float(len(response.split())) for response in responses]


def only_w7(completions, **kwargs):
    return [1.0 if "w7" in completion else None for completion in completions]


def per_token(prompts, responses, response_tokens):
    return [[0.25] * len(tokens) for tokens in response_tokens]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def model(folder):
    return load_frozen(save_chat_model(folder / "reference"))


@pytest.fixture(scope="module")
def classifier(folder):
    return save_chat_classifier(folder / "judge", reward_mean=0.5, reward_std=2.0)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(notes, "_SAID", set())
    caplog.set_level(logging.WARNING, logger="tokenenv")
    return caplog


def episode(*response, content="w4", stopped=True, **columns):
    prompt = np.array([1, 4]) if isinstance(content, str) else np.array([1, 37, 32, 4, 5, 38])
    return Episode(prompt, np.array(response), stopped, Prompt(content, columns))


def resolve(model, *rewards, weights=None):
    return resolve_reward(list(rewards), model, "cpu", "float32", weights)


def test_the_score_is_the_weighted_sum_of_normalised_rewards(model, classifier):
    episodes = [episode(7, 8, EOS), episode(9, EOS)]
    raw = LearnedReward(load_reward_model(classifier), model)(episodes).raw
    found = resolve(model, words, only_w7, classifier, weights=[2.0, -3.0, 0.5])(episodes)
    # words: 2 and 1; only_w7: 1 and None; the classifier: (raw − 0.5)/2.
    expected = np.array([2 * 2 - 3, 2 * 1 + 0]) + 0.5 * (raw - 0.5) / 2
    np.testing.assert_allclose(found.raw, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.raw, found.normalized)
    assert list(found.parts) == ["words", "only_w7", "judge"]
    np.testing.assert_array_equal(found.parts["judge"], raw)
    np.testing.assert_array_equal(found.parts["only_w7"], [1.0, np.nan])


def test_rewards_per_token_are_summed_where_they_are_and_the_rest_is_at_the_end(model):
    scorer = TokenEnv(
        reference=model.name,
        reward_model=[per_token, words],
        reward_weights=[2.0, 1.0],
        prompts=["w4"],
        max_prompt_tokens=4,
        max_new_tokens=4,
        device="cpu",
        scoring="deferred",
    ).scorer
    scores = scorer.score([episode(7, 8, EOS)])
    assert scores.is_per_token and scores.token_rewards[0].tolist() == [0.5, 0.5, 0.5 + 2.0]
    assert scores.score.tolist() == [3.5] and scores.parts_of(0) == {"per_token": 0.75, "words": 2}


def test_none_of_the_only_reward_or_of_all_of_them_is_refused(model):
    with pytest.raises(ValueError, match=r"returned None .NoneType.*None is for one of several"):
        resolve_reward(only_w7, model, "cpu", "float32")([episode(9, EOS)])
    with pytest.raises(
        ValueError, match=r"only_w7, only_w7-2 returned None, all of them, for resp"
    ):
        resolve(model, only_w7, only_w7)([episode(7, EOS), episode(9, EOS)])


def test_names_are_short_and_differ(model, classifier):
    def a_name_that_is_longer_than_what_sb3_shows():
        pass

    found = resolve(
        model, words, words, lambda p, r: [], classifier, a_name_that_is_longer_than_what_sb3_shows
    )
    assert isinstance(found, WeightedRewards)
    names = list(found.sources)
    assert names[:4] == ["words", "words-2", "lambda", "judge"] and len(names[4]) <= 20
    assert list(learned_rewards(found)) == ["judge"] and not is_learned(found)
    assert is_learned(resolve(model, classifier, classifier))
    assert is_learned(resolve_reward(classifier, model, "cpu", "float32"))


KWARGS = {"prompts": ["w4"], "max_prompt_tokens": 4, "max_new_tokens": 4, "device": "cpu"}


def test_the_end_of_an_episode_holds_each_reward_in_both_faces(model):
    kwargs = {"reference": model.name, "reward_model": [words, only_w7], "kl_coef": 0.0, **KWARGS}
    env = TokenEnv(**kwargs, reward_weights=[0.5, 2.0])
    env.reset()
    env.step(9)
    assert env.step(EOS)[4]["rm_scores"] == {"words": 1.0}, "None has no number"
    batch = make_vec_env(n_envs=2, seed=0, **kwargs)
    batch.reset()
    batch.step(np.array([7, 9]))
    _, rewards, _, infos = batch.step(np.array([EOS, EOS]))
    assert infos[0]["rm_scores"] == {"words": 1.0, "only_w7": 1.0}
    assert infos[1]["rm_scores"] == {"words": 1.0} and rewards.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    "given",
    [
        {"reward_model": []},
        {"reward_model": [words], "reward_weights": [1.0, 2.0]},
        {"reward_model": [words], "reward_weights": [float("nan")]},
        {"reward_model": words, "reward_weights": 1.0},
        {"reward_weights": [1.0]},
        {"reward_model": [words], "reward_weights": []},
    ],
)
def test_lists_and_weights_that_do_not_fit_are_refused(model, given):
    with pytest.raises(ValueError, match=r"reward_weights=.* one for each|empty list"):
        TokenEnv(reference=model.name, **KWARGS, **given)


def test_one_reward_may_have_a_weight(model):
    env = TokenEnv(reference=model.name, reward_model=words, reward_weights=[3.0], **KWARGS)
    env.reset()
    env.step(9)
    info = env.step(EOS)[4]
    assert info["score"] == 3.0 and info["rm_scores"] == {"words": 1.0}


def test_a_penalty_of_length_is_a_weight_of_the_number_of_tokens(model):
    rewards = [words, "tokenenv.rewards:response_length"]
    env = TokenEnv(
        reference=model.name, reward_model=rewards, reward_weights=[1.0, -0.25], kl_coef=0, **KWARGS
    )
    env.reset()
    env.step(9)
    env.step(10)
    info = env.step(EOS)[4]  # two words, three tokens
    assert info["rm_scores"] == {"words": 2.0, "response_length": 3.0} and info["score"] == 1.25


# Classifiers --------------------------------------------------------------------------------------


class Read(LearnedReward):
    """Shows which token ids the reward model is fed, as lists."""

    def sequences(self, *episodes):
        return [ids.tolist() for ids in super().sequences(episodes)]


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_a_classifier_reads_conversations_as_its_own_template_writes_them(model, folder, template):
    rewards = load_reward_model(save_chat_classifier(folder / f"own-{len(template)}", template))
    end = 38 if template is CHATML else 39
    turn = [37, 32, 4, 5, end, 37, 33, 7, 8, end]
    finished = episode(7, 8, END, content=USER)
    cut_off = episode(7, 8, content=USER, stopped=False)
    assert Read(rewards, model).sequences(finished, cut_off) == [[1, *turn]] * 2
    said = [*USER, {"role": "assistant", "content": "w7 w8"}]
    expected = chat_tokenizer(template, bos=template is CHATML).apply_chat_template(said)
    assert [1, *turn] == ([] if template is LLAMA else [1]) + list(
        expected["input_ids"] if hasattr(expected, "keys") else expected
    )
    pair = as_token_pair(PreferencePair(USER, "w7 w8", "w9"), rewards)
    assert pair.chosen.tolist() == [1, *turn], "training reads what scoring reads"


def test_a_conversation_that_the_classifier_can_not_read_whole_is_refused_at_once(model, folder):
    """Not when its first episode ends, which may be hours later."""
    rewards = load_reward_model(save_chat_classifier(folder / "short", CHATML))
    limit = rewards.max_tokens
    long = [{"role": "user", "content": " ".join(["w4"] * (limit - 12))}]
    LearnedReward(rewards, model).check_prompts([Prompt(long)])
    with pytest.raises(ValueError, match=rf"reads whole conversations, and at most {limit} tokens"):
        LearnedReward(rewards, model, response_tokens=12).check_prompts([Prompt(long)])


def test_pairs_of_several_turns_are_rendered_whole(folder):
    rewards = load_reward_model(save_chat_classifier(folder / "turns"))
    answer = (
        {"role": "assistant", "content": "w7"},
        {"role": "user", "content": "w8"},
        {"role": "assistant", "content": "w9"},
    )
    pair = as_token_pair(PreferencePair(USER, answer, "w7"), rewards)
    text = rewards.chat.whole([*USER, *answer])
    assert pair.chosen.tolist() == [
        1,
        *rewards.tokenizer(text, add_special_tokens=False)["input_ids"],
    ]
    same = as_token_pair(PreferencePair(USER, "w9", "w7"), rewards)
    assert pair.prompt == same.prompt and pair.rejected.tolist() == same.rejected.tolist()


def test_texts_are_read_as_before_also_with_a_template(model, folder):
    rewards = load_reward_model(save_chat_classifier(folder / "text"))
    assert Read(rewards, model).sequences(episode(7, END)) == [[1, 4, 7, EOS]]


def test_a_classifier_without_a_template_reads_the_references_and_says_so(model, folder, said):
    rewards = load_reward_model(save_chat_classifier(folder / "none", None))
    reader = Read(rewards, model)
    reader.check_prompts([Prompt(USER), Prompt(USER)])
    finished = episode(7, END, content=USER)
    assert reader.sequences(finished) == [[*finished.prompt.tolist(), 7, EOS]]
    assert [r.message for r in said.records if "has no chat template" in r.message].__len__() == 1
    with pytest.raises(ValueError, match="no chat template"):
        as_token_pair(PreferencePair(USER, "w7", "w9"), rewards)


def test_a_classifier_that_refuses_the_roles_is_refused_at_the_start(model, folder):
    rewards = load_reward_model(save_chat_classifier(folder / "raises", RAISES))
    system = ({"role": "system", "content": "w9"}, *USER)
    Read(rewards, model).check_prompts([Prompt(USER), Prompt("w4")])
    with pytest.raises(ValueError, match=r"refuses messages of the roles system, user, assistant"):
        Read(rewards, model).check_prompts([Prompt(USER), Prompt(system)])


def test_another_vocabulary_is_said_once(model, folder, said):
    other = save_classifier(folder / "other", tokenizer=word_tokenizer(reverse=True))
    for _ in range(2):
        reader = Read(load_reward_model(other), model)
    assert not reader.feeds_tokens
    (record,) = [r for r in said.records if "another vocabulary" in r.message]
    assert "tokenised again" in record.message


def test_two_outputs_are_refused_with_what_to_do(folder):
    two = save_classifier(folder / "two", num_labels=2)
    with pytest.raises(ValueError, match=r"2 outputs .LABEL_0, LABEL_1.*log-odds of 'LABEL_1'"):
        load_reward_model(two)


def test_seams_of_pairs_are_counted(folder):
    rewards = load_reward_model(save_chat_classifier(folder / "seams"))
    pairs = [
        PreferencePair("w4", "w7", "w9"),  # "w4w7" is one unknown word, twice
        PreferencePair("w4 ", "w7", "w9"),
        PreferencePair(USER, "w7", "w9"),
        as_token_pair(PreferencePair("w4", "w7", "w9"), rewards),
    ]
    assert seam_differences_of(pairs, rewards) == (2, 6)
