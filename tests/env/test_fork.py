"""`fork`: a copy that continues identically, and apart from the original, wherever it is made."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers as gymnasium_wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import vector as gymnasium_vector_wrappers
from support.tiny_task import EOS, V, task_kwargs

from agents import make_vec_env
from tokenenv import wrappers
from tokenenv.env import TokenEnv
from tokenenv.models import ReferenceDecoder
from tokenenv.models.decode_step import StepCapture
from tokenenv.models.slot_decoder import SlotDecoder
from tokenenv.optimum import enumerate_task, solve, true_advantages
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import fork, vector

N = 3
MODES = ["NextStep", "SameStep", "Disabled"]


def plain(value):
    """What a step or a reset gave as Python's numbers, which compare to the bit."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return str(value.dtype), plain(value.tolist())
    return value


def assert_equal(found, expected) -> None:
    """Equal to the bit."""
    assert plain(found) == plain(expected)


def make(face: str, settings: dict, **changes) -> TokenEnv | TokenVectorEnv:
    """The single environment, or a batch in the autoreset mode that `face` names."""
    settings = {**settings, **changes}
    if face == "single":
        env = TokenEnv(**settings)
    else:
        env = TokenVectorEnv(num_envs=N, autoreset_mode=face, **settings)
    if settings.get("scoring") == "deferred":
        env.leave_scoring_to_caller()
    return env


def go_on(env, seed: int, steps: int) -> list:
    """What `steps` steps with actions of a seed bring, resets where a row has to start anew."""
    rng, trace = np.random.default_rng(seed), []
    is_batch = hasattr(env, "num_envs")
    size = int((env.single_action_space if is_batch else env.action_space).n)
    for _ in range(steps):
        running = env.unwrapped.mdp.episodes.running
        mode = env.metadata.get("autoreset_mode")
        if is_batch and mode.value == "Disabled" and not running.all():
            trace.append(env.reset(options={"reset_mask": ~running}))
        elif not is_batch and not running[0]:
            trace.append(env.reset())
        actions = rng.integers(size, size=N if is_batch else ())
        trace.append(env.step(actions))
    return trace


@pytest.mark.parametrize(("scoring", "group_size"), [("step", 4), ("deferred", 1)])
@pytest.mark.parametrize("face", ["single", *MODES])
def test_a_fork_continues_identically_and_apart(tiny_task_kwargs, face, scoring, group_size):
    def start():
        env = make(face, tiny_task_kwargs, scoring=scoring, group_size=group_size)
        env.reset(seed=5)
        return env

    env, control = start(), start()
    for seed in range(6):  # the first fork is made at a start, the last one at an end
        if seed == 5:
            for one in (env, control):
                one.reset()
                one.step(EOS[0] if face == "single" else np.full(N, EOS[0]))
        twin = env.fork()
        assert_equal(twin.states, env.states)
        assert_equal(twin.unwrapped.mdp.token_rewards, env.unwrapped.mdp.token_rewards)
        other_way = twin.fork()
        go_on(other_way, seed + 100, 3)  # this moves neither of the two
        expected = go_on(control, seed, 3)  # this one has never been forked
        assert_equal(go_on(twin, seed, 3), expected)
        assert_equal(go_on(env, seed, 3), expected)
        assert_equal(twin.unwrapped.mdp.token_rewards, env.unwrapped.mdp.token_rewards)


def test_prompts_of_groups_and_generators_go_on_alike(tiny_task_kwargs):
    env = make("single", tiny_task_kwargs, group_size=3)
    env.reset(seed=1)
    env.reset()  # the second of a group of three
    twin = env.fork()

    def starts(of):
        return [(info["prompt"], info["group"]) for info in (of.reset()[1] for _ in range(12))]

    after = starts(twin)
    assert after == starts(env) and [group for _, group in after[:2]] == [0, 1]
    assert env.np_random.random() == twin.np_random.random()
    assert env.action_space.sample() == twin.action_space.sample()
    twin.action_space.sample()
    assert env.np_random is not twin.np_random and env.action_space is not twin.action_space


@pytest.mark.parametrize("face", ["single", "NextStep"])
def test_a_fork_of_an_environment_that_nobody_seeded_draws_the_same(tiny_task_kwargs, face):
    env = make(face, tiny_task_kwargs)
    twin = env.fork()  # before the first reset: there is no generator yet
    assert_equal([env.reset() for _ in range(9)], [twin.reset() for _ in range(9)])
    assert_equal(
        [env.action_space.sample() for _ in range(9)],
        [twin.action_space.sample() for _ in range(9)],
    )


