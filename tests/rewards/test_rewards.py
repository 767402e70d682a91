"""Where scores come from: functions of the user's, reward models, and the scorer's arithmetic."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import save_classifier, save_language_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

import tokenenv  # noqa: F401  (registers the ids)
from tokenenv.models.language_model import load_frozen, load_trainable
from tokenenv.models.reference import Reference
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model
from tokenenv.rewards.scoring import EpisodeScorer
from tokenenv.rewards.sources import (
    Episode,
    FunctionReward,
    LearnedReward,
    RawRewards,
    resolve_reward,
)
from tokenenv.user_code import UserCodeError

EOS = 2


def word_count(prompts: list[str], responses: list[str]) -> list[float]:
    """Found by name in the tests below."""
    return [float(len(response.split())) for response in responses]


def episode(prompt, response, stopped=None):
    stopped = response[-1] == EOS if stopped is None else stopped
    return Episode(np.array([1, *prompt]), np.array(response), stopped)


EPISODES = [
    episode([4, 5], [9, 10, EOS]),
    episode([6], [11, 12, 13, 14]),
    episode([7, 8, 4, 5], [EOS]),
]


@pytest.fixture(scope="module")
def language_model(reference_folder):
    return load_frozen(reference_folder)


@pytest.fixture(scope="module")
def settings(reference_folder):
    return {
        "reference": reference_folder,
        "prompts": ["w4 w5"],
        "max_prompt_tokens": 6,
        "max_new_tokens": 4,
        "kl_coef": 0.0,
        "device": "cpu",
    }


def function(language_model, call):
    return FunctionReward(call, "reward function 'f'", language_model)


# Functions ---------------------------------------------------------------------------------------


def test_a_function_gets_the_texts_and_its_floats_are_the_rewards(language_model):
    seen = []

    def call(prompts, responses):
        seen.append((prompts, responses))
        return [0.5, -1, np.float32(2)]

    found = function(language_model, call)(EPISODES)
    texts = ["w4 w5", "w6", "w7 w8 w4 w5"], ["w9 w10", "w11 w12 w13 w14", ""]
    assert seen == [texts]
    assert found.raw.tolist() == found.normalized.tolist() == [0.5, -1.0, 2.0]
    assert found.raw.dtype == np.float64 and found.per_token is None


@pytest.mark.parametrize(
    "returned",
    [
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0]),
        [torch.tensor(1.0), np.int64(2), 3],
        (float(i) for i in (1, 2, 3)),
        range(1, 4),
        {0: 1.0, 1: 2.0, 2: 3.0}.values(),
        [np.array(1.0), torch.tensor([2.0])[0], Fraction(3)],
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_any_sequence_of_numbers_will_do(language_model, returned):
    found = function(language_model, lambda prompts, responses: returned)(EPISODES)
    assert found.raw.tolist() == [1.0, 2.0, 3.0]


def test_a_lambda_written_inline_works_in_the_environment(settings):
    env = gym.make("TokenRLHF-v0", reward_model=lambda p, r: [len(x) / 4 for x in r], **settings)
    env.reset()
    env.step(9)
    reward, terminated, _, info = env.step(EOS)[1:]
    assert terminated and reward == info["score"] == info["rm_score"] == 0.5  # "w9"


def test_a_callable_object_with_state_works(settings):
    class Counter:
        calls = 0

        def __call__(self, prompts, responses):
            type(self).calls += 1
            return [float(self.calls)] * len(responses)

    vector = gym.make_vec("TokenRLHF-v0", num_envs=3, reward_model=Counter(), **settings)
    vector.reset()
    assert vector.step(np.array([EOS, 9, EOS]))[1].tolist() == [1.0, 0.0, 1.0]  # one call for both
    assert vector.step(np.array([9, EOS, 9]))[1].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "returned",
    [[True, False, True], np.array([True, False, True]), torch.tensor([True, False, True])],
    ids=["list", "numpy", "torch"],
)
def test_true_and_false_count_as_1_and_0(language_model, returned):
    rewards = function(language_model, lambda prompts, responses: returned)(EPISODES)
    assert rewards.raw.tolist() == [1.0, 0.0, 1.0]
    assert rewards.raw.dtype == np.float64
    per_token = [[True, False], [False] * 4, [True]]
    rewards = function(language_model, lambda prompts, responses: per_token)(EPISODES)
    assert rewards.raw.tolist() == [1.0, 0.0, 1.0]


def test_a_function_is_found_by_its_name(settings, language_model):
    env = gym.make("TokenRLHF-v0", reward_model=f"{__name__}:word_count", **settings)
    env.reset()
    env.step(9)
    assert env.step(EOS)[1] == 1.0
    assert resolve_reward(f"{__name__}:word_count", language_model, "cpu", "float32").function is (
        word_count
    )


class Frame:
    """Like a data frame: iterating gives the names of its columns."""

    columns = (0, 1, 2)

    def __repr__(self):
        return "Frame()"  # an address in the name of a test is another in every process

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"'f' returned 2 rewards for 3 responses; it must return one per response"),
        ([], r"returned 0 rewards for 3 responses"),
        (1.0, r"returned float; it must return a list with one reward per response, here 3"),
        (None, r"returned NoneType; it must return a list"),
        ([1.0, float("nan"), 2.0], r"returned nan for response 1; a reward must be finite"),
        ([1.0, 2.0, float("inf")], r"returned inf for response 2; a reward must be finite"),
        (np.array([1.0, np.nan, 1.0]), r"returned nan for response 1"),
        ([1.0, "2", 3.0], r"returned '2' \(str\) for response 1; a reward is a float"),
        ([1.0, None, 3.0], r"returned None \(NoneType\) for response 1"),
        ([1.0, 2j, 3.0], r"returned 2j \(complex\) for response 1"),
        ([1.0, [1.0] * 4, 3.0], r"mixed floats and lists"),
        ([[1.0] * 3, [1.0] * 3, [1.0]], r"3 token rewards for response 1, which has 4 tokens"),
        ([[1.0] * 4, [1.0] * 4, [1.0]], r"4 token rewards for response 0, which has 3 tokens"),
        ([[1.0] * 3, [1.0, 1.0, np.nan, 1.0], [1.0]], r"returned nan for token 2 of response 1"),
        ([[1.0] * 3, [[1.0]] * 4, [1.0]], r"returned \[1.0\] \(list\) for token 0 of response 1"),
        (
            {0: 1.0, 1: 2.0, 2: 3.0},
            r"returned \{0: 1.0, 1: 2.0, 2: 3.0\} \(dict\); it must return a",
        ),
        ({1.0, 2.0, 3.0}, r"returned \{1.0, 2.0, 3.0\} \(set\); it must return a list"),
        (
            frozenset({1, 2, 3}),
            r"\(frozenset\); it must return a list with one reward per response",
        ),
        ({0: 1.0, 1: 2.0, 2: 3.0}.keys(), r"\(dict_keys\); it must return a list"),
        ({"score": [1.0, 2.0, 3.0]}, r"\(dict\); it must return a list"),
        ("123", r"returned '123' \(str\); it must return a list"),
        (b"abc", r"returned b'abc' \(bytes\); it must return a list"),
        (bytearray(b"abc"), r"\(bytearray\); it must return a list"),
        pytest.param(
            *(memoryview(b"abc"), r"returned memoryview; it must return a list"), id="memoryview"
        ),
        (Frame(), r"returned Frame; it must return a list"),
        ([{1.0}, {2.0}, {3.0}], r"returned \{1.0\} \(set\) for response 0; a reward is a float"),
        ([{"r": 1.0}] * 3, r"returned \{'r': 1.0\} \(dict\) for response 0; a reward is a float"),
        (np.array(1.0), r"returned ndarray; it must return a list"),
        (torch.tensor(1.0), r"returned Tensor; it must return a list"),
        (
            [1.0, 1e300, 2.0],
            r"returned 1e\+300 for response 1; a reward must lie within ±3.40e\+38",
        ),
        ([1.0, 2.0, -3.5e38], r"returned -3.5e\+38 for response 2; a reward must lie within"),
        (np.array([1e39, 0.0, 0.0]), r"returned 1e\+39 for response 0; a reward must lie within"),
        ([1.0, 10**400, 2.0], r"for response 1; a reward must lie within"),
        (
            [[0.0] * 3, [2e38, 2e38, 0.0, 0.0], [0.0]],
            r"returned 4e\+38 for all tokens of response 1",
        ),
    ],
    ids=str,
)
def test_what_is_no_reward_is_refused(language_model, returned, message):
    with pytest.raises(ValueError, match=message):
        function(language_model, lambda prompts, responses: returned)(EPISODES)


def test_bad_rewards_surface_in_the_step_that_ends_an_episode(settings):
    env = gym.make("TokenRLHF-v0", reward_model=lambda p, r: [float("nan")], **settings)
    env.reset()
    env.step(9)
    with pytest.raises(ValueError, match=r"reward function '<lambda>' returned nan"):
        env.step(EOS)


@pytest.mark.parametrize("largest", [3.4e38, -3.4e38])
def test_the_largest_floats_of_float32_are_rewards_still(language_model, largest):
    found = function(language_model, lambda p, r: [largest] * 3)(EPISODES)
    assert np.isfinite(found.raw.astype(np.float32)).all()


def test_an_error_of_the_users_function_names_it_and_is_chained(language_model):
    def call(prompts, responses):
        raise KeyError("mine")

    with pytest.raises(UserCodeError, match=r"'f' failed with KeyError: 'mine'") as raised:
        function(language_model, call)(EPISODES)
    assert isinstance(raised.value.__cause__, KeyError)


# Rewards per token -------------------------------------------------------------------------------


def per_token(prompts, responses):
    return [[float(word[1:]) for word in response.split()] for response in responses]


@pytest.mark.parametrize("as_array", [False, True])
def test_token_rewards_are_kept_and_that_of_eos_may_be_left_out(language_model, as_array):
    def call(prompts, responses):
        rows = per_token(prompts, responses)
        return [np.array(row) for row in rows] if as_array else rows

    found = function(language_model, call)(EPISODES)
    assert [row.tolist() for row in found.per_token] == [
        [9.0, 10.0, 0.0],
        [11.0, 12.0, 13.0, 14.0],
        [0.0],
    ]
    assert found.raw.tolist() == [19.0, 50.0, 0.0]


def test_token_rewards_with_one_for_eos(language_model):
    found = function(language_model, lambda p, r: [[1.0, 2.0, 3.0], [0.0] * 4, [7.0]])(EPISODES)
    assert [row.tolist() for row in found.per_token] == [[1.0, 2.0, 3.0], [0.0] * 4, [7.0]]


def test_a_third_parameter_gets_the_tokens(language_model):
    seen = []

    def call(prompts, responses, response_tokens):
        seen.append(response_tokens)
        return [[0.0] * len(tokens) for tokens in response_tokens]

    found = function(language_model, call)(EPISODES)
    assert seen == [[["w9", "w10", ""], ["w11", "w12", "w13", "w14"], [""]]]
    assert found.raw.tolist() == [0.0, 0.0, 0.0]


def test_stepwise_scoring_refuses_token_rewards_with_the_reason(settings):
    env = gym.make("TokenRLHF-v0", reward_model=per_token, **settings)
    env.reset()
    env.step(9)
    with pytest.raises(ValueError, match=r"response is finished: use scoring='deferred'"):
        env.step(EOS)


# Reward models -----------------------------------------------------------------------------------


def plain_reward(folder, ids):
    """One unpadded sequence through plain transformers in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_the_reward_is_read_at_the_last_real_token_whatever_stands_beside_it(
    tmp_path, name, pad_token, rng
):
    folder = save_classifier(tmp_path, name, tokenizer=word_tokenizer(pad_token))
    model = load_reward_model(folder)
    sequences = [rng.integers(3, 40, size=n) for n in (3, 17, 1, 9, 30)]
    sequences += [np.array([1, 4, 5, EOS]), np.array([1, 4, EOS, EOS]), np.array([1, 4, 0, 0])]
    together = model.raw_rewards(sequences)
    small_batches = model.raw_rewards(sequences, max_tokens=40)
    alone = [model.raw_rewards([sequence])[0] for sequence in sequences]
    expected = [plain_reward(folder, sequence.tolist()) for sequence in sequences]
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(small_batches, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)


