"""Agent and environment are at the same states, whatever moved either; or it is refused."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
)
from support.tiny_task import P, V, begin, collect, largest_difference, make_agent, weights

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.rollout.groups import GroupQueue
from agents.rollout.segments import Segment
from tokenenv.episodes import NO_TOKEN
from tokenenv.wrappers import HiddenStateObservation
from tokenenv.wrappers.vector import ActionMask
from tokenenv.wrappers.vector import HiddenStateObservation as HiddenStatesOfRows

N, STEPS = 4, 9
STILL = 1e-12
"""A learning rate that leaves the actor where it is, at the reference: its KL must be 0."""


class Watch(BaseCallback):
    """After every rollout: what the buffer will train on is what was sampled, in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.worst = 0.0
        self.rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        buffer = self.model.rollout_buffer
        if not getattr(buffer, "num_tokens", 1):  # no group is complete yet
            return
        for batch in copy.deepcopy(buffer).get(None) if type(buffer).__name__ == "RolloutBuffer" \
                else [buffer.all_tokens()]:  # fmt: skip
            with torch.no_grad():
                actions = batch.actions.long().flatten()
                _, log_probs, _ = self.model.policy.evaluate_actions(batch.observations, actions)
            self.worst = max(self.worst, float((log_probs - batch.old_log_prob).abs().max()))


class Moving(BaseCallback):
    """Does something to the environment in the middle of the rollouts."""

    def __init__(self, move, every: int = 5) -> None:
        super().__init__()
        self.move, self.every = move, every

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 3:
            self.move(self.model)
        return True


