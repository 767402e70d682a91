"""The vector environment is its rows: stepped beside single environments, in every mode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from support.comparing import assert_equal

import tokenenv  # noqa: F401  (registers the ids)
from tokenenv.env import TokenEnv
from tokenenv.vector_env import TokenVectorEnv

EOS, V = 2, 40
PROMPTS = ["w4 w5 w6", "w7", "w8 w9 w10 w11", "w12 w13"]


@pytest.fixture(scope="module")
def settings(reference_folder, reward_folder):
    return {
        "reference": reference_folder,
        "reward_model": reward_folder,
        "prompts": PROMPTS,
        "max_prompt_tokens": 6,
        "max_new_tokens": 5,
        "kl_coef": 0.2,
        "missing_eos_penalty": 0.5,
        "device": "cpu",
    }


def pair(settings, mode, num_envs=4):
    """The same rows as gymnasium's own vector of single environments, and as ours."""
    singles = SyncVectorEnv(
        [lambda: TokenEnv(**settings)] * num_envs, autoreset_mode=AutoresetMode(mode)
    )
    return singles, TokenVectorEnv(num_envs, autoreset_mode=mode, **settings)


def draw_actions(rng, num_envs):
    """Any token, EOS often enough for ends of all kinds."""
    actions = rng.integers(V, size=num_envs)
    actions[rng.random(num_envs) < 0.25] = EOS
    return actions


MODES = [
    *("NextStep", "SameStep", "Disabled"),
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in AutoresetMode),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("changes", [{}, {"scoring": "deferred"}, {"kl_shaping": "none"}], ids=str)
def test_rows_equal_single_environments_stepped_beside_them(settings, mode, changes, rng):
    singles, vector = pair({**settings, **changes}, mode)
    singles.call("leave_scoring_to_caller")
    vector.leave_scoring_to_caller()
    assert_equal(singles.reset(seed=11), vector.reset(seed=11))
    ends = 0
    for step in range(60):
        actions = draw_actions(rng, 4)
        expected, found = singles.step(actions), vector.step(actions)
        assert_equal(expected, found, f"step {step}")
        ended = found[2]
        ends += ended.sum()
        if AutoresetMode(mode) is AutoresetMode.DISABLED:
            mask = ended.copy()
            if step % 7 == 3:  # restart a row in the middle of its episode too
                mask[step % 4] = True
            if mask.any():
                seed = [step, None, step + 1, None] if step % 2 else None
                expected = singles.reset(seed=seed, options={"reset_mask": mask.copy()})
                assert_equal(expected, vector.reset(seed=seed, options={"reset_mask": mask}))
    assert ends > 20
    assert_equal(singles.np_random_seed, vector.np_random_seed)


@pytest.mark.parametrize("mode", MODES[:3])
def test_partial_resets_in_the_middle_with_a_given_prompt(settings, mode, rng):
    singles, vector = pair(settings, mode)
    assert_equal(singles.reset(seed=[3, None, 4, 9])[1].keys(), vector.reset(seed=3)[1].keys())
    assert_equal(singles.reset(seed=[3, 2, 4, 9]), vector.reset(seed=[3, 2, 4, 9]))
    for _ in range(3):
        actions = rng.integers(3, V, size=4)
        assert_equal(singles.step(actions), vector.step(actions))
    for prompt in ("w9 w9", None):
        mask = np.array([False, True, False, True])
        options = {"prompt": prompt} if prompt else {}
        expected = singles.reset(options={"reset_mask": mask.copy(), **options})
        found = vector.reset(options={"reset_mask": mask, **options})
        assert_equal(expected, found)
        assert found[1]["_prompt"].tolist() == mask.tolist()
        actions = np.array([5, 6, 7, 8])
        assert_equal(singles.step(actions), vector.step(actions))


def test_every_row_can_have_a_prompt_of_its_own(settings):
    vector = TokenVectorEnv(3, **settings)
    observations, infos = vector.reset(options={"prompt": ["w4", "w5 w6", "w7"]})
    assert infos["prompt"].tolist() == ["w4", "w5 w6", "w7"]
    np.testing.assert_array_equal(observations[:, 3:6], [[-1, 1, 4], [1, 5, 6], [-1, 1, 7]])
    with pytest.raises(ValueError, match=r"a list of 3 \(one per environment\)"):
        vector.reset(options={"prompt": ["w4"]})


@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_a_row_does_not_depend_on_how_many_stand_beside_it(settings, num_envs, rng):
    """Row i has seed + i and its own actions, so the first row is the same in any vector."""
    alone, many = TokenVectorEnv(1, **settings), TokenVectorEnv(num_envs, **settings)
    alone_reset, many_reset = alone.reset(seed=5), many.reset(seed=5)
    np.testing.assert_array_equal(alone_reset[0][0], many_reset[0][0])
    for _ in range(25):
        actions = draw_actions(rng, num_envs)
        one, all_rows = alone.step(actions[:1]), many.step(actions)
        np.testing.assert_array_equal(one[0][0], all_rows[0][0])
        assert one[1][0] == pytest.approx(all_rows[1][0], abs=1e-5)
        assert one[2][0] == all_rows[2][0]
    assert many.single_observation_space.shape == (11,) and all_rows[0].shape == (num_envs, 11)