def test_a_reward_model_that_shares_the_tokenizer_is_fed_tokens(language_model, reward_folder):
    """Trap 9: the sampled ids themselves, not a new tokenisation: [3] decodes to nothing."""
    reward = LearnedReward(load_reward_model(reward_folder), language_model)
    assert reward.feeds_tokens
    odd = [episode([4, 5], [9, 0, 1, 10, EOS]), episode([6], [3, 3, 12])]
    found = reward(odd)
    expected = [
        plain_reward(reward_folder, [1, 4, 5, 9, 0, 1, 10, EOS]),
        plain_reward(reward_folder, [1, 6, 3, 3, 12]),
    ]
    np.testing.assert_allclose(found.raw, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.normalized, (found.raw - 0.3) / 2.0, rtol=0, atol=1e-12)
    assert found.per_token is None


def test_a_reward_model_with_another_tokenizer_is_fed_text(language_model, tmp_path):
    """`reverse` numbers w4 … w39 from the other end: w4 is 39 there, w39 is 4."""
    folder = save_classifier(tmp_path, tokenizer=word_tokenizer(reverse=True))
    reward = LearnedReward(load_reward_model(folder), language_model)
    assert not reward.feeds_tokens
    found = reward(EPISODES)

    def other(ids):
        return [43 - i for i in ids]

    expected = [
        plain_reward(folder, [1, *other([4, 5, 9, 10]), EOS]),  # EOS as it ended with one
        plain_reward(folder, [1, *other([6, 11, 12, 13, 14])]),
        plain_reward(folder, [1, *other([7, 8, 4, 5]), EOS]),
    ]
    np.testing.assert_allclose(found.raw, expected, rtol=0, atol=1e-5)


