"""Estimators in the buffer, the groups they compare, and the environment that samples groups."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor
from support.tiny_task import (
    PROMPTS,
    P,
    Spy,
    T,
    V,
    begin,
    collect,
    make_agent,
    perturb,
    weights,
)
from support.worlds import Step, World, new_buffer, textbook_advantages

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.cli import main
from agents.config import TrainConfig
from agents.evaluation.held_out import HeldOut
from agents.runs.agent import build_agent
from tokenenv.maths.advantages import ADVANTAGE_ESTIMATORS, CRITIC_FREE, GROUPED, UNIFORM
from tokenenv.settings import EnvSettings

K = 3
WITHOUT_CRITIC = {
    name: {"cut": "carry", "advantage_estimator": name, "group_size": K if name in GROUPED else 1}
    for name in CRITIC_FREE
}
WITHOUT_CRITIC["vine"]["vine_samples"] = 2


@dataclass
class GroupWorld(World):
    """A world whose prompts are few, and the same for K starts in a row."""

    drawn: list[np.ndarray] = field(default_factory=list)
    started: int = 0
    groups: dict[int, int] = field(default_factory=dict)
    group_of: dict[float, int] = field(default_factory=dict)

    def _start(self, env: int) -> None:
        if not self.drawn:
            token = int(self.rng.integers(3, 7))
            self.drawn = [np.full(1 + token % 3, token)] * K
        self.episodes.start(env, self.drawn.pop())
        self.groups[env] = self.started // K
        self.started += 1

    def rollout(self, buffer: EpisodeRolloutBuffer) -> None:
        """Fill `buffer`, which learns the group of every episode as from `RLHFCallback`."""
        add = buffer.add

        def with_groups(*step) -> None:
            # `World` has not begun the next episodes yet, so these are the groups of the step.
            own = [self.groups[env] for env in range(self.n_envs)]
            self.group_of.update(zip(step[-1].tolist(), own, strict=True))
            buffer.store_groups(own)
            add(*step)

        buffer.add = with_groups
        super().rollout(buffer)
        buffer.add = add

    def finished(self) -> list[tuple[int, list[Step]]]:
        """(row of its last step, steps) of every finished episode, in the order of finishing."""
        found = []
        for env, own in enumerate(self.steps):
            start = 0
            for row, step in enumerate(own):
                if step.done:
                    found.append((row, env, own[start : row + 1]))
                    start = row + 1
        return [(row, steps) for row, _, steps in sorted(found, key=lambda e: e[:2])]


def naive_groups(world: GroupWorld) -> list[tuple[int, list[list[Step]]]]:
    """(row in which it became complete, its episodes) of each group."""
    waiting: dict[int, list[list[Step]]] = {}
    found = []
    for row, steps in world.finished():
        group = world.group_of[steps[0].mark]
        waiting.setdefault(group, []).append(steps)
        if len(waiting[group]) == K:
            found.append((row, waiting.pop(group)))
    return found


def naive_advantage(estimator: str, own: float, compared: list[float]) -> float:
    """Of a response with the return `own` among the returns of its group, or batch."""
    if estimator == "rloo":
        return own - (sum(compared) - own) / (len(compared) - 1)
    if estimator == "group":
        return (own - statistics.mean(compared)) / (statistics.stdev(compared) + 1e-4)
    return own - statistics.mean(compared)


def whitened(used: list[Step]) -> dict[float, float]:
    """Mark → whitened reward."""
    rewards = [step.reward for step in used]
    mean = statistics.mean(rewards)
    scale = math.sqrt(statistics.variance(rewards) + 1e-8)
    return {step.mark: (step.reward - mean) / scale + mean for step in used}


def by_mark(buffer: EpisodeRolloutBuffer, name: str) -> dict[float, float]:
    """Mark of each token in the update → a quantity of it; the mark is the sampled log-prob."""
    return dict(zip(buffer.log_probs.tolist(), getattr(buffer, name).tolist(), strict=True))


# Advantages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", UNIFORM)
def test_critic_free_advantages_equal_a_naive_computation(estimator):
    world = GroupWorld(n_envs=7, end=0.1)
    buffer = new_buffer(T + 3, 7, **WITHOUT_CRITIC[estimator])
    for rollout in range(5):
        world.rollout(buffer)
        new = range(rollout * (T + 3), (rollout + 1) * (T + 3))
        if estimator == "reinforce":
            groups = [[steps for row, steps in world.finished() if row in new]]
        else:
            groups = [group for row, group in naive_groups(world) if row in new]
        used = [step for group in groups for steps in group for step in steps]
        reward = {step.mark: step.reward for step in used}
        assert by_mark(buffer, "rewards") == pytest.approx(reward, abs=1e-6), "as they were paid"
        found, returns = by_mark(buffer, "advantages"), by_mark(buffer, "returns")
        assert found.keys() == reward.keys() and len(groups) >= 1
        for group in groups:
            sums = [sum(reward[step.mark] for step in steps) for steps in group]
            for own, steps in zip(sums, group, strict=True):
                expected = naive_advantage(estimator, own, sums)
                for i, step in enumerate(steps):
                    assert abs(found[step.mark] - expected) <= 1e-5 * max(1, abs(expected))
                    to_come = sum(reward[later.mark] for later in steps[i:])
                    assert abs(returns[step.mark] - to_come) <= 1e-5


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize(("estimator", "lam"), [("gae", 0.9), ("monte-carlo", 1.0), ("td", 0.0)])
def test_estimators_with_a_critic_are_gae_with_a_lambda_of_their_own(estimator, lam, cut, whiten):
    world = World(n_envs=5)
    buffer = new_buffer(
        11, 5, cut, gamma=0.97, gae_lambda=0.9, advantage_estimator=estimator, whiten_rewards=whiten
    )
    for _ in range(3):
        world.rollout(buffer)
        found = by_mark(buffer, "advantages")
        used = [step for own in world.steps for step in own if step.mark in found]
        reward = whitened(used) if whiten else {step.mark: step.reward for step in used}
        expected: dict[float, float] = {}
        for own in world.steps:
            if cut == "carry":  # what waits is joined with what follows
                own[-1].bootstrap = 0.0
            paid = [
                dataclasses.replace(step, reward=reward[step.mark])
                for step in own
                if step.mark in reward
            ]
            expected.update(textbook_advantages(paid, 0.97, lam))
        returns, values = by_mark(buffer, "returns"), by_mark(buffer, "values")
        assert len(found) >= 20
        for mark, advantage in found.items():
            assert abs(advantage - expected[mark]) <= 2e-5
            assert abs(returns[mark] - (expected[mark] + values[mark])) <= 2e-5


# Groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", GROUPED)
def test_groups_are_complete_and_no_episode_is_lost_or_used_twice(estimator):
    world = GroupWorld(n_envs=7, seed=3, end=0.15)
    buffer = new_buffer(T + 3, 7, **WITHOUT_CRITIC[estimator])
    used: list[float] = []
    delayed = 0
    for rollout in range(8):
        world.rollout(buffer)
        known = world.all_steps()
        (batch,) = buffer.get(None)
        tokens = batch.observations.tokens.tolist()
        states = zip(
            batch.observations.rows.tolist(),
            batch.observations.columns.tolist(),
            batch.actions.tolist(),
            batch.old_log_prob.tolist(),
            strict=True,
        )
        for row, column, action, mark in states:  # as they were sampled, however long they waited
            assert tuple(tokens[row][: column + 1]) == known[mark].tokens
            assert action == known[mark].action
        firsts = buffer.log_probs[buffer.offsets[:-1]].tolist()
        assert len(firsts) % K == 0
        for i in range(0, len(firsts), K):
            assert len({known[mark].tokens for mark in firsts[i : i + K]}) == 1, "of one prompt"
            assert len({world.group_of[mark] for mark in firsts[i : i + K]}) == 1
        used += buffer.log_probs.tolist()
        now = {s.mark for own in world.steps for s in own[rollout * (T + 3) :]}
        delayed += len(set(buffer.log_probs.tolist()) - now)
    assert len(used) == len(set(used)) and delayed >= 50
    whole = [{step.mark for step in steps} for _, steps in world.finished()]
    waiting = [marks for marks in whole if not marks & set(used)]
    assert all(marks <= set(used) for marks in whole if marks & set(used))
    assert len(waiting) == len(buffer._groups) > 0
    groups = [world.group_of[min(marks)] for marks in waiting]
    assert max(map(groups.count, groups)) < K, "nothing waits that could be used"


def count_words(prompts, responses):
    return [float(len(response.split())) for response in responses]


def slope(groups: list[tuple[list[float], list[float]]]) -> tuple[float, float]:
    """Of advantages on true ones, and its error; groups of (advantages, true advantages)."""
    products = np.array([np.dot(found, true) for found, true in groups])
    squares = np.array([np.dot(true, true) for _, true in groups])
    value = products.sum() / squares.sum()
    return value, float(np.sqrt(((products - value * squares) ** 2).sum()) / squares.sum())


@pytest.mark.slow
def test_the_comparison_in_groups_is_not_biased_by_length(tiny_task_kwargs):
    """Where the reward is the length, A is R − E[R | prompt] on average, with a slope of 1.

    Groups in the order of finishing hold short responses together, and long ones, whose means then
    take a part of what length is worth out of the advantages.
    """
    k = 4
    given = {"cut": "carry", "advantage_estimator": "rloo", "group_size": k}
    kwargs = {**tiny_task_kwargs, "kl_coef": 0.0, "group_size": k}
    model = make_agent(
        {**kwargs, "reward_model": count_words},
        n_envs=16,
        n_steps=T,
        rollout_buffer_kwargs=given,
    )
    spy = Spy()
    callback = begin(model, spy)
    used: list[tuple[tuple[int, ...], float, float]] = []  # prompt, return, advantage
    for _ in range(50):
        buffer = collect(model, callback)
        for i, start in enumerate(buffer.offsets[:-1].tolist()):
            prefix = buffer.prefix(i)
            score = float(buffer.rewards[start : buffer.offsets[i + 1]].sum())
            used.append((tuple(prefix.tolist()), score, float(buffer.advantages[start])))
    mean = {prompt: statistics.mean(r for p, r, _ in used if p == prompt) for prompt, _, _ in used}
    assert len(mean) == len(PROMPTS)
    groups = [used[i : i + k] for i in range(0, len(used), k)]
    found, error = slope(
        [([a for *_, a in own], [r - mean[p] for p, r, _ in own]) for own in groups]
    )
    assert abs(found - 1) <= 4 * error <= 0.1

    finishing: dict[tuple[int, ...], list[list[float]]] = {prompt: [[]] for prompt in mean}
    for step in spy.steps:
        for env in np.flatnonzero(step["dones"]).tolist():
            prompt = tuple(t for t in step["observations"][env][:P].tolist() if t >= 0)
            own = finishing[prompt]
            own[-1].append(step["infos"][env]["score"])
            if len(own[-1]) == k:
                own.append([])
    found, error = slope(
        [
            ([naive_advantage("rloo", r, own) for r in own], [r - mean[prompt] for r in own])
            for prompt, all_groups in finishing.items()
            for own in all_groups[:-1]
        ]
    )
    assert found <= 1 - 6 * error, "or this test could not tell the rules apart"


class KeepGroups(BaseCallback):
    """Of each row: the numbers of the groups that its episodes were told of, in order."""

    def _on_training_start(self) -> None:
        self.found = [[info["group"]] for info in self.training_env.unwrapped.reset_infos]

    def _on_step(self) -> bool:
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            self.found[env].append(self.training_env.unwrapped.reset_infos[env]["group"])
        return True


@pytest.mark.parametrize(
    ("vec_env", "scoring"),
    [
        ("TokenVecEnv", "step"),
        ("TokenVecEnv", "deferred"),
        ("DummyVecEnv", "step"),
        pytest.param("SubprocVecEnv", "step", marks=pytest.mark.slow),
    ],
)
def test_groups_in_the_buffer_are_those_of_the_environment(
    tiny_task_kwargs, vec_env, scoring, monkeypatch
):
    kwargs = {**tiny_task_kwargs, "prompts": PROMPTS[:2], "group_size": K, "scoring": scoring}
    is_shared = vec_env == "TokenVecEnv"
    if is_shared:
        env = VecMonitor(make_vec_env(n_envs=4, seed=0, **kwargs))
    else:
        made = DummyVecEnv if vec_env == "DummyVecEnv" else SubprocVecEnv
        env = made([lambda: gym.make("tokenenv:TokenRLHF-v0", **kwargs)] * 4)
        env.seed(0)
    model = TokenPPO(
        LMActorCriticPolicy,
        env,
        n_steps=K * T,
        rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"],
        policy_kwargs={"actor": kwargs["reference"]},
        device="cpu",
        seed=0,
    )
    keep = KeepGroups()
    callback = begin(model, RLHFCallback(), keep)
    queue = model.rollout_buffer._groups
    own_complete, numbers, completed = queue.complete, {}, []

    def complete(finished, under_way):
        for segment in sorted(finished, key=lambda s: s.end):  # of each row, in order
            earlier = sum(other.env == segment.env for other, _ in numbers.values())
            numbers[id(segment)] = (segment, earlier)
        completed.append(own_complete(finished, under_way))
        return completed[-1]

    monkeypatch.setattr(queue, "complete", complete)
    for _ in range(3):
        collect(model, callback)
    env.close()
    seen = []
    for segment in (segment for own in completed for segment in own):
        env_number = -1 if is_shared else segment.env
        seen.append((env_number, keep.found[segment.env][numbers[id(segment)][1]]))
    groups = [seen[i : i + K] for i in range(0, len(seen), K)]
    assert len(groups) >= 10
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == len(groups), "and each of them once"


def test_an_episode_of_a_given_prompt_is_compared_with_nothing(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "group_size": K}
    model = make_agent(kwargs, n_envs=K, rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"])
    callback = begin(model)
    model.env.set_options({"prompt": "w3 w6 w9"})
    model._last_obs = model.env.reset()
    model._last_episode_starts = np.ones(K, dtype=bool)
    callback.on_training_start({}, {})
    spy = Spy()
    callback.callbacks.append(spy)
    spy.init_callback(model)
    buffer = collect(model, callback)
    given = {
        float(own["log_probs"][env])
        for env in range(K)
        for own in spy.steps[: 1 + [bool(s["dones"][env]) for s in spy.steps].index(True)]
    }
    assert len(given) >= K and buffer.num_tokens > 0
    assert not given & set(buffer.log_probs.tolist())


def waiting(model) -> int:
    return len(model.rollout_buffer._groups) + sum(
        s is not None for s in model.rollout_buffer._open
    )


@pytest.mark.parametrize("scoring", ["step", "deferred"])
@pytest.mark.parametrize("way", ["set_env", "learn", "set_env and go on"])
def test_what_waits_is_dropped_with_the_environment_that_paid_for_it(
    tiny_task_kwargs, way, scoring
):
    def made(reward):
        kwargs = {**tiny_task_kwargs, "scoring": scoring, "group_size": K, "kl_coef": 0.0}
        return {**kwargs, "reward_model": reward}

    given = {"n_steps": T, "n_envs": 7, "rollout_buffer_kwargs": WITHOUT_CRITIC["rloo"]}
    model = make_agent(made(pay_5), **given)
    model.learn(3 * 7 * T)
    assert len(model.rollout_buffer._groups) > 0 and any(model.rollout_buffer._open)
    if way == "learn":  # the same environment, reset: what pays now might be another function
        mdp = model.env.env.mdp
        mdp.settings = dataclasses.replace(mdp.settings, reward_model=pay_7)
        mdp._connect()
    else:
        model.set_env(make_vec_env(n_envs=7, seed=1, **made(pay_7)))
    _, callback = model._setup_learn(
        10**6, [RLHFCallback()], reset_num_timesteps=way != "set_env and go on"
    )
    callback.on_training_start({}, {})
    assert waiting(model) == 0
    for _ in range(4):
        buffer = collect(model, callback)
        ends = buffer.offsets[1:] - 1
        assert (buffer.rewards[ends] == 7.0).all() and 5.0 not in buffer.rewards


def pay_5(prompts, responses):
    return [5.0] * len(responses)


def pay_7(prompts, responses):
    return [7.0] * len(responses)


@pytest.mark.parametrize("n_envs", [1, 7])
def test_a_training_that_goes_on_keeps_what_waits(tiny_task_kwargs, n_envs):
    kwargs = {**tiny_task_kwargs, "group_size": K}
    steps = K * T if n_envs == 1 else T
    rloo = WITHOUT_CRITIC["rloo"]
    model = make_agent(kwargs, n_steps=steps, n_envs=n_envs, rollout_buffer_kwargs=rloo)
    model.learn(1)
    kept = 0
    for _ in range(12):
        before, between = waiting(model), model._last_episode_starts.all()
        _, callback = model._setup_learn(10**6, [RLHFCallback()], reset_num_timesteps=False)
        callback.on_training_start({}, {})
        assert waiting(model) == before
        kept += before > 0 and (between or n_envs > 1)
        collect(model, callback)
    assert kept > 0, "between two episodes, too, nothing was reset"


def test_what_waits_for_its_group_is_counted():
    sizes = []
    for estimator in ("reinforce", "rloo"):
        world = GroupWorld(n_envs=2)
        buffer = new_buffer(T, 2, **WITHOUT_CRITIC[estimator])
        buffer.reset()
        before = buffer.nbytes
        world.rollout(buffer)
        used = by_mark(buffer, "rewards")
        buffer.reset()
        sizes.append(buffer.nbytes - before)
    waits = [steps for _, steps in world.finished() if steps[0].mark not in used]
    assert used and waits
    # Per token: action, reward, value and log-prob of 4 bytes each, and 8 bytes of its β; and 4
    # bytes per token of the prompt.
    per_token = 24 * sum(map(len, waits)) + 4 * sum(len(steps[0].tokens) for steps in waits)
    assert sizes[1] - sizes[0] == per_token


@pytest.mark.parametrize("estimator", CRITIC_FREE)
def test_deferred_and_stepwise_scoring_agree_and_each_episode_is_scored_once(
    tiny_task_kwargs, estimator
):
    found, given = {}, WITHOUT_CRITIC[estimator]
    for scoring in ("step", "deferred"):
        kwargs = {**tiny_task_kwargs, "scoring": scoring, "group_size": given["group_size"]}
        model = make_agent(kwargs, n_steps=T + 1, rollout_buffer_kwargs=given)
        perturb(model.policy)
        spy = Spy()
        callback = begin(model, spy)
        rollouts, scored = [], []
        if scoring == "deferred":
            scorer = model.rollout_buffer.binding.scorer
            score = scorer.score
            model.rollout_buffer.binding = dataclasses.replace(
                model.rollout_buffer.binding, scorer=_Counting(scorer, score, scored)
            )
        for kl_coef in (0.1, 0.3, 0.0, 0.2):
            model.env.env_method("set_kl_coef", kl_coef)
            spy.steps.clear()
            buffer = collect(model, callback)
            records = callback.callbacks[0].records
            ended = sum(int(step["dones"].sum()) for step in spy.steps)
            assert len(records) == ended, "records are of the episodes that finished just now"
            if scoring == "deferred":
                assert scored == [ended]
                scored.clear()
            kept = ("actions", "rewards", "advantages", "returns", "lengths", "log_probs")
            rollouts.append(
                ({k: getattr(buffer, k).copy() for k in kept}, sorted(r.score for r in records))
            )
        found[scoring] = rollouts
    for (step, step_scores), (deferred, scores) in zip(
        found["step"], found["deferred"], strict=True
    ):
        assert np.array_equal(step["actions"], deferred["actions"]) and len(step["actions"]) > 0
        for name in ("rewards", "returns", "log_probs"):
            assert np.abs(step[name] - deferred[name]).max() <= 1e-5, name
        # Responses of a group may be alike; standardising them magnifies rounding.
        tolerance = 1e-5 if estimator != "group" else 5e-3
        assert np.abs(step["advantages"] - deferred["advantages"]).max() <= tolerance
        assert np.abs(np.array(step_scores) - scores).max() <= 1e-5


class _Counting:
    """A scorer that remembers how many episodes it was asked to score."""

    def __init__(self, scorer, score, scored: list[int]) -> None:
        self._scorer, self._score, self._scored = scorer, score, scored

    def score(self, episodes):
        self._scored.append(len(episodes))
        return self._score(episodes)

    def __getattr__(self, name):
        return getattr(self._scorer, name)


def test_an_update_without_a_complete_group_is_skipped_by_token_ppo_and_explained_by_the_buffer(
    tiny_task_kwargs,
):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred", "group_size": K}
    given = {"rollout_buffer_kwargs": WITHOUT_CRITIC["rloo"]}
    model = make_agent(kwargs, n_steps=T, n_envs=K, **given)
    callback = begin(model)
    start = weights(model.policy)
    # One of the first group is lost: nothing is complete, and nothing waits for what can't be.
    model.env.env.reset(options={"prompt": [PROMPTS[0], None, None]})
    model._last_obs = model.env.env.mdp.episodes.observations.copy()
    model._last_episode_starts = np.ones(K, dtype=bool)
    model.rollout_buffer._groups.group_size = 99
    buffer = collect(model, callback)
    newest = max(s.group for s in buffer._open if s is not None)
    waiting = [group for _, group in buffer._groups._waiting]
    assert buffer.num_tokens == 0 and len(buffer.records) > 0
    assert set(waiting) <= {newest} and len(buffer._groups) < len(buffer.records)
    with pytest.raises(RuntimeError, match="completed no group of 3 responses"):
        next(buffer.get(64))
    model.train()
    assert all(torch.equal(start[name], now) for name, now in weights(model.policy).items())
    assert model._n_updates == 0
    assert "train/loss" not in model.logger.name_to_value
    model.rollout_buffer._groups.group_size = K
    buffer = collect(model, callback)
    model.train()
    assert buffer.num_tokens > 0 and model._n_updates == model.n_epochs


@pytest.mark.slow
def test_a_rollout_of_the_least_length_completes_a_group_however_long_the_responses(
    tiny_task_kwargs,
):
    """`check_groups` asks ⌈k/N⌉·T steps: enough where all responses take T, in any rollout."""
    for n_envs, k in ((1, 2), (2, 3), (3, 3), (4, 7), (5, 2)):
        kwargs = {**tiny_task_kwargs, "group_size": k}
        given = {"cut": "carry", "advantage_estimator": "rloo", "group_size": k}
        steps = -(-k // n_envs) * T
        with pytest.raises(ValueError, match=f"n_steps ≥ {steps} here, got n_steps={steps - 1}"):
            begin(make_agent(kwargs, n_steps=steps - 1, n_envs=n_envs, rollout_buffer_kwargs=given))
        model = make_agent(kwargs, n_steps=steps, n_envs=n_envs, rollout_buffer_kwargs=given)
        callback = begin(model)
        for _ in range(5):
            assert collect(model, callback).num_tokens > 0


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"advantage_estimator": "ppo"}, ["'ppo' is unknown", "'gae', 'monte-carlo', 'td'"]),
        *(
            ({"advantage_estimator": name, "group_size": 2}, ["cut='bootstrap'", "--cut carry"])
            for name in CRITIC_FREE
        ),
        *(
            ({**WITHOUT_CRITIC[name], "gamma": 0.99}, ["gamma=0.99 discounts", "gamma=1"])
            for name in CRITIC_FREE
        ),
        *(
            ({**WITHOUT_CRITIC[name], "group_size": 1}, ["no others to compare", "--group-size"])
            for name in GROUPED
        ),
        *(
            ({**WITHOUT_CRITIC[name], "whiten_rewards": True}, ["whiten_rewards=True", "every tok"])
            for name in UNIFORM
        ),
        ({"group_size": 0}, ["group_size=0 must be a whole number of at least 1"]),
        ({"group_size": 1.5}, ["group_size=1.5 must be a whole number of at least 1"]),
    ],
)
def test_combinations_that_can_not_work_are_refused(given, parts):
    with pytest.raises(ValueError) as caught:
        new_buffer(T, 2, **given)
    for part in parts:
        assert part in str(caught.value)


def test_group_sizes_of_buffer_and_environment_must_agree_where_groups_are_compared(
    tiny_task_kwargs,
):
    rloo = WITHOUT_CRITIC["rloo"]
    model = make_agent(tiny_task_kwargs, rollout_buffer_kwargs=rloo)
    with pytest.raises(ValueError, match=r"group_size=3 .* group_size=1 .*make_vec_env\("):
        model.learn(1)
    # Without a comparison the buffer need not know.
    model = make_agent({**tiny_task_kwargs, "group_size": 4}, n_steps=2)
    model.learn(12)


def test_separate_environments_need_longer_rollouts_and_are_told_of_a_better_way(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "group_size": K}

    def agent(n_steps):
        env = DummyVecEnv([lambda: gym.make("TokenRLHF-v0", **kwargs) for _ in range(K)])
        return PPO(
            LMActorCriticPolicy,
            env,
            n_steps=n_steps,
            gamma=1.0,
            batch_size=8,
            n_epochs=1,
            device="cpu",
            rollout_buffer_class=EpisodeRolloutBuffer,
            rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"],
            policy_kwargs={"actor": kwargs["reference"]},
        )

    with pytest.raises(ValueError, match=r"n_steps ≥ 24 here, got n_steps=23.*make_vec_env"):
        begin(agent(23))
    model = agent(24)
    model.learn(2 * 24 * K, callback=RLHFCallback())
    assert model.rollout_buffer.num_tokens > 0


def test_a_value_loss_without_a_use_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match=r"vf_coef=0\.1 trains a critic.*'rloo' needs none"):
        make_agent(tiny_task_kwargs, vf_coef=0.1, rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"])
    with pytest.raises(ValueError, match="vf_coef=-1 must be 0 or a positive"):
        make_agent(tiny_task_kwargs, vf_coef=-1)
    assert make_agent(tiny_task_kwargs).vf_coef == 0.1
    assert make_agent(tiny_task_kwargs, vf_coef=0).vf_coef == 0


# Agents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ADVANTAGE_ESTIMATORS)
def test_token_ppo_trains_with_every_estimator(tiny_task_kwargs, estimator):
    has_critic = estimator not in CRITIC_FREE
    given = {"advantage_estimator": estimator} if has_critic else WITHOUT_CRITIC[estimator]
    kwargs = {**tiny_task_kwargs, "scoring": "deferred", "group_size": K}
    model = make_agent(kwargs, rollout_buffer_kwargs={**given, "whiten_rewards": has_critic})
    if estimator == "reinforce":
        assert model.rollout_buffer.group_size == 1
    start = weights(model.policy)
    model.learn(2 * 20 * 6)
    end = weights(model.policy)
    assert math.isfinite(model.logger.name_to_value["train/loss"])
    assert all(torch.isfinite(weight).all() for weight in end.values())
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert any(name.startswith("actor.") for name in moved)
    assert ("value_net.weight" in moved) == has_critic
    assert model.vf_coef == (0.1 if has_critic else 0.0)
    assert has_critic == (model.policy.value_net.weight.grad is not None)


def test_stock_ppo_trains_with_the_buffers_rloo(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred", "group_size": K}
    model = make_agent(
        kwargs,
        PPO,
        gamma=1.0,
        rollout_buffer_class=EpisodeRolloutBuffer,
        rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"],
    )
    start = weights(model.policy)
    model.learn(2 * 20 * 6, callback=RLHFCallback())
    assert math.isfinite(model.logger.name_to_value["train/loss"])
    assert not torch.equal(start["actor.lm_head.weight"], model.policy.actor.lm_head.weight), (
        "it learns"
    )
    buffer = model.rollout_buffer
    sums = [buffer.advantages[o] for o in buffer.offsets[:-1]]
    assert np.abs(np.reshape(sums, (-1, K)).sum(axis=1)).max() <= 1e-5


def test_an_agent_survives_saving_without_a_critic(tiny_task_kwargs, tmp_path):
    kwargs = {**tiny_task_kwargs, "group_size": K}
    model = make_agent(kwargs, rollout_buffer_kwargs=WITHOUT_CRITIC["rloo"])
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", env=model.env, device="cpu")
    assert again.vf_coef == 0.0
    assert again.rollout_buffer.advantage_estimator == "rloo"
    again.learn(20 * 6)


# The environment ----------------------------------------------------------------------------------


def settings(tiny_task_kwargs, **changes) -> dict:
    return {**tiny_task_kwargs, **changes}


def prompts_of(env: gym.Env, resets: int) -> list[str]:
    return [env.reset()[1]["prompt"] for _ in range(resets)]


def test_a_single_environment_starts_group_size_episodes_from_each_prompt(tiny_task_kwargs):
    env = gym.make("TokenRLHF-v0", group_size=K, **tiny_task_kwargs)
    drawn = [env.reset(seed=5)[1]["prompt"], *prompts_of(env, 8 * K - 1)]
    rng, _ = gym.utils.seeding.np_random(5)
    expected = [PROMPTS[int(rng.integers(len(PROMPTS)))] for _ in range(8)]
    assert drawn == [prompt for prompt in expected for _ in range(K)] and len(set(expected)) > 2


def test_a_group_size_of_1_draws_for_every_episode(tiny_task_kwargs):
    for given in ({}, {"group_size": 1}):
        env = gym.make("TokenRLHF-v0", **tiny_task_kwargs, **given)
        drawn = [env.reset(seed=5)[1]["prompt"], *prompts_of(env, 19)]
        rng, _ = gym.utils.seeding.np_random(5)
        assert drawn == [PROMPTS[int(rng.integers(len(PROMPTS)))] for _ in range(20)]


def test_a_seed_begins_a_group_and_a_given_prompt_counts_to_none(tiny_task_kwargs):
    env = gym.make("TokenRLHF-v0", group_size=K, **tiny_task_kwargs)
    first = [env.reset(seed=2)[1]["prompt"], *prompts_of(env, 5)]
    assert first[:3] == [first[0]] * 3 and first[3:] == [first[3]] * 3 and first[0] != first[3]
    again = [env.reset(seed=2)[1]["prompt"]]
    given = next(prompt for prompt in PROMPTS if prompt not in first)
    assert env.reset(options={"prompt": given})[1]["prompt"] == given
    again += prompts_of(env, 5)
    assert again == first
    env.reset(seed=2)  # a group of which only one has started
    assert [env.reset(seed=2)[1]["prompt"], *prompts_of(env, 5)] == first


def test_rows_of_a_vector_environment_fill_groups_together_in_the_order_they_start(
    tiny_task_kwargs, rng
):
    env = make_vec_env(n_envs=4, seed=2, group_size=K, **tiny_task_kwargs)
    env.reset()
    drawn = [info["prompt"] for info in env.reset_infos]
    for _ in range(60):
        _, _, dones, _ = env.step(rng.integers(0, V, size=4))
        drawn += [env.reset_infos[row]["prompt"] for row in np.flatnonzero(dones)]
    groups = [drawn[i : i + K] for i in range(0, len(drawn) - K + 1, K)]
    assert len(groups) >= 15 and all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) >= 4
    # SB3 starts anew where training does: the rest of a group under way would never be complete.
    for _ in range(6):
        env.reset()
        started = [info["prompt"] for info in env.reset_infos]
        assert started[:K] == [started[0]] * K
        while len(started) % K == 0 or len(started) < 8:
            _, _, dones, _ = env.step(rng.integers(0, V, size=4))
            started += [env.reset_infos[row]["prompt"] for row in np.flatnonzero(dones)]


def test_a_seeded_reset_of_a_vector_environment_begins_one_group_for_all_rows(tiny_task_kwargs):
    env = gym.make_vec(
        "TokenRLHF-v0",
        num_envs=5,
        vectorization_mode="vector_entry_point",
        autoreset_mode="Disabled",
        group_size=K,
        **tiny_task_kwargs,
    )
    prompts = env.reset(seed=0)[1]["prompt"].tolist()
    assert prompts[:K] == [prompts[0]] * K and prompts[K:] == [prompts[K]] * 2
    mask = np.array([True, False, True, False, False])
    kept = env.reset(options={"reset_mask": mask})[1]["prompt"].tolist()
    assert kept[0] == prompts[K], "the third of the second group"
    for seed in range(6):  # each time a group is under way, of another prompt nearly always
        own = env.reset(seed=[seed, *[None] * 4], options={"reset_mask": mask})[1]["prompt"]
        rng, _ = gym.utils.seeding.np_random(seed)
        assert own[0] == own[2] == PROMPTS[int(rng.integers(len(PROMPTS)))]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "2"])
def test_a_group_size_that_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"group_size=.* must be a whole number of at least 1"):
        EnvSettings(group_size=value)


def test_held_out_prompts_know_no_groups(tiny_task_kwargs):
    plain = HeldOut.from_env_kwargs(tiny_task_kwargs, 4)
    grouped = HeldOut.from_env_kwargs({**tiny_task_kwargs, "group_size": K}, 4)
    assert grouped.settings == plain.settings and grouped.texts == plain.texts
    ungrouped, bundled = (
        HeldOut.from_env_kwargs({"task": "reviews", "device": "cpu", "group_size": k}, 64)
        for k in (1, 4)
    )
    assert bundled.known_optimum == ungrouped.known_optimum is not None


# The command line ---------------------------------------------------------------------------------


def test_the_settings_of_a_run_reach_agent_and_environment():
    config = TrainConfig(
        advantage_estimator="rloo", group_size=4, whiten_rewards=False, n_envs=8, device="cpu"
    )
    env = make_vec_env(n_envs=8, seed=0, **config.environment())
    model = build_agent(config, env)
    assert env.env.settings.group_size == 4
    assert model.rollout_buffer_kwargs == {
        "cut": "carry",
        "advantage_estimator": "rloo",
        "group_size": 4,
        "whiten_rewards": False,
    }
    assert model.vf_coef == 0.0
    assert TrainConfig(whiten_rewards=True).rollout_buffer()["whiten_rewards"] is True


@pytest.mark.parametrize(("estimator", "cut"), [("gae", "bootstrap"), ("reinforce", "carry")])
def test_the_estimator_decides_what_happens_to_cut_episodes_unless_it_is_said(estimator, cut):
    assert TrainConfig(advantage_estimator=estimator).rollout_buffer()["cut"] == cut
    given = TrainConfig(advantage_estimator=estimator, cut="carry")
    assert given.rollout_buffer()["cut"] == "carry"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--advantage-estimator", "rloo"], ["one response per prompt", "--group-size"]),
        (
            ["--advantage-estimator", "group", "--group-size", "4", "--cut", "bootstrap"],
            ["cut='bootstrap'", "--cut carry"],
        ),
        (["--advantage-estimator", "reinforce", "--gamma", "0.9"], ["gamma=0.9 discounts"]),
        (["--advantage-estimator", "reinforce", "--vf-coef", "0.5"], ["vf_coef=0.5 trains"]),
        (
            ["--advantage-estimator", "reinforce", "--value-head", "separate"],
            ["value_head='separate' is a critic", "leave --value-head out"],
        ),
        (["--group-size", "0"], ["group_size=0 must be a whole number"]),
        (
            ["--advantage-estimator", "rloo", "--group-size", "4", "--n-envs", "2"],
            ["needs n_steps ≥ 64 here, got n_steps=32", "n_envs"],
        ),
        (["--advantage-estimator", "reinforce", "--n-steps", "31"], ["n_steps ≥ max_new_tokens"]),
    ],
)
def test_bad_combinations_of_flags_end_before_anything_is_written(
    flags, parts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "1000")
    out = tmp_path / "run"
    try:
        status = main(["train", "--out", str(out), "--device", "cpu", *flags])
    except SystemExit as stopped:  # refused by the argument parser itself
        status = stopped.code
    assert status == 2
    said = " ".join(capsys.readouterr().err.split())
    for part in parts:
        assert part in said
    assert not out.exists()