class Interrupting(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 5:
            raise KeyboardInterrupt
        return True


def evaluates(model) -> None:
    evaluate_policy(model, model.get_env(), 6, warn=False)


def resets(model) -> None:
    model.env.reset()


def steps(model) -> None:
    for token in (3, 4, 3):  # no end of a response
        model.env.step(np.full(model.n_envs, token))


def steps_a_row(model) -> None:
    model.env.env_method("step", 3, indices=[1])


def resets_a_row(model) -> None:
    if isinstance(model.env, DummyVecEnv | SubprocVecEnv):
        model.env.env_method("reset", indices=[1])
    else:
        mask = np.arange(model.n_envs) == 1
        model.env.env.reset(options={"reset_mask": mask})


def is_interrupted(model) -> None:
    with pytest.raises(KeyboardInterrupt):
        model.learn(96, callback=[RLHFCallback(), Interrupting()], reset_num_timesteps=False)


def is_interrupted_while_it_acts(model) -> None:
    """Environment and observation agree, but the steps of the rollout are lost."""
    act, calls = model.policy.forward, iter(range(5))

    def interrupted(*args, **kwargs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return act(*args, **kwargs)

    model.policy.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(96, callback=RLHFCallback(), reset_num_timesteps=False)
    del model.policy.forward


def fails_in_a_step(model) -> None:
    """The environment has moved on, SB3 has not."""
    step_wait = model.env.step_wait

    def failing():
        step_wait()
        raise RuntimeError("lost connection")

    model.env.step_wait = failing
    with pytest.raises(RuntimeError, match="lost connection"):
        model.learn(96, callback=RLHFCallback(), reset_num_timesteps=False)
    del model.env.step_wait


def sets_another_env(model) -> None:
    """One that was never reset."""
    if isinstance(model.env, DummyVecEnv):
        model.set_env(DummyVecEnv(model.env.makers), force_reset=False)
        return
    settings = {name: getattr(model.env.inner.settings, name) for name in KWARGS_KEPT}
    model.set_env(make_vec_env(n_envs=model.n_envs, seed=9, **settings), force_reset=False)


KWARGS_KEPT = ("reference", "reward_model", "prompts", "max_prompt_tokens", "max_new_tokens",
               "kl_coef", "device", "dtype", "scoring", "group_size")  # fmt: skip

WAYS = {
    way.__name__: way
    for way in (
        evaluates,
        resets,
        steps,
        resets_a_row,
        is_interrupted,
        fails_in_a_step,
        sets_another_env,
    )
}

MOVES = ("resets", "steps", "resets_a_row", "evaluates")
"""Those that a callback can do in the middle of a rollout."""

AGENTS = {
    "TokenPPO": (TokenPPO, {}),
    "TokenPPO, carry": (TokenPPO, {"rollout_buffer_kwargs": {"cut": "carry"}}),
    "TokenPPO, groups": (
        TokenPPO,
        {
            "rollout_buffer_kwargs": {
                "cut": "carry",
                "advantage_estimator": "rloo",
                "group_size": 2,
            }
        },
    ),
    "PPO": (PPO, {}),
    "A2C": (A2C, {}),
}


def agent_of(kwargs, name: str, vec_env: str = "TokenVecEnv", scoring: str = "step"):
    """In float64, so that a KL of 0 is one."""
    agent, given = AGENTS[name]
    kwargs = {**kwargs, "dtype": "float64", "scoring": scoring}
    if "groups" in name:
        kwargs["group_size"] = 2
    if agent is not A2C:
        given = {"n_epochs": 1, "batch_size": N * STEPS, **given}
    model = make_agent(kwargs, agent, N, learning_rate=STILL, n_steps=STEPS, **given)
    if vec_env == "DummyVecEnv":
        makers = [lambda: gym.make("tokenenv:TokenRLHF-v0", **kwargs)] * model.n_envs
        env = DummyVecEnv(makers)
        env.makers = makers
        env.seed(0)  # or a reset may draw, once in a while, the state that it left
        model.set_env(env)
    return model


def learn_watched(model, *callbacks: BaseCallback, **learn) -> None:
    """Two rollouts, in which everything agrees."""
    watch, rlhf = Watch(), RLHFCallback()
    kls = []
    rlhf_end = rlhf._on_rollout_end
    rlhf._on_rollout_end = lambda: (rlhf_end(), kls.extend(r.kl for r in rlhf.records))
    model.learn(2 * STEPS * model.n_envs, callback=[rlhf, *callbacks, watch], **learn)
    assert watch.rollouts == 2 and watch.worst <= 2e-6
    assert kls and np.abs(kls).max() <= 1e-6
    assert abs(model.logger.name_to_value.get("train/approx_kl", 0.0)) <= 1e-6
    assert not model.policy._forward_pre_hooks


def warnings_in(caplog) -> int:
    return sum(record.name == "agents.rollout.agreement" for record in caplog.records)


def slow(*case) -> object:
    return pytest.param(*case, marks=pytest.mark.slow)


def each(name: str, vec_env: str, ways=tuple(WAYS), fast: tuple[str, ...] = ()) -> list:
    """Ways for one agent and environment, all but some of them with the slow tests."""
    return [(name, vec_env, w) if w in fast else slow(name, vec_env, w) for w in ways]


# Moved environments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vec_env", "way"),
    [
        *each("TokenPPO", "TokenVecEnv", fast=("evaluates",)),
        *each("TokenPPO, carry", "TokenVecEnv", fast=("is_interrupted",)),
        *each("TokenPPO, groups", "TokenVecEnv"),
        *each("PPO", "TokenVecEnv"),
        *each("PPO", "DummyVecEnv"),
    ],
)
def test_between_two_learns_whatever_moved_the_environment(
    tiny_task_kwargs, caplog, name, vec_env, way
):
    model = agent_of(tiny_task_kwargs, name, vec_env)
    learn_watched(model)
    WAYS[way](model)
    caplog.clear()
    learn_watched(model, reset_num_timesteps=False)
    # Between two steps an interrupted rollout leaves nothing behind: SB3's observation is good.
    assert warnings_in(caplog) == 1


@pytest.mark.parametrize(
    ("name", "vec_env", "way"),
    [
        *each("TokenPPO", "TokenVecEnv", MOVES),
        *each("TokenPPO", "DummyVecEnv", MOVES),
        *each("TokenPPO, carry", "TokenVecEnv", MOVES),
        *each("TokenPPO, carry", "DummyVecEnv", MOVES),
        *each("PPO", "TokenVecEnv", MOVES),
        *each("PPO", "DummyVecEnv", MOVES),
        *each("A2C", "TokenVecEnv", MOVES, fast=("steps",)),
        *each("A2C", "DummyVecEnv", MOVES),
    ],
)
def test_in_the_middle_of_rollouts(tiny_task_kwargs, caplog, name, vec_env, way):
    model = agent_of(tiny_task_kwargs, name, vec_env)
    learn_watched(model, Moving(WAYS[way]))
    assert warnings_in(caplog) == 1


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("TokenPPO", "resets"),
        slow("TokenPPO, carry", "resets_a_row"),
        slow("TokenPPO, groups", "resets_a_row"),
    ],
)
def test_with_deferred_scoring(tiny_task_kwargs, caplog, name, way):
    model = agent_of(tiny_task_kwargs, name, scoring="deferred")
    learn_watched(model, Moving(WAYS[way], every=11))
    WAYS[way](model)
    learn_watched(model, reset_num_timesteps=False)
    assert warnings_in(caplog) == 1  # once per model