def test_text_and_tokens_give_equal_rewards_where_both_are_possible(language_model, reward_folder):
    reward = LearnedReward(load_reward_model(reward_folder), language_model)
    by_tokens = reward(EPISODES).raw
    reward.feeds_tokens = False
    by_text = reward(EPISODES).raw
    np.testing.assert_allclose(by_text, by_tokens, rtol=0, atol=1e-6)
    assert np.ptp(by_tokens) > 0.01


def test_the_bundled_reward_model_gives_the_same_for_text_and_tokens():
    env = gym.make("TokenRLHF-v0").unwrapped
    reward, model = env.scorer.reward, env.mdp.language_model
    assert reward.feeds_tokens
    prompt = env.mdp.prompts[0]
    response = model.tokenizer(" The film is good.", add_special_tokens=False)["input_ids"]
    ended = Episode(
        model.encode(prompt), np.array([*response, model.eos_token_ids[0]]), stopped=True
    )
    by_tokens = reward([ended]).raw
    encoded = reward.reward_model.encode(prompt, model.decode(ended.response))
    np.testing.assert_allclose(reward.reward_model.raw_rewards([encoded]), by_tokens, atol=1e-6)


def test_text_that_is_too_long_for_the_reward_model_is_refused(language_model, tmp_path):
    folder = save_classifier(
        tmp_path, "gpt2", tokenizer=word_tokenizer(reverse=True), n_positions=6
    )
    reward = LearnedReward(load_reward_model(folder), language_model)
    assert reward(EPISODES[:1]).raw.shape == (1,)
    with pytest.raises(ValueError, match="have 7 tokens, more than the 6 positions"):
        reward([episode([4, 5], [9, 10, 11, 12])])


