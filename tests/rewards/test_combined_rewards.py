"""Several reward models as one reward: combinations, their scale, disagreement, refusals."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from support.models import save_classifier, save_language_model, word_tokenizer

from agents import make_vec_env
from agents.rollout.metrics import EpisodeRecord, rlhf_metrics
from tokenenv.combinations import Combination, ensemble_members, named_rewards
from tokenenv.env import TokenEnv
from tokenenv.mdp import TokenMDP
from tokenenv.models import load_frozen
from tokenenv.rewards import (
    CombinedRewards,
    is_learned,
    learned_rewards,
    load_reward_model,
    reference_episodes,
    resolve_reward,
)
from tokenenv.rewards.combined import REFERENCE_EPISODES, combine_rewards, disagreement_of
from tokenenv.settings import EnvSettings

OTHERS = ("mean", "min", "uncertainty")
EOS = 2


def words(prompts, responses):
    return [float(len(response.split())) for response in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("combined")


@pytest.fixture(scope="module")
def kwargs(folder):
    """Of an environment, without rewards."""
    return {
        "reference": save_language_model(folder / "reference"),
        "prompts": [f"w{n}" for n in range(4, 20)],
        "max_prompt_tokens": 4,
        "max_new_tokens": 5,
        "kl_coef": 0.1,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def members(folder):
    """Three reward models of one tokenizer, in the folder of an ensemble."""
    return [save_classifier(folder / "rm" / f"member-{n}", seed=n) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def twins(folder):
    """The same function of texts thrice: as it is, in another scale, by another tokenizer."""
    first = save_classifier(folder / "first", seed=5, reward_mean=0.3, reward_std=2.0)
    scaled = save_classifier(folder / "scaled", seed=5, reward_mean=-1.0, reward_std=0.1)
    reverse = word_tokenizer(reverse=True)
    other = save_classifier(folder / "other", seed=5, tokenizer=reverse)
    for name, change in ((scaled, _ten_times), (other, _read_backwards)):
        rewards = load_reward_model(name)
        change(rewards.model)
        rewards.save_pretrained(folder / "changed")
        shutil.copytree(folder / "changed", name, dirs_exist_ok=True)
    load_reward_model.cache_clear()
    return [first, scaled, other]


@torch.no_grad()
def _ten_times(model):
    model.score.weight.mul_(10.0)


@torch.no_grad()
def _read_backwards(model):
    rows = model.get_input_embeddings().weight  # w_i is number 43 − i in this tokenizer
    rows[4:] = rows[4:].flip(0).clone()


def scorer_of(kwargs, rewards, **changes):
    return TokenMDP(EnvSettings(**{**kwargs, "reward_model": rewards, **changes}), 1).scorer


# The formulas -------------------------------------------------------------------------------------


def test_combinations_by_hand():
    # Two responses, three models. Means 2 and 0; deviations √((1+0+1)/3) = √(2/3) and 0.
    values = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    deviation = np.sqrt(2 / 3)
    np.testing.assert_allclose(disagreement_of(values), [deviation, 0], rtol=1e-15)
    cases = {
        Combination("mean"): [2, 0],
        Combination("min"): [1, 0],
        Combination("uncertainty"): [2 - deviation, 0],
        Combination("uncertainty", 0.25): [2 - deviation / 4, 0],
        Combination("uncertainty", 0): [2, 0],
    }
    for combination, expected in cases.items():
        np.testing.assert_allclose(combine_rewards(values, combination), expected, rtol=1e-15)
    # (1·1 + 3·2 + 0·3)/4
    weighted = combine_rewards(values, Combination("mean"), [1.0, 3.0, 0.0])
    np.testing.assert_allclose(weighted, [7 / 4, 0], rtol=1e-15)


# Scales -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_scales_and_tokenizers_of_members_do_not_matter(kwargs, twins, name):
    """Members that say the same in other units and other tokens agree, and are as one of them."""
    scorer = scorer_of(kwargs, twins, reward_combine=name)
    episodes = reference_episodes(_settings(kwargs), scorer.reference)
    found, again = scorer.score(episodes[:40]), scorer.score(episodes[:40])
    np.testing.assert_allclose(found.disagreement, 0, atol=1e-5)
    raw = found.parts["first"]
    np.testing.assert_allclose(found.parts["scaled"], 10 * raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.parts["other"], raw, rtol=1e-4, atol=1e-5)
    everything = scorer.score(episodes).parts["first"]
    expected = (raw - everything.mean()) / everything.std()
    np.testing.assert_allclose(found.score, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.score, again.score)


def _settings(kwargs, **changes):
    return TokenMDP(EnvSettings(**{**kwargs, "reward_model": words, **changes}), 1).settings


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("count", [2, 3])
def test_the_combined_score_has_deviation_1_on_the_reference_so_that_beta_means_the_same(
    kwargs, members, name, count
):
    scorer = scorer_of(kwargs, members[:count], reward_combine=name)
    episodes = reference_episodes(_settings(kwargs), scorer.reference)
    assert len(episodes) == REFERENCE_EPISODES
    scores = scorer.score(episodes)
    assert scores.score.mean() == pytest.approx(0, abs=1e-6)
    assert scores.score.std() == pytest.approx(1, abs=1e-6)
    # Before that it has not, and the order of responses is the same.
    assert abs(scores.rm_score.std() - 1) > 0.02
    slope = np.diff(scores.score) / np.diff(scores.rm_score)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
    # The raw number is the formula's, of members normalised on these episodes.
    raw = np.array([scores.parts[part] for part in scores.parts])
    values = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    combined = combine_rewards(values, Combination(name))
    np.testing.assert_allclose(scores.rm_score, combined, atol=1e-6)
    np.testing.assert_allclose(scores.disagreement, values.std(axis=0), atol=1e-6)


def test_training_and_held_out_prompts_have_one_scale(kwargs, members):
    both = [
        scorer_of(kwargs, members, reward_combine="min", split=split) for split in ("train", "eval")
    ]
    episodes = reference_episodes(_settings(kwargs), both[0].reference)
    np.testing.assert_array_equal(both[0].score(episodes).score, both[1].score(episodes).score)


def test_reference_episodes_take_every_prompt_before_one_comes_again(kwargs):
    mdp = TokenMDP(EnvSettings(**kwargs, reward_model=words), 1)
    episodes = reference_episodes(mdp.settings, mdp.scorer.reference, 20)
    prompts = [tuple(episode.prompt) for episode in episodes]
    assert len(set(prompts[:16])) == 16 and prompts[16:] == prompts[:4]
    assert reference_episodes(mdp.settings, mdp.scorer.reference, 20) is episodes
    warmer = TokenMDP(EnvSettings(**kwargs, reward_model=words, temperature=2.0), 1)
    other = reference_episodes(warmer.settings, warmer.scorer.reference, 20)
    assert [tuple(e.response) for e in other] != [tuple(e.response) for e in episodes]


def test_a_weighted_sum_is_as_it_was_and_names_the_disagreement(kwargs, members):
    scorer = scorer_of(kwargs, [*members[:2], words], reward_weights=[2.0, -1.0, 0.5])
    episodes = reference_episodes(_settings(kwargs), scorer.reference)[:8]
    models = [load_reward_model(name) for name in members[:2]]
    found = scorer.score(episodes)
    values = [
        model.normalize(found.parts[f"member-{number}"]) for number, model in enumerate(models, 1)
    ]
    total = 2 * values[0] - values[1] + 0.5 * found.parts["words"]
    np.testing.assert_allclose(found.score, total, rtol=1e-12)
    np.testing.assert_allclose(found.disagreement, np.abs(values[0] - values[1]) / 2, rtol=1e-6)
    assert scorer_of(kwargs, [members[0], words]).score(episodes).disagreement is None


# Environment and metrics --------------------------------------------------------------------------


def test_the_end_of_an_episode_holds_the_disagreement_in_both_faces(kwargs, members):
    settings = {**kwargs, "reward_model": members, "reward_combine": "uncertainty"}
    settings.update(uncertainty_coef=0.5, kl_coef=0.0)
    env, batch = TokenEnv(**settings), make_vec_env(n_envs=2, seed=0, **settings)
    env.reset(options={"prompt": "w4"})
    env.step(9)
    _, reward, _, _, info = env.step(EOS)
    assert set(info["rm_scores"]) == {"member-1", "member-2", "member-3"}
    assert reward == info["score"] != info["rm_score"] and info["rm_disagreement"] > 0
    batch.reset()
    batch.step(np.array([7, 9]))
    infos = batch.step(np.array([EOS, EOS]))[3]
    assert all(isinstance(one["rm_disagreement"], float) for one in infos)
    record = EpisodeRecord.from_info(0.0, 0.0, info)
    metrics = rlhf_metrics([record, record], 0.1)
    assert metrics["rm_disagreement"] == info["rm_disagreement"]
    alone = EpisodeRecord.from_info(0.0, 0.0, {**info, "rm_disagreement": None})
    assert "rm_disagreement" not in rlhf_metrics([alone], 0.1)


def test_an_ensembles_folder_is_the_mean_of_its_members(kwargs, members, folder):
    assert ensemble_members(str(folder / "rm")) == members
    assert ensemble_members(members[0]) == [] == ensemble_members("hub/id")
    for number in (10, 2):
        (folder / "many" / f"member-{number}").mkdir(parents=True)
        (folder / "many" / f"member-{number}" / "config.json").write_text("{}")
    ordered = ensemble_members(str(folder / "many"))
    assert [name.rpartition("-")[2] for name in ordered] == ["2", "10"]
    scorer = scorer_of(kwargs, str(folder / "rm"))
    assert isinstance(scorer.reward, CombinedRewards) and is_learned(scorer.reward)
    assert scorer.reward.combination.name == "mean"
    assert list(learned_rewards(scorer.reward)) == ["member-1", "member-2", "member-3"]
    worst = scorer_of(kwargs, folder / "rm", reward_combine="min").reward
    assert worst.combination.name == "min"
    assert named_rewards([str(folder / "rm")], "sum") == (members, "sum")
    with pytest.raises(ValueError, match=r"holds 3 members of an ensemble, and one .*member-1'"):
        load_reward_model(str(folder / "rm"))


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward_combine": "max"}, "reward_combine='max' .* choose one of 'sum', 'mean'"),
        ({"reward_combine": ["min"]}, "is unknown"),
        ({"reward_combine": "min", "reward_weights": [1.0, 1.0]}, "takes all reward models alike"),
        ({"reward_combine": "uncertainty", "reward_weights": [1.0, 1.0]}, "Leave the weights out"),
        ({"reward_combine": "mean", "reward_weights": [1.0, -1.0]}, "must be 0 or greater"),
        ({"reward_combine": "mean", "reward_weights": [0.0, 0.0]}, "not all of them 0"),
        ({"reward_combine": "mean", "uncertainty_coef": 1.0}, "leave out either"),
        ({"uncertainty_coef": 1.0}, "leave out either"),
        ({"reward_combine": "uncertainty", "uncertainty_coef": -1.0}, "uncertainty_coef=-1.0 must"),
    ],
)
def test_combinations_that_do_not_fit_are_refused(kwargs, members, given, said):
    with pytest.raises(ValueError, match=said):
        TokenEnv(**kwargs, reward_model=members[:2], **given)


def test_one_reward_functions_and_ensembles_in_lists_are_refused(kwargs, members, folder):
    with pytest.raises(ValueError, match=r"reward_model=.*member-1' is one: name several"):
        TokenEnv(**kwargs, reward_model=members[0], reward_combine="min")
    with pytest.raises(ValueError, match="is one: name several"):
        TokenEnv(**kwargs, reward_model=[members[0]], reward_combine="mean")
    with pytest.raises(ValueError, match="'words' is a function, which nothing is estimated by"):
        TokenEnv(**kwargs, reward_model=[members[0], words], reward_combine="min")
    with pytest.raises(ValueError, match=r"'os.path:join' is a function"):
        TokenEnv(**kwargs, reward_model=[members[0], "os.path:join"], reward_combine="mean")
    with pytest.raises(ValueError, match="holds the 3 members of an ensemble: name it alone"):
        TokenEnv(**kwargs, reward_model=[str(folder / "rm"), members[0]])
    model = load_frozen(kwargs["reference"])
    with pytest.raises(ValueError, match="give reference_episodes"):
        resolve_reward(members, model, "cpu", "float32", combination=Combination("min"))


def test_members_that_say_the_same_of_everything_are_refused(kwargs, members, folder):
    flat = save_classifier(folder / "flat", seed=9)
    rewards = load_reward_model(flat)
    torch.nn.init.zeros_(rewards.model.score.weight)
    with pytest.raises(ValueError, match="reward model 'flat' gives the same reward to all of 256"):
        TokenEnv(**kwargs, reward_model=[members[0], flat], reward_combine="mean")