class KeepPrefixes(BaseCallback):
    """What came before the steps of every segment of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes: list[tuple[int, ...]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        for segment in range(len(buffer.lengths)):
            self.prefixes.append(tuple(buffer.prefix(segment).tolist()))


@pytest.mark.parametrize(
    ("name", "scoring"),
    [
        ("TokenPPO", "step"),
        slow("TokenPPO", "deferred"),
        slow("TokenPPO, carry", "step"),
        slow("TokenPPO, carry", "deferred"),
        slow("TokenPPO, groups", "step"),
        ("TokenPPO, groups", "deferred"),
    ],
)
def test_a_rollout_that_was_lost_while_the_policy_acted(tiny_task_kwargs, caplog, name, scoring):
    """Where an update gets whole episodes, those that lost their first steps start afresh."""
    model = agent_of(tiny_task_kwargs, name, scoring=scoring)
    learn_watched(model)
    is_interrupted_while_it_acts(model)
    mdp_env = model.env.unwrapped.inner
    assert np.array_equal(model._last_obs, mdp_env.states)
    assert (model._last_obs[:, P] >= 0).any()  # episodes are under way
    keep = KeepPrefixes()
    learn_watched(model, keep, reset_num_timesteps=False)
    prompts = {
        tuple(mdp_env.mdp.encode_prompt(text).tolist()) for text in tiny_task_kwargs["prompts"]
    }
    needs_whole = name != "TokenPPO"
    assert keep.prefixes and (set(keep.prefixes) <= prompts) == needs_whole
    assert warnings_in(caplog) == needs_whole


def test_a_model_that_forgot_open_episodes_starts_them_afresh(tiny_task_kwargs, tmp_path):
    """A loaded model goes on in an environment that it left in the middle of episodes."""
    model = agent_of(tiny_task_kwargs, "TokenPPO, carry")
    model.learn(STEPS * N)
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu", force_reset=False)
    keep = KeepPrefixes()
    learn_watched(loaded, keep, reset_num_timesteps=False)
    assert keep.prefixes and max(map(len, keep.prefixes)) <= P


def test_groups_that_lost_an_episode_do_not_wait(tiny_task_kwargs):
    """At most one other of each of the N episodes under way, and one of the newest group."""
    model = agent_of(tiny_task_kwargs, "TokenPPO, groups")
    for _ in range(4):
        model.learn(STEPS * N, reset_num_timesteps=False)
        assert len(model.rollout_buffer._groups) <= N + 1
        steps(model)


def test_a_group_waits_for_all_that_can_still_finish():
    queue = GroupQueue(2)
    under_way = [segment(2, 1), segment(3, 1)]
    assert queue.complete([segment(0, 0)], under_way) == [] and len(queue) == 0  # 0 lost its other
    assert queue.complete([segment(2, 1)], [segment(3, 1)]) == [] and len(queue) == 1
    newer = segment(0, 2)
    assert queue.complete([newer], [segment(3, 1)]) == [] and len(queue) == 2
    assert [s.env for s in queue.complete([segment(3, 1)])] == [2, 3] and len(queue) == 1
    assert len(queue.complete([segment(1, 2)])) == 2 and len(queue) == 0
    apart = GroupQueue(2, is_shared=False)  # each environment numbers its own
    apart.complete([segment(0, 5), segment(1, 3)], [])
    assert len(apart) == 2
    apart.complete([segment(1, 4)], [segment(0, 6)])
    assert [s.env for s in apart.complete([segment(1, 4)])] == [1, 1] and len(apart) == 0


def test_nothing_waits_for_the_episodes_of_another_environment(tiny_task_kwargs):
    """Its groups have the same numbers."""
    model = agent_of(tiny_task_kwargs, "TokenPPO, groups")
    model.learn(STEPS * N)
    assert len(model.rollout_buffer._groups)
    sets_another_env(model)
    begin_again(model)
    assert not len(model.rollout_buffer._groups)
    assert model.rollout_buffer._open == [None] * N


def segment(env: int, group: int) -> Segment:
    tokens = np.zeros(1, dtype=np.int32)
    return Segment(env, tokens, tokens[:0], tokens, *[tokens] * 4, group=group)


@pytest.mark.slow
def test_environments_in_other_processes(tiny_task_kwargs, caplog):
    kwargs = {**tiny_task_kwargs, "dtype": "float64"}
    model = agent_of(tiny_task_kwargs, "PPO")
    env = SubprocVecEnv([lambda: gym.make("tokenenv:TokenRLHF-v0", **kwargs)] * N)
    env.seed(0)
    model.set_env(env)
    try:
        learn_watched(model, Moving(resets))
        learn_watched(model, Moving(resets_a_row))
        evaluates(model)
        learn_watched(model, reset_num_timesteps=False)
    finally:
        model.env.close()
    assert warnings_in(caplog) == 1


@pytest.mark.parametrize("count", [slow(N), N + 2])
def test_a_loaded_model_that_is_not_to_reset_its_environment(
    tiny_task_kwargs, tmp_path, caplog, count
):
    """It remembers the last observation of the environment that it was saved with."""
    model = agent_of(tiny_task_kwargs, "TokenPPO")
    model.learn(STEPS * N)
    model.save(tmp_path / "model")
    env = make_vec_env(n_envs=count, seed=5, **{**tiny_task_kwargs, "dtype": "float64"})
    loaded = TokenPPO.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    assert len(loaded._last_obs) == N
    learn_watched(loaded, reset_num_timesteps=False)
    assert warnings_in(caplog) == 1


def test_nothing_is_said_where_nothing_was_moved(tiny_task_kwargs, caplog):
    model = agent_of(tiny_task_kwargs, "TokenPPO", scoring="deferred")
    learn_watched(model)
    starts = model._last_episode_starts
    assert not starts.all()
    learn_watched(model, reset_num_timesteps=False)
    assert warnings_in(caplog) == 0


def test_only_the_rows_that_moved_start_afresh(tiny_task_kwargs):
    model = agent_of(tiny_task_kwargs, "TokenPPO")
    model.set_env(VecMonitor(model.env))
    callback = begin(model)
    collect(model, callback)
    before = model._last_obs.copy()
    token_env = model.env.unwrapped
    under_way = np.flatnonzero((before[:, P:] >= 0).any(axis=1))
    row, *others = under_way.tolist()
    assert others
    mask = np.arange(model.n_envs) == row
    token_env.env.reset(options={"reset_mask": mask})
    callback.on_rollout_start()
    assert np.array_equal(np.delete(model._last_obs, row, 0), np.delete(before, row, 0))
    assert (model._last_obs[row, P:] == NO_TOKEN).all() and model._last_episode_starts[row]
    assert model.rollout_buffer._open[row] is None
    assert all(model.rollout_buffer._open[other] is not None for other in others)
    assert model.env.episode_lengths[row] == 0 and model.env.episode_lengths[others].min() > 0


@pytest.mark.parametrize("name", ["PPO", "TokenPPO"])
def test_an_episode_lost_in_a_rollout_is_followed_by_the_critics_value(tiny_task_kwargs, name):
    """Its last advantage with λ = 0: r + γ·V(s') − V(s), s' the state that it was lost in."""
    given = {"gae_lambda": 0.0, "gamma": 0.9}
    model = make_agent(tiny_task_kwargs, AGENTS[name][0], learning_rate=STILL, n_steps=8, **given)
    seen = []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            look = ("rewards", "dones", "new_obs")
            seen.append({key: self.locals[key].copy() for key in look})
            seen[-1]["values"] = self.locals["values"].detach().numpy().copy().reshape(-1)
            seen[-1]["actions"] = np.array(self.locals["actions"]).reshape(-1)
            if len(seen) == 3:
                self.model.env.reset()
            return True

    buffer = collect(model, begin(model, RLHFCallback(), Keep()))
    step = seen[2]
    with torch.no_grad():
        following = (
            model.policy.predict_values(torch.as_tensor(step["new_obs"])).numpy().reshape(-1)
        )
    expected = step["rewards"] + 0.9 * following * ~step["dones"] - step["values"]
    assert not step["dones"].all()
    if name == "PPO":
        found = buffer.advantages[2]
        assert np.abs(found - expected).max() <= 1e-5
        assert buffer.episode_starts[3].all()
    else:  # segment after segment
        for row in np.flatnonzero(~step["dones"]):
            assert np.abs(buffer.advantages - expected[row]).min() <= 1e-5


def test_the_hook_goes_with_the_rollout_and_stays_out_of_copies(tiny_task_kwargs):
    model = agent_of(tiny_task_kwargs, "PPO")
    copies = []

    def copies_the_policy(model) -> None:
        assert len(model.policy._forward_pre_hooks) == 1
        copies.append(copy.deepcopy(model.policy))
        copies.append(pickle.loads(pickle.dumps(model.policy)))

    model.learn(STEPS * N, callback=[RLHFCallback(), Moving(copies_the_policy, every=100)])
    assert len(copies) == 2 and not model.policy._forward_pre_hooks
    is_interrupted(model)
    for policy in (*copies, model.policy):  # a call from outside of a rollout changes nothing
        moved = model.env.reset()
        policy(torch.as_tensor(moved))
        assert np.array_equal(model.env.unwrapped.inner.states, moved)
    assert not model.policy._forward_pre_hooks


def test_a_callbacks_own_calls_of_the_policy_change_nothing(tiny_task_kwargs, caplog):
    model = agent_of(tiny_task_kwargs, "PPO")
    learn_watched(model, Moving(lambda m: m.policy(torch.as_tensor(m._last_obs)), every=5))
    assert warnings_in(caplog) == 0


@pytest.mark.parametrize("vec_env", ["TokenVecEnv", slow("DummyVecEnv")])
def test_an_agent_that_sees_features_starts_afresh_too(tiny_task_kwargs, caplog, vec_env):
    """Its observations don't say where they were seen; what was there then is remembered."""
    if vec_env == "TokenVecEnv":
        env = make_vec_env(n_envs=3, seed=0, wrapper_class=HiddenStatesOfRows, **tiny_task_kwargs)
    else:
        make = lambda: HiddenStateObservation(gym.make("tokenenv:TokenRLHF-v0", **tiny_task_kwargs))  # noqa: E731
        env = DummyVecEnv([make] * 3)
    model = PPO("MlpPolicy", env, n_steps=6, batch_size=18, seed=0, device="cpu")
    model.learn(18, callback=RLHFCallback())
    model.learn(18, callback=RLHFCallback(), reset_num_timesteps=False)
    assert warnings_in(caplog) == 0
    evaluate_policy(model, env, 3, warn=False)
    stale = model._last_obs.copy()
    callback = begin_again(model)
    assert warnings_in(caplog) == 1
    assert np.abs(model._last_obs - stale).max() > 0 and model._last_episode_starts.any()
    assert collect(model, callback).full


class InParts(gym.ObservationWrapper):
    """Hidden states in a dict, for SB3's MultiInputPolicy."""

    def __init__(self, env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({"hidden": env.observation_space})

    def observation(self, observation):
        self.last = {"hidden": observation}
        return self.last


class MaskedPPO(PPO):
    """Masks as sb3-contrib's MaskablePPO has them: for the policy, and then for the buffer."""

    def collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps) -> bool:
        callback.on_rollout_start()
        masks = np.stack(env.env_method("action_masks"))
        self.policy(torch.as_tensor(self._last_obs), action_masks=masks)
        self.masks_of_the_buffer = masks
        return False


class TakesMasks(ActorCriticPolicy):
    def forward(self, obs, deterministic=False, action_masks=None):
        self.masks = np.array(action_masks)
        return super().forward(obs, deterministic)


def test_masks_are_those_of_the_episodes_that_started_afresh(tiny_task_kwargs):
    """The policy's and the buffer's, where rows are moved after the masks were read."""
    wrapped = {"wrapper_class": ActionMask, "wrapper_kwargs": {"top_p": 0.7}}
    env = make_vec_env(n_envs=3, seed=0, **wrapped, **tiny_task_kwargs)
    model = MaskedPPO(TakesMasks, env, n_steps=4, batch_size=12, seed=0, device="cpu")
    callback = begin(model)
    read = env.env_method

    def moves_after_reading(name, *args, **kwargs):
        found = read(name, *args, **kwargs)
        if name == "action_masks" and env.env_method is moves_after_reading:
            found = [mask.copy() for mask in found]
            env.env_method = read
            steps(model)
        return found

    env.env_method = moves_after_reading
    collect(model, callback)
    right = np.stack(env.env_method("action_masks"))
    assert model._last_episode_starts.all()
    assert np.array_equal(model.masks_of_the_buffer, right)
    assert np.array_equal(model.policy.masks, right)


@pytest.mark.parametrize("way", [steps_a_row, slow(evaluates)])
def test_observations_in_parts_start_afresh_too(tiny_task_kwargs, caplog, way):
    make = lambda: InParts(  # noqa: E731
        HiddenStateObservation(gym.make("tokenenv:TokenRLHF-v0", **tiny_task_kwargs))
    )
    model = PPO(
        "MultiInputPolicy", DummyVecEnv([make] * 3), n_steps=8, batch_size=24, seed=0, device="cpu"
    )
    model.learn(24, callback=[RLHFCallback(), Moving(way)])
    assert warnings_in(caplog) == 1
    before = model._last_obs["hidden"].copy()
    way(model)
    begin_again(model)
    started = model._last_episode_starts
    moved = np.abs(model._last_obs["hidden"] - before).max(axis=1) > 0
    assert started.any() and not (moved & ~started).any()
    seen = np.stack([last["hidden"] for last in model.env.get_attr("last")])
    assert np.array_equal(model._last_obs["hidden"], seen)


def begin_again(model) -> BaseCallback:
    _, callback = model._setup_learn(10**6, [RLHFCallback()], reset_num_timesteps=False)
    callback.on_training_start({}, {})
    callback.on_rollout_start()
    return callback


# Wrappers that change what was acted or seen ------------------------------------------------------


class Repeats(gym.Wrapper):
    def step(self, action):
        found = self.env.step(action)
        return found if found[2] else self.env.step(action)


class Delays(gym.ObservationWrapper):
    """One step late."""

    def reset(self, **kwargs):
        self.last, info = self.env.reset(**kwargs)
        return self.last, info

    def observation(self, observation):
        late, self.last = self.last, observation
        return late


class Stale(VecEnvWrapper):
    """Observations of the step before, in an SB3 wrapper."""

    def reset(self):
        self.last = self.venv.reset()
        return self.last

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        late, self.last = self.last, observations
        return (late, *rest)


def swapped(ids):
    """3 and 4 exchanged."""
    ids = np.asarray(ids)
    return np.where(ids == 3, 4, np.where(ids == 4, 3, ids))


def maps_observations(env):
    return wrappers.TransformObservation(env, swapped, env.observation_space)


CHANGING = {
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "repeated actions": Repeats,
    "mapped actions": lambda env: wrappers.TransformAction(
        env, lambda a: (int(a) + 1) % V, env.action_space
    ),
    "delayed observations": Delays,
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "mapped observations": maps_observations,
}


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        *((PPO, name) for name in CHANGING if name != "DelayObservation"),
        slow(PPO, "DelayObservation"),
        slow(A2C, "StickyAction"),
        (TokenPPO, "StickyAction"),
        slow(TokenPPO, "delayed observations"),
    ],
)
def test_a_wrapper_that_changes_what_was_acted_or_seen_is_refused(tiny_task_kwargs, agent, name):
    kwargs = {**tiny_task_kwargs, "prompts": ["w3 w4", "w4"]}
    make = lambda: CHANGING[name](gym.make("tokenenv:TokenRLHF-v0", **kwargs))  # noqa: E731
    model = agent(
        LMActorCriticPolicy,
        DummyVecEnv([make] * 3),
        n_steps=16,
        policy_kwargs={"actor": kwargs["reference"]},
        seed=0,
        device="cpu",
    )
    with pytest.raises(ValueError, match="wrapper changes"):
        model.learn(200, callback=RLHFCallback())


def test_a_vector_wrapper_that_changes_what_was_seen_is_refused(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, PPO)
    model.set_env(Stale(model.env))
    with pytest.raises(ValueError, match="wrapper changes"):
        model.learn(200, callback=RLHFCallback())


def test_an_mlp_on_stacked_frames_trains(tiny_task_kwargs):
    env = VecFrameStack(make_vec_env(n_envs=2, **tiny_task_kwargs), 2)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, device="cpu")
    before = weights(model.policy)
    model.learn(16, callback=RLHFCallback())  # an MLP accepts any width
    assert largest_difference(before, weights(model.policy)) > 0