def test_autoreset_mode_belongs_to_the_instance_and_is_gymnasiums(settings):
    one = TokenVectorEnv(2, autoreset_mode="SameStep", **settings)
    other = TokenVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED, **settings)
    default = TokenVectorEnv(2, **settings)
    assert one.metadata["autoreset_mode"] is one.autoreset_mode is AutoresetMode.SAME_STEP
    assert other.metadata["autoreset_mode"] is other.autoreset_mode is AutoresetMode.DISABLED
    assert default.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in TokenVectorEnv.metadata
    with pytest.raises(ValueError, match=r"autoreset_mode='Sometimes' is unknown.*'NextStep'"):
        TokenVectorEnv(2, autoreset_mode="Sometimes", **settings)


def test_reset_mask_is_read_and_left_where_it_was(settings):
    vector = TokenVectorEnv(2, autoreset_mode="Disabled", **settings)
    vector.reset(seed=0)
    mask = np.array([True, False])
    options = {"reset_mask": mask}
    vector.reset(options=options)
    assert options == {"reset_mask": mask} and mask.tolist() == [True, False]


@pytest.mark.parametrize(
    "mask", [[True, False], np.array([1, 0]), np.array([True]), np.array([False, False])], ids=str
)
def test_a_reset_mask_of_another_kind_is_refused(settings, mask):
    vector = TokenVectorEnv(2, **settings)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"must be a bool array of shape \(2,\)"):
        vector.reset(options={"reset_mask": mask})


def test_without_autoreset_finished_rows_must_be_reset_before_the_next_step(settings):
    vector = TokenVectorEnv(2, autoreset_mode="Disabled", **settings)
    vector.reset(seed=0)
    terminations = vector.step(np.array([EOS, 9]))[2]
    assert terminations.tolist() == [True, False]
    with pytest.raises(ResetNeeded, match="environment 0 has ended its episode"):
        vector.step(np.array([9, 9]))
    vector.reset(options={"reset_mask": terminations})
    observations = vector.step(np.array([9, 10]))[0]
    assert observations[:, 6:8].tolist() == [[9, -1], [9, 10]]


def test_next_step_reset_ignores_the_action_and_pays_nothing(settings):
    vector = TokenVectorEnv(2, **settings)
    vector.reset(seed=0)
    vector.step(np.array([EOS, 9]))
    observations, rewards, terminations, _, infos = vector.step(np.array([9, 10]))
    assert rewards[0] == 0.0 and not terminations[0]
    assert (observations[0, 6:] == -1).all()
    assert infos["_prompt"].tolist() == [True, False]
    assert infos["_ref_logprob"].tolist() == [False, True]


def test_deferred_ends_tell_the_reason_the_text_and_the_length_only(settings):
    vector = TokenVectorEnv(2, autoreset_mode="SameStep", **{**settings, "scoring": "deferred"})
    vector.leave_scoring_to_caller()
    vector.reset(seed=0)
    _, rewards, _, _, infos = vector.step(np.array([9, EOS]))
    assert rewards.tolist() == [0.0, 0.0]
    assert set(infos) == {
        "final_obs",
        "_final_obs",
        "final_info",
        "_final_info",
        "prompt",
        "_prompt",
    }
    keys = {"finish_reason", "response", "response_length"}
    assert set(infos["final_info"]) == keys | {f"_{key}" for key in keys}
    assert infos["final_info"]["finish_reason"].tolist() == [None, "stop"]


def test_rows_are_told_the_number_of_the_group_that_they_start_in(settings, rng):
    env = TokenVectorEnv(num_envs=4, autoreset_mode="SameStep", group_size=3, **settings)
    _, infos = env.reset(seed=0)
    assert infos["group"].tolist() == [0, 0, 0, 1] and infos["_group"].all()
    started = 4
    for _ in range(30):
        *_, infos = env.step(draw_actions(rng, 4))
        for row in np.flatnonzero(infos.get("_group", [])).tolist():
            assert infos["group"][row] == started // 3
            started += 1
    assert started >= 12
    prompts = [env.mdp.prompts[0], None, None, None]
    _, infos = env.reset(options={"prompt": prompts})
    assert infos["_group"].tolist() == [False, True, True, True]
    plain = TokenVectorEnv(num_envs=4, **settings)
    assert set(plain.reset(seed=0)[1]) == {"prompt", "_prompt"}


def test_never_truncated(settings, rng):
    vector = TokenVectorEnv(3, **settings)
    vector.reset(seed=0)
    ended = 0
    for _ in range(30):
        _, _, terminations, truncations, _ = vector.step(rng.integers(3, V, size=3))
        ended += terminations.sum()
        assert truncations.dtype == bool and not truncations.any()
    assert ended == 15  # 5 tokens and one step of reset


