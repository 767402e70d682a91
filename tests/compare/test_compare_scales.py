"""What is 0 and what is 1: against enumeration, and against stepping the environment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agents.compare.best_response import (
    episode_returns,
    reference_ranks,
    restricted_optimum,
    search_best_responses,
)
from agents.compare.environments import make_env, require_comparable, token_mdp
from agents.compare.rollouts import Start, play
from agents.compare.scales import measure_scale
from tokenenv.models.sampling import sample_responses
from tokenenv.optimum import plain_return, plain_returns
from tokenenv.rewards.sources import Episode


@pytest.fixture(scope="module")
def mdp():
    return token_mdp(make_env("TokenRLHF-Exact-v0", "eval"))


def test_all_tokens_allowed_is_the_plain_return_optimum(exact_tree):
    best = plain_returns(exact_tree).optimum
    assert restricted_optimum(exact_tree, None) == pytest.approx(best, abs=1e-12)
    assert restricted_optimum(exact_tree, 6) == pytest.approx(best, abs=1e-12)
    found = [restricted_optimum(exact_tree, k) for k in range(1, 7)]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(found))
    assert found[0] < found[1] < found[-1]


def test_only_the_likeliest_token_allowed_is_greedy_decoding(exact_tree):
    greedy = []
    for level in exact_tree.ref_log_probs:
        is_best = np.arange(6) == level.argmax(axis=-1)[..., None]
        greedy.append(np.where(is_best, 0.0, -np.inf))
    found = restricted_optimum(exact_tree, 1)
    assert found == pytest.approx(plain_return(greedy, exact_tree), abs=1e-9)


def test_the_search_finds_the_optimum_from_below(exact_tree, mdp):
    best = plain_returns(exact_tree).optimum
    few = search_best_responses(mdp, mdp.prompts, rounds=4)
    found = search_best_responses(mdp, mdp.prompts)
    assert (few <= found + 1e-9).all()
    assert found.mean() == pytest.approx(best, abs=1e-4)
    among_two = search_best_responses(mdp, mdp.prompts, top_k=2).mean()
    assert among_two <= restricted_optimum(exact_tree, 2) + 1e-4
    assert among_two == pytest.approx(restricted_optimum(exact_tree, 2), abs=1e-4)


def test_returns_of_responses_are_what_the_environment_pays(mdp):
    env = make_env("TokenRLHF-Exact-v0", "eval")
    rng = np.random.default_rng(0)
    for prompt in mdp.prompts[:3]:
        played = play(env, lambda _: np.int64(rng.integers(6)), Start(0, prompt))
        stopped = bool(np.isin(played.actions[-1], mdp.language_model.eos_token_ids))
        episode = Episode(mdp.encode_prompt(prompt), played.actions, stopped)
        assert episode_returns(mdp, [episode])[0] == pytest.approx(played.plain_return, abs=1e-4)


def test_greedy_responses_have_rank_0_throughout(mdp):
    model = mdp.language_model
    prompts = [mdp.encode_prompt(prompt) for prompt in mdp.prompts]
    greedy = sample_responses(model.model, model.eos_token_ids, prompts, 6, greedy=True)
    episodes = [Episode(p, g.tokens, g.stopped) for p, g in zip(prompts, greedy, strict=True)]
    for ranks, episode in zip(reference_ranks(mdp, episodes), episodes, strict=True):
        assert ranks.tolist() == [0] * len(episode.response)
    other = Episode(prompts[0], (episodes[0].response + 1) % 6, False)
    assert reference_ranks(mdp, [other])[0][0] > 0


@pytest.mark.slow
def test_the_scale_of_the_exact_task_is_exact(exact_tree):
    known = plain_returns(exact_tree)
    found = measure_scale("TokenRLHF-Exact-v0", episodes=10, prompts=64)
    assert found.baseline == pytest.approx(known.reference, abs=1e-9)
    assert found.top == pytest.approx(known.optimum, abs=1e-9)
    assert not found.is_lower_bound
    assert found.score(known.reference) == pytest.approx(0.0)
    assert found.score(known.optimum) == pytest.approx(1.0)
    # Better than random proves nothing: uniform and the best constant action are below 0.
    assert found.score(found.uniform) < found.score(found.constant_action) < 0.0


def test_classic_control_has_gymnasiums_threshold():
    found = measure_scale("CartPole-v1", episodes=50, prompts=1)
    assert found.top == 475.0
    assert found.baseline == found.uniform == pytest.approx(22.0, abs=5.0)  # 22 is well known
    assert found.constant_action == pytest.approx(9.4, abs=1.0)  # so is 9 … 10


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("MountainCarContinuous-v0", "Discrete"),
        ("FrozenLake-v1", "MLP reads a Box"),
        ("NoSuchEnvironment-v0", "can't be made"),
    ],
)
def test_environments_that_can_not_be_compared_are_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        require_comparable(env_id, make_env(env_id))


def test_a_missing_library_is_named():
    pytest.importorskip("gymnasium")
    try:
        import Box2D  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="box2d"):
            make_env("LunarLander-v3")
    else:
        require_comparable("LunarLander-v3", make_env("LunarLander-v3"))
