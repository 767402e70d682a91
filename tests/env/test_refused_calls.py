"""A call that is refused changes nothing: the episode goes on, and the same step can be taken."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.error import Error
from support.env_lanes import snapshot

from tokenenv.env import TokenEnv
from tokenenv.vector_env import TokenVectorEnv

EOS = 2


@pytest.fixture
def rows(settings):
    env = TokenVectorEnv(3, autoreset_mode="Disabled", **settings)
    env.reset(seed=1)
    env.step(np.array([5, 6, 7]))
    return env


@pytest.mark.parametrize("last", ["", "w4 " * 9, 1, {"prompt": ""}])
@pytest.mark.parametrize("seed", [None, 4])
def test_where_one_row_cannot_be_reset_none_is(rows, last, seed):
    """The rows before it had begun another episode, of another seed."""
    before = snapshot(rows)
    with pytest.raises(ValueError, match="prompt"):
        rows.reset(seed=seed, options={"prompt": ["w4", "w5", last]})
    assert snapshot(rows) == before


def test_a_prompt_of_a_row_that_is_not_reset_is_not_looked_at(rows):
    mask = np.array([True, False, False])
    _, infos = rows.reset(options={"prompt": ["w4", "", None], "reset_mask": mask})
    assert infos["prompt"].tolist() == ["w4", None, None]


@pytest.mark.parametrize("seed", [[1, 2, -1], [1, 2, "x"], [1, 2, 1.5], -1, 1.5, "123", b"123", {}])
def test_a_seed_that_is_none_is_refused_by_name_and_no_row_is_reset(rows, seed):
    """−1 + 2 was the seed of the last row, and the letters of b"123" were three seeds."""
    before = snapshot(rows)
    for options in (None, {"reset_mask": np.array([False, False, True])}):
        with pytest.raises(ValueError, match="seed"):
            rows.reset(seed=seed, options=options)
        assert snapshot(rows) == before


def test_seeds_may_be_numpys(rows):
    expected = rows.reset(seed=[3, 4, 5])[0]
    for seed in (np.int64(3), np.array([3, 4, 5]), [np.int64(3), 4, np.uint8(5)]):
        np.testing.assert_array_equal(rows.reset(seed=seed)[0], expected)
        assert rows.np_random_seed == (3, 4, 5)


@pytest.mark.parametrize("prompt", ["", "w4 " * 9, 1])
def test_a_single_environment_keeps_its_generator_when_a_prompt_is_refused(settings, prompt):
    env = TokenEnv(**settings)
    env.reset(seed=1)
    before = snapshot(env)
    with pytest.raises(ValueError, match="prompt"):
        env.reset(seed=2, options={"prompt": prompt})
    with pytest.raises(Error):
        env.reset(seed=-1)
    assert snapshot(env) == before


def test_an_end_that_nobody_scores_can_be_taken_again(settings):
    env = TokenEnv(**{**settings, "scoring": "deferred"})
    env.reset(seed=1)
    env.step(5)
    before = snapshot(env)
    with pytest.raises(ValueError, match="leave_scoring_to_caller"):
        env.step(EOS)
    assert snapshot(env) == before
    env.leave_scoring_to_caller()
    _, _, ended, _, info = env.step(EOS)
    assert ended and info["response"] == "w5" and info["response_length"] == 2


@pytest.mark.parametrize("error", [ConnectionError("no answer"), KeyboardInterrupt()])
def test_a_step_whose_reward_fails_can_be_taken_again(settings, error):
    is_down = True

    def judge(prompts, responses):
        if is_down:
            raise error
        return [float(len(response)) for response in responses]

    env = TokenVectorEnv(2, **{**settings, "reward_model": judge})
    env.reset(seed=1)
    env.step(np.array([5, 6]))
    before = snapshot(env)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        env.step(np.array([7, EOS]))
    assert snapshot(env) == before
    is_down = False
    observations, _, ended, _, infos = env.step(np.array([7, EOS]))
    assert ended.tolist() == [False, True] and infos["score"].tolist() == [0.0, 2.0]
    assert observations[:, 6:9].tolist() == [[5, 7, -1], [6, EOS, -1]]
