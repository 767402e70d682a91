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
from stable_baselines3.common.vec_env import DummyVecEnv
from test_buffer import Step, World, new_buffer, textbook_advantages
from tiny_task import PROMPTS, Spy, T, V, begin, collect, make_agent, perturb, weights

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, make_vec_env
from agents.cli import main
from agents.config import TrainConfig
from agents.held_out import HeldOut
from agents.training import build_agent
from tokenenv.credit import ADVANTAGE_ESTIMATORS, CRITIC_FREE, GROUPED
from tokenenv.settings import EnvSettings

K = 3
WITHOUT_CRITIC = {
    name: {"cut": "carry", "advantage_estimator": name, "group_size": K if name in GROUPED else 1}
    for name in CRITIC_FREE
}


@dataclass
class GroupWorld(World):
    """A world whose prompts are few, and the same for K starts in a row."""

    drawn: list[np.ndarray] = field(default_factory=list)

    def _start(self, env: int) -> None:
        if not self.drawn:
            token = int(self.rng.integers(3, 7))
            self.drawn = [np.full(1 + token % 3, token)] * K
        self.episodes.start(env, self.drawn.pop())

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


def naive_groups(finished: list[tuple[int, list[Step]]]) -> list[tuple[int, list[list[Step]]]]:
    """(row in which it became complete, its episodes) of each group."""
    waiting: dict[tuple[int, ...], list[list[Step]]] = {}
    found = []
    for row, steps in finished:
        waiting.setdefault(steps[0].tokens, []).append(steps)
        if len(waiting[steps[0].tokens]) == K:
            found.append((row, waiting.pop(steps[0].tokens)))
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


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("estimator", CRITIC_FREE)
def test_critic_free_advantages_equal_a_naive_computation(estimator, whiten):
    world = GroupWorld(n_envs=7, end=0.1)
    buffer = new_buffer(T + 3, 7, whiten_rewards=whiten, **WITHOUT_CRITIC[estimator])
    for rollout in range(5):
        world.rollout(buffer)
        new = range(rollout * (T + 3), (rollout + 1) * (T + 3))
        if estimator == "reinforce":
            groups = [[steps for row, steps in world.finished() if row in new]]
        else:
            groups = [group for row, group in naive_groups(world.finished()) if row in new]
        used = [step for group in groups for steps in group for step in steps]
        reward = {step.mark: step.reward for step in used}
        assert by_mark(buffer, "rewards") == pytest.approx(reward, abs=1e-6), "as they were paid"
        reward = whitened(used) if whiten else reward
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
        starts = [known[mark].tokens for mark in buffer.log_probs[buffer.offsets[:-1]].tolist()]
        assert len(starts) % K == 0
        for i in range(0, len(starts), K):
            assert len(set(starts[i : i + K])) == 1, "a group answers one prompt"
        used += buffer.log_probs.tolist()
        now = {s.mark for own in world.steps for s in own[rollout * (T + 3) :]}
        delayed += len(set(buffer.log_probs.tolist()) - now)
    assert len(used) == len(set(used)) and delayed >= 50
    whole = [{step.mark for step in steps} for _, steps in world.finished()]
    waiting = [marks for marks in whole if not marks & set(used)]
    assert all(marks <= set(used) for marks in whole if marks & set(used))
    assert len(waiting) == len(buffer._groups) > 0
    prompts = [steps[0].tokens for _, steps in world.finished() if steps[0].mark not in set(used)]
    assert max(map(prompts.count, prompts)) < K, "nothing waits that could be used"


def test_what_waits_for_its_group_is_counted():
    sizes = []
    for estimator in ("reinforce", "rloo"):
        world = GroupWorld(n_envs=2)
        buffer = new_buffer(T, 2, **WITHOUT_CRITIC[estimator])
        buffer.reset()
        before = buffer.nbytes
        world.rollout(buffer)
        buffer.reset()
        sizes.append(buffer.nbytes - before)
    waits = [s for _, steps in world.finished() for s in steps]
    waits = [s for s in waits if s.mark not in by_mark(buffer, "rewards")]
    done = naive_groups(world.finished())
    tokens = len(waits) - sum(len(steps) for _, group in done for steps in group)
    # Per token: action, reward, value and log-prob of 4 bytes each, and 8 bytes of its β.
    assert tokens > 0 and sizes[1] - sizes[0] >= tokens * 24


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
    # One of the first group is lost: the others wait, and nothing is complete.
    model.env.env.reset(options={"prompt": [PROMPTS[0], None, None]})
    model._last_obs = model.env.env.mdp.episodes.observations.copy()
    model._last_episode_starts = np.ones(K, dtype=bool)
    model.rollout_buffer._groups.group_size = 99
    buffer = collect(model, callback)
    waiting = len(buffer._groups)
    assert buffer.num_tokens == 0 and waiting == len(buffer.records) > 0
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
    with pytest.raises(ValueError, match=r"vf_coef=0\.1 trains a critic.*'rloo' asks none"):
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
    model = make_agent(kwargs, rollout_buffer_kwargs={**given, "whiten_rewards": True})
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
    plain = HeldOut.of(tiny_task_kwargs, 4)
    grouped = HeldOut.of({**tiny_task_kwargs, "group_size": K}, 4)
    assert grouped.settings == plain.settings and grouped.texts == plain.texts
    ungrouped, bundled = (
        HeldOut.of({"task": "reviews", "device": "cpu", "group_size": k}, 64) for k in (1, 4)
    )
    assert bundled.known_optimum == ungrouped.known_optimum is not None


# The command line ---------------------------------------------------------------------------------


def test_the_settings_of_a_run_reach_agent_and_environment():
    config = TrainConfig(
        advantage_estimator="rloo", group_size=4, whiten_rewards=True, n_envs=8, device="cpu"
    )
    env = make_vec_env(n_envs=8, seed=0, **config.environment())
    model = build_agent(config, env)
    assert env.env.settings.group_size == 4
    assert model.rollout_buffer_kwargs == {
        "cut": "carry",
        "advantage_estimator": "rloo",
        "group_size": 4,
        "whiten_rewards": True,
    }
    assert model.vf_coef == 0.0


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