# Configs and weights that are no numbers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("reward_std", -1.0, "above 0"),
        ("reward_std", 0.0, "above 0"),
        ("reward_std", float("inf"), "above 0"),
        ("reward_std", float("nan"), "above 0"),
        ("reward_std", "2", "above 0"),
        ("reward_std", None, "above 0"),
        ("reward_std", True, "above 0"),
        ("reward_mean", float("inf"), "a finite number"),
        ("reward_mean", float("nan"), "a finite number"),
        ("reward_mean", [0.0], "a finite number"),
    ],
)
def test_statistics_that_would_reverse_or_flatten_preferences_are_refused(
    tmp_path, key, value, allowed
):
    folder = save_classifier(tmp_path, reward_mean=0.3, reward_std=2.0)
    assert load_reward_model(folder).std == 2.0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    message = rf"{tmp_path.name}.*config.json has {key}={re.escape(repr(value))}.*{allowed}"
    with pytest.raises(ValueError, match=message):
        load_reward_model(folder)


def test_a_deviation_so_small_that_scores_leave_float32_is_refused(language_model, tmp_path):
    reward = LearnedReward(
        load_reward_model(save_classifier(tmp_path, reward_std=1e-320)), language_model
    )
    with pytest.raises(ValueError, match=r"gives, normalised, -?inf for the response 'w9 w10'"):
        reward(EPISODES)


