"""`EpisodeRolloutBuffer`: every token once, credit inside its episode, scores where they belong."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from support.tiny_task import P, Spy, T, begin, collect, make_agent, perturb
from support.tolerances import rounding
from support.worlds import World, new_buffer, textbook_advantages

from agents import EpisodeRolloutBuffer, TokenPPO
from tokenenv.maths.advantages import generalized_advantages
from tokenenv.models.language_model import load_frozen
from tokenenv.models.log_probs import response_log_probs
from tokenenv.models.packing import minibatch_indices

# Advantages ---------------------------------------------------------------------------------------


def test_the_worked_example():
    # A_4 = 1 − .8 = .2; A_3 = .99·.8 − .5 + .9405·.2 = .4801; and so on backwards.
    found = generalized_advantages(
        np.array([[0.0, 0, 0, 0, 1]]),
        np.array([[0.1, 0.2, 0.3, 0.5, 0.8]]),
        np.array([5]),
        np.zeros(1),
        gamma=0.99,
        gae_lambda=0.95,
    )
    expected = [0.76111389, 0.70506527, 0.64653405, 0.4801, 0.2]
    assert np.abs(found[0] - expected).max() <= 1e-8


@pytest.mark.parametrize("n_steps", [3, 11])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0)])
def test_advantages_equal_the_textbook_across_cut_episodes(n_steps, gamma, gae_lambda):
    world = World(n_envs=5)
    buffer = new_buffer(n_steps, 5, gamma=gamma, gae_lambda=gae_lambda)
    for _ in range(4):
        first = len(world.steps[0])
        world.rollout(buffer)
        expected = {}
        for own in world.steps:
            expected.update(textbook_advantages(own[first:], gamma, gae_lambda))
        (batch,) = buffer.get(None)
        assert len(batch.advantages) == 5 * n_steps
        for mark, advantage, result, value in zip(
            batch.old_log_prob.tolist(),
            batch.advantages.tolist(),
            batch.returns.tolist(),
            batch.old_values.tolist(),
            strict=True,
        ):
            assert abs(advantage - expected[mark]) <= 1e-5
            assert abs(result - (expected[mark] + value)) <= 1e-5


def test_carried_episodes_get_the_advantages_of_whole_episodes():
    world = World(n_envs=5, end=0.1)
    buffer = new_buffer(T, 5, "carry", gae_lambda=0.9)
    found: dict[float, float] = {}
    for _ in range(5):
        world.rollout(buffer)
        for own in world.steps:
            own[-1].bootstrap = 0.0  # no cut: what waits is joined with what follows
        (batch,) = buffer.get(None)
        found.update(zip(batch.old_log_prob.tolist(), batch.advantages.tolist(), strict=True))
    for own in world.steps:
        finished = own[: max(i for i, step in enumerate(own) if step.done) + 1]
        for mark, advantage in textbook_advantages(finished, 1.0, 0.9).items():
            assert abs(found[mark] - advantage) <= 1e-5


def test_credit_stays_inside_its_episode():
    outcomes = []
    for bonus in (0.0, 10.0):
        world, buffer = World(n_envs=4), new_buffer(12, 4)
        buffer_add, calls = buffer.add, []

        def add(obs, action, reward, *rest, bonus=bonus, calls=calls, buffer_add=buffer_add):
            calls.append(None)
            reward = reward.copy()
            if len(calls) == 6:
                reward[2] += bonus
            buffer_add(obs, action, reward, *rest)

        buffer.add = add
        world.rollout(buffer)
        (batch,) = buffer.get(None)
        outcomes.append(
            dict(zip(batch.old_log_prob.tolist(), batch.advantages.tolist(), strict=True))
        )
    own = world.steps[2]
    before = [i for i in range(5) if own[i].done]
    episode = own[(before[-1] + 1 if before else 0) : 6]
    changed = {mark for mark in outcomes[0] if outcomes[0][mark] != outcomes[1][mark]}
    assert changed == {step.mark for step in episode}


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 16, 50])
@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
def test_every_token_is_yielded_once_per_epoch_in_its_own_state(cut, batch_size):
    world, buffer = World(n_envs=7), new_buffer(13, 7, cut)
    uses: Counter[float] = Counter()
    for _ in range(4):
        world.rollout(buffer)
        known = world.all_steps()
        for _ in range(2):
            seen = []
            for batch in buffer.get(batch_size):
                n = len(batch.observations)
                for values in batch[1:]:
                    assert values.shape == (n,)
                if batch_size is not None:
                    assert n <= batch_size + T
                tokens, rows, columns = (
                    getattr(batch.observations, k).tolist() for k in ("tokens", "rows", "columns")
                )
                for row, column, action, mark in zip(
                    rows, columns, batch.actions.tolist(), batch.old_log_prob.tolist(), strict=True
                ):
                    assert tuple(tokens[row][: column + 1]) == known[mark].tokens
                    assert action == known[mark].action
                    seen.append(mark)
            assert len(seen) == len(set(seen)) == buffer.num_tokens
        uses.update(seen)
    assert max(uses.values()) == 1, "no token is used in two updates"
    for own in world.steps:
        last = max(i for i, step in enumerate(own) if step.done)
        waits = {step.mark for step in own[last + 1 :]} if cut == "carry" else set()
        assert {step.mark for step in own} - set(uses) == waits


def test_minibatches_differ_from_epoch_to_epoch_and_have_about_the_size_asked_for(rng):
    sizes = rng.integers(1, 33, size=200)
    epochs = [list(minibatch_indices(sizes, 512, rng)) for _ in range(2)]
    for groups in epochs:
        assert sorted(np.concatenate(groups).tolist()) == list(range(200))
        totals = [sizes[group].sum() for group in groups]
        assert len(groups) == -(-sizes.sum() // 512)
        assert max(totals) <= 512 + 32 and min(totals) >= 512 - 2 * 32 - 512 // len(groups)
    assert not all(np.array_equal(a, b) for a, b in zip(*epochs, strict=True))


def test_evaluation_of_the_yielded_order_gives_the_stored_log_probs_and_values(tiny_task_kwargs):
    for cut in ("bootstrap", "carry"):
        model = make_agent(
            {**tiny_task_kwargs, "scoring": "deferred"},
            n_steps=9,
            rollout_buffer_kwargs={"cut": cut},
        )
        callback = begin(model)
        for _ in range(3):
            buffer = collect(model, callback)
            for batch in buffer.get(20):
                with torch.no_grad():
                    values, log_probs, _ = model.policy.evaluate_actions(
                        batch.observations, batch.actions
                    )
                assert (log_probs - batch.old_log_prob).abs().max() <= 1e-5
                assert (values.flatten() - batch.old_values).abs().max() <= 1e-5


def test_a_buffer_takes_at_most_64_bytes_per_token():
    world, n = World(n_envs=64, p=16, t=32, end=0.05), 64
    buffer = new_buffer(n, 64, p=16, t=32)
    for _ in range(2):
        world.rollout(buffer)
        assert buffer.nbytes / buffer.num_tokens <= 64
    batch = next(buffer.get(512))  # the update's own tensors are not the buffer's
    del batch
    tracemalloc.start()
    fresh = new_buffer(n, 64, p=16, t=32)
    world.steps = [[] for _ in range(64)]
    before = tracemalloc.get_traced_memory()[0]
    keep, world.steps = world.steps, [_Forget() for _ in range(64)]
    world.rollout(fresh)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    world.steps = keep
    assert used / fresh.num_tokens <= 64


class _Forget(list):
    """A list that remembers its last entry only."""

    def append(self, item) -> None:
        self[:] = [item]


# Binding ------------------------------------------------------------------------------------------


def test_an_unbound_buffer_says_what_to_do():
    world, buffer = World(n_envs=2), new_buffer(4, 2)
    buffer.binding = None
    with pytest.raises(RuntimeError, match=r"RLHFCallback\(\)"):
        world.rollout(buffer)


def test_carry_with_too_few_steps_is_refused(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, n_steps=T - 1, rollout_buffer_kwargs={"cut": "carry"})
    with pytest.raises(ValueError, match=f"n_steps ≥ max_new_tokens = {T}, got n_steps={T - 1}"):
        model.learn(1)


def test_an_unknown_cut_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match="'bootstrap', 'carry'"):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs={"cut": "drop"})


# Scoring ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "n_steps"), [("bootstrap", 3), ("bootstrap", 17), ("carry", 9)])
def test_deferred_and_stepwise_scoring_agree(tiny_task_kwargs, cut, n_steps):
    """Also where episodes span rollouts and β changes between them."""
    found = {}
    for scoring in ("step", "deferred"):
        model = make_agent(
            {**tiny_task_kwargs, "scoring": scoring, "missing_eos_penalty": 0.5, "score_clip": 1.0},
            n_steps=n_steps,
            rollout_buffer_kwargs={"cut": cut},
        )
        perturb(model.policy)
        callback = begin(model)
        rollouts = []
        for kl_coef in (0.1, 0.3, 0.0, 0.2):
            model.env.env_method("set_kl_coef", kl_coef)
            buffer = collect(model, callback)
            records = sorted(callback.callbacks[0].records, key=lambda r: r.ref_log_prob)
            rollouts.append((buffer, records, dict(callback.callbacks[0].metrics)))
            kept = ("actions", "rewards", "advantages", "returns", "lengths")
            rollouts[-1] = ({k: getattr(buffer, k).copy() for k in kept}, *rollouts[-1][1:])
        found[scoring] = rollouts
    for (step, step_records, step_metrics), (deferred, records, metrics) in zip(
        found["step"], found["deferred"], strict=True
    ):
        assert np.array_equal(step["actions"], deferred["actions"])
        assert np.array_equal(step["lengths"], deferred["lengths"])
        for name in ("rewards", "advantages", "returns"):
            assert np.abs(step[name] - deferred[name]).max() <= 1e-5, name
        assert len(records) == len(step_records)
        for ours, theirs in zip(records, step_records, strict=True):
            assert (ours.length, ours.stopped) == (theirs.length, theirs.stopped)
            for name in ("kl", "ref_log_prob", "rm_score", "score"):
                difference = abs(getattr(ours, name) - getattr(theirs, name))
                assert difference <= rounding(theirs.ref_log_prob), name  # all go back to such sums
        assert metrics.keys() == step_metrics.keys()
        largest = [record.ref_log_prob for record in records]
        for name, value in metrics.items():
            assert abs(value - step_metrics[name]) <= rounding(largest), name
    assert sum(len(records) for _, records, _ in found["step"]) >= 6


@pytest.mark.parametrize("scoring", ["step", "deferred"])
@pytest.mark.parametrize("kl_shaping", ["k1", "none"])
def test_the_two_halves_of_the_kl_are_the_k1_shaping(tiny_task_kwargs, scoring, kl_shaping):
    # Nobody pays k1 where the environment does not pay its half: β must be 0, then.
    kl_coef = 0.1 if kl_shaping == "k1" else 0.0
    kwargs = {**tiny_task_kwargs, "scoring": scoring, "kl_shaping": kl_shaping, "kl_coef": kl_coef}
    model = make_agent(kwargs, n_steps=11)
    perturb(model.policy)  # away from the reference, so that there is a KL to pay
    spy = Spy()
    buffer = collect(model, begin(model, spy))
    reference = load_frozen(kwargs["reference"], "cpu").model
    scores = [i["score"] for step in spy.steps for i in step["infos"] if "score" in i]
    endings = []
    for batch in buffer.get(None):
        packed = batch.observations
        expected = np.zeros(len(packed))
        for row in range(len(packed.tokens)):
            own = np.flatnonzero(packed.rows.numpy() == row)
            first = int(packed.columns[own[0]])
            prefix = packed.tokens[row, : first + 1].numpy()
            actions = batch.actions[own].numpy()
            (ref,) = response_log_probs(reference, [prefix], [actions], temperature=1.0)
            log_ratio = batch.old_log_prob[own].numpy() - ref
            expected[own] = -0.1 * log_ratio if kl_shaping == "k1" else 0.0
        rewards = buffer.rewards[_order(buffer, batch)]
        paid = rewards - expected
        is_end = np.abs(paid) > rounding(batch.old_log_prob)  # elsewhere nothing is left over
        endings += paid[is_end].tolist()
    ended = [step["dones"].sum() for step in spy.steps]
    assert len(endings) == sum(ended)
    if scoring == "step":
        assert np.abs(np.sort(endings) - np.sort(scores)).max() <= 1e-5


def _order(buffer: EpisodeRolloutBuffer, batch) -> list[int]:
    """Where in the buffer each token of the batch is, by its log-probability and value.

    Two of the same pair are the same action in the same state, and so have the same reward.
    """
    stored = zip(buffer.log_probs.tolist(), buffer.values.tolist(), strict=True)
    position = {mark: i for i, mark in enumerate(stored)}
    marks = zip(batch.old_log_prob.tolist(), batch.old_values.tolist(), strict=True)
    return [position[mark] for mark in marks]


def token_number(prompts, responses, response_tokens):
    """Pay every token a number that says which token it is."""
    return [[_number(token) for token in tokens] for tokens in response_tokens]


def _number(token: str) -> float:
    return float(token[1:]) / 10 if token.startswith("w") else 0.25


def test_rewards_per_token_land_on_their_tokens_under_carry(tiny_task_kwargs):
    kwargs = {
        **tiny_task_kwargs,
        "scoring": "deferred",
        "reward_model": token_number,
        "kl_coef": 0.0,
    }
    model = make_agent(kwargs, n_steps=T + 1, rollout_buffer_kwargs={"cut": "carry"})
    callback = begin(model)
    decode = load_frozen(kwargs["reference"], "cpu").decode
    for _ in range(3):
        buffer = collect(model, callback)
        expected = [_number(decode([action])) for action in buffer.actions]
        assert np.abs(buffer.rewards - expected).max() <= 1e-5


def test_rewards_per_token_are_refused_under_bootstrap(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred", "reward_model": token_number}
    model = make_agent(kwargs)
    with pytest.raises(ValueError, match="'cut': 'carry'"):
        model.learn(1)


def test_padding_changes_nothing(tiny_task_kwargs):
    """A prompt budget with room to spare: more −1, the same numbers."""
    found = []
    for extra in (0, 7):
        kwargs = {**tiny_task_kwargs, "scoring": "deferred", "max_prompt_tokens": P + extra}
        model = make_agent(kwargs, n_steps=13)
        buffer = collect(model, begin(model))
        found.append({k: getattr(buffer, k) for k in ("actions", "rewards", "values", "log_probs",
                                                      "advantages", "returns")})  # fmt: skip
    for name in found[0]:
        assert np.abs(found[0][name] - found[1][name]).max() <= 1e-5, name


def test_a_rollout_that_was_interrupted_leaves_nothing_behind(tiny_task_kwargs):
    """Ctrl-C in a rollout, then `learn` again without a reset: no step is joined to another's."""
    for cut in ("bootstrap", "carry"):
        kwargs = {**tiny_task_kwargs, "scoring": "deferred"}
        model = make_agent(kwargs, n_steps=9, rollout_buffer_kwargs={"cut": cut})
        spy = Spy()
        callback = begin(model, spy)
        collect(model, callback)
        step_wait = model.env.step_wait
        model.env.step_wait = _interrupt_after(5, step_wait)
        with pytest.raises(KeyboardInterrupt):
            collect(model, callback)
        model.env.step_wait = step_wait
        under_way = (model._last_obs[:, P:] >= 0).any(axis=1)
        spy.steps.clear()
        buffer = collect(model, callback)
        (batch,) = buffer.get(None)
        with torch.no_grad():
            _, log_probs, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert (log_probs - batch.old_log_prob).abs().max() <= 1e-5
        # Episodes whose first log-probabilities were lost have no KL, and so no record; with carry,
        # where whole episodes are compared, they start afresh instead.
        ended = sum(int(step["dones"].sum()) for step in spy.steps)
        lost = under_way.sum() if cut == "bootstrap" else 0
        assert under_way.any() and len(buffer.records) == ended - lost


def _interrupt_after(steps: int, step_wait):
    left = [steps]

    def interrupted():
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step_wait()

    return interrupted


def test_the_buffer_is_the_default_of_token_ppo(tiny_task_kwargs):
    assert type(make_agent(tiny_task_kwargs, TokenPPO).rollout_buffer) is EpisodeRolloutBuffer