def test_beta_belongs_to_each(tiny_task_kwargs):
    env = make("single", tiny_task_kwargs)
    env.set_kl_coef(0.5)
    twin = env.fork()
    assert twin.kl_coef == 0.5
    twin.set_kl_coef(0.25)
    assert (env.kl_coef, twin.kl_coef) == (0.5, 0.25)


def test_models_are_shared_and_the_next_token_costs_one_decode_step(tiny_task_kwargs):
    env = make("single", tiny_task_kwargs)
    env.reset(seed=0)
    env.step(3)
    twin = env.fork()
    assert twin.scorer is env.scorer and twin.mdp.language_model is env.mdp.language_model
    assert twin.mdp.reference_decoder._decoder.trunk is env.mdp.reference_decoder._decoder.trunk
    before = twin.mdp.reference_decoder.forwards
    twin.step(4)
    assert twin.mdp.reference_decoder.forwards == before + 1
    decoder = twin.mdp.reference_decoder._decoder
    assert decoder._lengths[0] > 1 and not decoder._cache.layers[0].keys.is_inference()


def test_a_deferred_fork_stands_outside_of_the_rollout(tiny_task_kwargs):
    env = make("single", {**tiny_task_kwargs, "scoring": "deferred"})
    env.leave_scoring_to_caller(False)
    env.reset(seed=0)
    env.leave_next_score_to_buffer()
    twin = env.fork()
    with pytest.raises(ValueError, match="leave_scoring_to_caller"):
        twin.step(EOS[0])
    assert env.step(EOS[0])[2]


# The decoder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma3-window-6", "opt"])
def test_a_forked_decoder_has_the_same_bits(tiny_folder, name, rng):
    settings = task_kwargs(tiny_folder, name)
    env = make("NextStep", settings)
    env.reset(seed=0)
    for _ in range(4):
        states = env.unwrapped.mdp.episodes.observations.copy()
        decoder: ReferenceDecoder = env.unwrapped.mdp.reference_decoder
        twin = decoder.fork()
        assert torch.equal(twin.log_probs(states), decoder.log_probs(states))
        env.step(rng.integers(V, size=N))
        states = env.unwrapped.mdp.episodes.observations
        assert torch.equal(twin.log_probs(states), decoder.log_probs(states))


class Recorded(StepCapture):
    """A capture as a GPU has it: what it replays writes to the memory that it was made with."""

    captures = 0

    def capture(self, step):
        type(self).captures += 1
        step()
        return step


def test_a_fork_captures_no_steps_and_writes_to_its_own_memory(tiny_task_kwargs, rng):
    mdp = make("NextStep", tiny_task_kwargs).unwrapped.mdp
    model, width = mdp.language_model.model, 13
    decoder = SlotDecoder(model, N, width, capture=lambda device: Recorded())
    states = np.full((N, width), -1)
    states[:, 4:6] = rng.integers(3, V, size=(N, 2))
    decoder.hidden_states(states)
    states[:, 6] = 7
    decoder.hidden_states(states)
    assert Recorded.captures == 1
    twin = decoder.fork()
    elsewhere, states = states.copy(), states.copy()
    elsewhere[:, 7], states[:, 7] = 8, 9
    ahead = twin.hidden_states(elsewhere).clone()
    plain = SlotDecoder(model, N, width)
    for seen in (states, elsewhere):
        torch.testing.assert_close(
            (decoder if seen is states else twin).hidden_states(seen), plain.hidden_states(seen)
        )
    assert torch.equal(twin.hidden_states(elsewhere), ahead) and Recorded.captures == 1
    assert twin.forwards == decoder.forwards


# Wrappers ----------------------------------------------------------------------------------------

SINGLE = {
    "plain": lambda env: env,
    "features-top-k": lambda env: wrappers.TopKActions(wrappers.HiddenStateObservation(env), k=7),
    "mask": lambda env: wrappers.ActionMask(env, top_p=0.9, forbid=[5]),
    "statistics": lambda env: gymnasium_wrappers.RecordEpisodeStatistics(env),
    "normalised": lambda env: gymnasium_wrappers.NormalizeReward(env),
    "limit": lambda env: gymnasium_wrappers.TimeLimit(env, 8),
    "autoreset": lambda env: gymnasium_wrappers.Autoreset(env),
    "sticky": lambda env: gymnasium_wrappers.StickyAction(env, 0.3),
    "clipped": lambda env: gymnasium_wrappers.ClipReward(env, -1.0, 1.0),
}