def spoil(folder, tensor, value):
    """Write `value` into the first entry of one tensor of a saved model."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[tensor].view(-1)[0] = value
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "∞")])
def test_weights_that_are_no_numbers_are_named_whatever_loads_them(tmp_path, value, kind):
    language, classifier = tmp_path / "lm", tmp_path / "rm"
    save_language_model(language), save_classifier(classifier)
    tensor = "model.layers.0.mlp.up_proj.weight"
    for folder in (language, classifier):
        spoil(folder, tensor, value)
    for load, folder, what in (
        (load_frozen, language, "reference"),
        (load_trainable, language, "actor"),
        (new_reward_model, language, "actor"),
        (load_reward_model, classifier, "reward_model"),
        (new_reward_model, classifier, "base"),
    ):
        with pytest.raises(ValueError, match=rf"{what}=.*tensor '{tensor}' holds 1 {kind} among"):
            load(str(folder))


def test_weights_beyond_the_dtype_that_was_asked_for_are_named_too(tmp_path):
    folder = save_language_model(tmp_path)
    spoil(tmp_path, "model.norm.weight", 1e5)
    load_frozen(folder)
    with pytest.raises(
        ValueError, match=r"'model.norm.weight' holds 1 ∞ .*\(float16\).*wider dtype"
    ):
        load_frozen(folder, dtype="float16")


# The scorer --------------------------------------------------------------------------------------


def fixed(raw, normalized=None, rows=None):
    """A reward source that always says the same."""
    raw = np.array(raw)
    normalized = raw if normalized is None else np.array(normalized)
    return lambda episodes: RawRewards(raw, normalized, rows)


def test_scores_are_normalised_clipped_and_penalised_in_that_order(language_model):
    scorer = EpisodeScorer(
        Reference(language_model),
        fixed([9.0, 9.5, -9.0], [0.5, 3.0, -3.0]),
        score_clip=2.0,
        missing_eos_penalty=0.75,
    )
    found = scorer.score(EPISODES)  # the second one ended by its length
    assert found.rm_score.tolist() == [9.0, 9.5, -9.0]
    assert found.score.tolist() == [0.5, 2.0 - 0.75, -2.0]
    assert [row.tolist() for row in found.token_rewards] == [
        [0.0, 0.0, 0.5],
        [0.0, 0.0, 0.0, 1.25],
        [-2.0],
    ]
    assert found.gold_reward is None and not found.is_per_token


@pytest.mark.parametrize(
    ("raw", "penalty", "message"),
    [
        (
            [1.0, -3e38, 1.0],
            1e38,
            r"give a score of -4e\+38 for response 1; a reward must lie within",
        ),
        ([1.0, 1.0, np.nan], 0.0, r"give a score of nan for response 2; a reward must be finite"),
    ],
)
def test_a_score_that_float32_can_not_hold_is_refused(language_model, raw, penalty, message):
    scorer = EpisodeScorer(Reference(language_model), fixed(raw), missing_eos_penalty=penalty)
    with pytest.raises(ValueError, match=message):
        scorer.score(EPISODES)


def test_a_gold_reward_that_is_no_number_is_refused(language_model):
    scorer = EpisodeScorer(
        Reference(language_model), fixed([1.0] * 3), gold_reward=lambda p, r, stopped: float("nan")
    )
    with pytest.raises(ValueError, match=r"gold reward is nan for the response 'w9 w10'"):
        scorer.score(EPISODES)


def test_clipping_and_penalties_of_token_rewards_land_on_the_last_token(language_model):
    rows = [np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, 0.0, 0.25]), np.array([-5.0])]
    scorer = EpisodeScorer(
        Reference(language_model),
        fixed([6.0, 0.75, -5.0], rows=rows),
        score_clip=4.0,
        missing_eos_penalty=1.0,
    )
    found = scorer.score(EPISODES)
    assert found.score.tolist() == [4.0, -0.25, -4.0]
    assert [row.tolist() for row in found.token_rewards] == [
        [1.0, 2.0, 1.0],  # 3 − (6 − 4)
        [0.5, 0.0, 0.0, -0.75],  # .25 − 1
        [-4.0],
    ]
    assert found.is_per_token
    assert rows[0].tolist() == [1.0, 2.0, 3.0]  # the source's own arrays are left alone


def test_the_gold_reward_sees_the_texts_and_does_not_touch_the_score(language_model):
    seen = []

    def gold(prompt, response, stopped):
        seen.append((prompt, response, stopped))
        return float(len(response))

    scorer = EpisodeScorer(Reference(language_model), fixed([1.0, 2.0, 3.0]), gold_reward=gold)
    found = scorer.score(EPISODES)
    stopped = [episode.stopped for episode in EPISODES]
    assert [found[2] for found in seen] == stopped and len(set(stopped)) == 2
    assert seen[0][:2] == ("w4 w5", "w9 w10") and seen[2][:2] == ("w7 w8 w4 w5", "")
    assert found.gold_reward.tolist() == [6.0, 15.0, 0.0]
    assert found.score.tolist() == [1.0, 2.0, 3.0]


def test_reference_log_probs_of_a_batch_equal_one_plain_forward_each(language_model):
    scorer = EpisodeScorer(Reference(language_model, 0.7), fixed([0.0]))
    found = scorer.ref_log_probs(EPISODES)
    for one, values in zip(EPISODES, found, strict=True):
        ids = torch.as_tensor(np.concatenate([one.prompt, one.response]))[None]
        with torch.no_grad():
            logits = language_model.model(input_ids=ids).logits[0] / 0.7
        log_probs = torch.log_softmax(logits, dim=-1)
        first = len(one.prompt)
        expected = [log_probs[first + t - 1, a].item() for t, a in enumerate(one.response)]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