@pytest.mark.parametrize(
    "actions",
    [[1, 2, 3], [1], 5, [1.0, 2.0], [1, V], [-1, 1], [True, False]],
    ids=str,
)
def test_actions_of_another_kind_are_refused(settings, actions):
    vector = TokenVectorEnv(2, **settings)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="0 … 39"):
        vector.step(np.array(actions))


def test_step_before_reset_needs_one(settings):
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        TokenVectorEnv(2, **settings).step(np.array([1, 1]))


@pytest.mark.parametrize("mode", [None, "vector_entry_point", "sync"])
def test_make_vec(settings, mode):
    vector = gym.make_vec("TokenRLHF-v0", num_envs=2, vectorization_mode=mode, **settings)
    kind = SyncVectorEnv if mode == "sync" else TokenVectorEnv
    assert isinstance(vector, kind)
    observations, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(observations)
    assert vector.action_space.contains(vector.action_space.sample())
    assert vector.step(vector.action_space.sample())[1].shape == (2,)
    assert vector.spec.id == "TokenRLHF-v0"
    vector.close()


def test_make_vec_refuses_a_step_limit_below_the_responses_own(settings):
    with pytest.raises(ValueError, match="max_episode_steps=4 is below max_new_tokens=5"):
        gym.make_vec("TokenRLHF-v0", num_envs=2, max_episode_steps=4, **settings)
    vector = gym.make_vec("TokenRLHF-v0", num_envs=2, max_episode_steps=5, **settings)
    assert vector.unwrapped.mdp.max_new_tokens == 5


@pytest.mark.parametrize("num_envs", [0, -1, 1.5])
def test_a_vector_has_at_least_one_row(settings, num_envs):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        TokenVectorEnv(num_envs, **settings)


def test_seeds_and_kl_coef(settings):
    vector = TokenVectorEnv(2, **settings)
    with pytest.raises(ValueError, match="3 seeds were given for 2"):
        vector.reset(seed=[1, 2, 3])
    vector.reset(seed=4)
    assert vector.np_random_seed == (4, 5)
    with pytest.raises(ValueError, match="kl_coef=-2"):
        vector.set_kl_coef(-2)
    vector.set_kl_coef(0.0)
    _, rewards, _, _, infos = vector.step(np.array([9, 9]))
    assert rewards.tolist() == [0.0, 0.0] and infos["kl_coef"].tolist() == [0.0, 0.0]


def test_rendering(settings, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    vector = TokenVectorEnv(2, render_mode="ansi", **settings)
    vector.reset(options={"prompt": ["w4", "w5"]})
    vector.step(np.array([9, EOS]))
    first, second = vector.render()
    assert first.startswith("prompt    w4\nresponse  w9\n") and second.startswith("prompt    w5\n")
    assert TokenVectorEnv(1, **settings).render() is None
    with pytest.raises(ValueError, match="offers 'ansi'"):
        TokenVectorEnv(2, render_mode="human", **settings)


_ASYNC = """
import sys
import torch
torch.set_num_threads(2)
matrix = torch.randn(700, 700)
(matrix @ matrix).sum().item()  # starts the parent's pool of threads: a forked child would hang

import gymnasium as gym
import numpy as np
import tokenenv

def main():
    settings = dict(reference=sys.argv[1], reward_model=sys.argv[2], prompts=["w4 w5", "w7"],
                    max_prompt_tokens=6, max_new_tokens=5, device="cpu")
    make = lambda mode: gym.make_vec(
        "TokenRLHF-v0", num_envs=2, vectorization_mode=mode, **settings)
    workers, rows = make("async"), make("vector_entry_point")
    assert type(workers).__name__ == "AsyncVectorEnv"
    expected, found = rows.reset(seed=1), workers.reset(seed=1)
    assert (expected[0] == found[0]).all()
    for token in (9, 12, 2, 5, 6, 2, 7):
        actions = np.array([token, 11])
        expected, found = rows.step(actions), workers.step(actions)
        assert (expected[0] == found[0]).all()
        assert np.abs(expected[1] - found[1]).max() < 1e-5, (expected[1], found[1])
        assert (expected[2] == found[2]).all()
    (matrix @ matrix).sum().item()
    workers.close()
    print("done")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_async_workers_run_after_the_parent_has_run_torch(reference_folder, reward_folder):
    """Trap 24; in a process of its own with a time limit, so that a hang is a failure."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ASYNC, reference_folder, reward_folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the workers that hang go with it
        pytest.fail("the workers hang")
    assert output.strip() == "done", errors


def test_async_is_what_gymnasium_makes(settings):
    vector = gym.make_vec("TokenRLHF-v0", num_envs=2, vectorization_mode="async", **settings)
    try:
        assert isinstance(vector, AsyncVectorEnv)
        assert vector.reset(seed=0)[0].shape == (2, 11)
    finally:
        vector.close()