@pytest.mark.parametrize("name", SINGLE)
def test_wrappers_are_copied_with_what_they_remember(tiny_task_kwargs, name):
    made = gym.make("TokenRLHF-v0", disable_env_checker=False, **tiny_task_kwargs)
    env, control = SINGLE[name](made), SINGLE[name](gym.make("TokenRLHF-v0", **tiny_task_kwargs))
    env.reset(seed=2)
    control.reset(seed=2)
    without_times = {"statistics"}
    for seed in range(4):
        twin = fork(env)
        assert type(twin) is type(env) and twin.spec == env.spec
        go_on(fork(twin), seed + 50, 3)
        traces = [go_on(one, seed, 3) for one in (twin, env, control)]
        if name in without_times:
            for trace in traces:
                for step in trace:
                    step[-1].get("episode", {}).pop("t", None)
        assert_equal(traces[0], traces[1])
        assert_equal(traces[1], traces[2])


def test_the_log_probs_that_wait_for_a_step_are_copied(tiny_task_kwargs):
    env = wrappers.LogProbShaping(gym.make("TokenRLHF-v0", **tiny_task_kwargs))
    env.reset(seed=0)
    env.set_log_probs(-1.5)
    twin = fork(env)
    assert twin.step(3)[1] == env.step(3)[1]
    with pytest.raises(ValueError, match="without log π"):
        twin.step(3)


def test_a_mask_keeps_what_it_knows_of_the_grammar():
    env = wrappers.ActionMask(gym.make("TokenRLHF-Exact-v0"), grammar=True)
    env.reset(seed=0)
    twin = fork(env)
    assert twin._source.rules is env._source.rules
    twin.step(int(np.flatnonzero(twin.action_masks())[0]))
    assert_equal(env.action_masks(), fork(env).action_masks())
    assert env.unwrapped.mdp.episodes.response_lengths[0] == 0


@pytest.mark.parametrize("mode", MODES)
def test_vector_wrappers_are_copied(tiny_task_kwargs, mode):
    def start():
        env = gym.make_vec("TokenRLHF-v0", num_envs=N, autoreset_mode=mode, **tiny_task_kwargs)
        env = vector.ActionMask(vector.TopKActions(vector.HiddenStateObservation(env), k=7))
        env = gymnasium_vector_wrappers.NormalizeReward(env)
        env.reset(seed=4)
        return env

    env, control = start(), start()
    for seed in range(4):
        twin = fork(env)
        go_on(fork(twin), seed + 50, 3)
        expected = go_on(control, seed, 3)
        assert_equal(go_on(twin, seed, 3), expected)
        assert_equal(go_on(env, seed, 3), expected)


def test_a_function_in_a_wrapper_refers_to_the_copy():
    base = gym.make("TokenRLHF-Exact-v0", render_mode="rgb_array")
    env = gymnasium_wrappers.AddRenderObservation(base)  # its function draws the wrapper itself
    env.reset(options={"prompt": "sol"})
    twin = fork(env)
    picture = twin.step(0)[0]
    np.testing.assert_array_equal(picture, twin.render())
    assert (picture != env.render()).any()
    np.testing.assert_array_equal(env.step(0)[0], picture)


@pytest.mark.parametrize("env_id", ["TokenRLHF-Features-v0", "TokenRLHF-Features-TopK-v0"])
def test_the_feature_ids_fork(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    env.step(0)
    twin = fork(env)
    go_on(fork(twin), 9, 5)
    assert_equal(go_on(twin, 0, 6), go_on(env, 0, 6))


# Where it can't ----------------------------------------------------------------------------------


class HoldsAGenerator(gym.Wrapper):
    """A wrapper that no one can copy."""

    def __init__(self, env):
        super().__init__(env)
        self.numbers = (i for i in range(3))


def test_what_cannot_be_copied_says_what_to_do(tiny_task_kwargs):
    env = gym.make("TokenRLHF-v0", render_mode="rgb_array", **tiny_task_kwargs)
    with pytest.raises(ValueError, match=r"HoldsAGenerator can't be forked.*fork\(env\.env\)"):
        fork(HoldsAGenerator(env))
    window = gymnasium_wrappers.HumanRendering(env)
    with pytest.raises(ValueError, match=r"HumanRendering can't be forked.*the same window"):
        fork(window)
    assert isinstance(fork(window.env).unwrapped, TokenEnv)


def test_a_recorder_of_films_is_not_forked(tiny_task_kwargs, tmp_path):
    pytest.importorskip("moviepy")
    env = gym.make("TokenRLHF-v0", render_mode="rgb_array", **tiny_task_kwargs)
    with pytest.raises(ValueError, match=r"RecordVideo can't be forked.*write the same files"):
        fork(gymnasium_wrappers.RecordVideo(env, str(tmp_path)))


def test_other_environments_cannot_be_forked(tiny_task_kwargs):
    with pytest.raises(ValueError, match=r"CartPoleEnv is no token MDP.*gym\.make"):
        fork(gym.make("CartPole-v1"))
    rows = SyncVectorEnv([lambda: TokenEnv(**tiny_task_kwargs)] * 2)
    with pytest.raises(ValueError, match=r"SyncVectorEnv has no token MDP.*\[fork\(row\) for row"):
        fork(rows)
    assert len([fork(row) for row in rows.unwrapped.envs]) == 2
    processes = AsyncVectorEnv([lambda: gym.make("CartPole-v1")])
    try:
        with pytest.raises(ValueError, match="in other processes"):
            fork(processes)
    finally:
        processes.close()
    sb3 = make_vec_env(n_envs=2, **tiny_task_kwargs)
    with pytest.raises(ValueError, match=r"TokenVecEnv is no environment.*fork\(env\.env\)"):
        fork(sb3)
    assert fork(sb3.env).num_envs == 2


# What it is for ----------------------------------------------------------------------------------


def continuations(env, policy, tree, prompt, forks, rng) -> np.ndarray:
    """Returns Σ(r − β·log π) from here on, of `forks` × N continuations by a policy on the tree."""
    returns = []
    for _ in range(forks):
        ahead = env.fork()
        total, alive = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
        while alive.any():
            actions, log_probs = np.zeros(env.num_envs, dtype=np.int64), np.zeros(env.num_envs)
            for row in np.flatnonzero(alive):
                response = ahead.mdp.episodes.response(row)
                choice = policy[len(response)][prompt, tree.locate_state(response)]
                actions[row] = rng.choice(len(choice), p=np.exp(choice))
                log_probs[row] = choice[actions[row]]
            _, rewards, ended, _, _ = ahead.step(actions)
            total += alive * (rewards - env.kl_coef * log_probs)
            alive &= ~ended
        returns.append(total)
    return np.concatenate(returns)


@pytest.fixture(scope="module")
def short_solution():
    """The optimum of `exact` with responses of four tokens at most."""
    return solve(enumerate_task("exact", max_new_tokens=4, device="cpu"))


@pytest.mark.parametrize("tokens", [[], [4], [4, 2]])
def test_continuations_of_a_fork_agree_with_the_exact_values(short_solution, tokens, rng):
    tree, prompt = short_solution.tree, 1
    policy = short_solution.policy_between(0.5)
    exact = true_advantages(policy, tree)
    env = TokenVectorEnv(64, "SameStep", task="exact", max_new_tokens=4, device="cpu")
    env.reset(options={"prompt": tree.prompts[prompt]})
    for token in tokens:
        env.step(np.full(64, token))
    state = prompt, tree.locate_state(tokens)
    expected = exact.values[len(tokens)][state]
    returns = continuations(env, policy, tree, prompt, 4, rng)  # 256 continuations of one state
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    assert error < 0.1 and abs(returns.mean() - expected) < 3 * error
    for token in (0, 3):  # and with a first token taken in the fork, Q^π(s, a)
        ahead = env.fork()
        rewards = ahead.step(np.full(64, token))[1]
        rewards = rewards - env.kl_coef * policy[len(tokens)][(*state, token)]
        returns = rewards[0] + continuations(ahead, policy, tree, prompt, 4, rng)
        error = returns.std(ddof=1) / np.sqrt(len(returns))
        expected = exact.q_values[len(tokens)][(*state, token)]
        assert error < 0.1 and abs(returns.mean() - expected) < 3 * error
