"""The KL penalty in training: who pays what, which gradient arrives, and who moves β."""

from __future__ import annotations

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from support.tiny_task import (
    Spy,
    begin,
    collect,
    largest_difference,
    make_agent,
    perturb,
    randomize_value_head,
    weights,
)
from support.tolerances import assert_close

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.ppo.update import Update
from agents.rollout import rewards as new_steps_module
from agents.runs.agent import build_agent
from tokenenv.maths import token_rewards
from tokenenv.models import log_probs as log_probs_module
from tokenenv.models.language_model import load_frozen

ESTIMATORS = ("k1", "k2", "k3", "full")


def shaped(kwargs, estimator, **more):
    """The tiny task as an estimator needs it."""
    return {**kwargs, "kl_shaping": "k1" if estimator == "k1" else "none", **more}


@torch.no_grad()
def next_log_probs(model, tokens) -> np.ndarray:
    """(V,) log-probabilities after `tokens`, by transformers' own forward."""
    logits = model(input_ids=torch.as_tensor(tokens)[None], use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.double(), -1).numpy()


def by_hand(estimator, log_probs, ref_log_probs, action) -> float:
    """The estimate at one state, written out once more."""
    rho = log_probs[action] - ref_log_probs[action]
    return {
        "k1": rho,
        "k2": rho**2 / 2,
        "k3": np.exp(-rho) - 1 + rho,
        "full": float(np.sum(np.exp(log_probs) * (log_probs - ref_log_probs))),
    }[estimator]


def expected_rewards(estimator, actor, reference, steps, kl_coef) -> dict[tuple, float]:
    """(log-prob, value) of each step → score − β·estimate, as `token_rewards` says."""
    rewards = {}
    for step in steps:
        for env, info in enumerate(step["infos"]):
            tokens, action = step["observations"][env], step["actions"][env]
            own = next_log_probs(actor, tokens[tokens >= 0])
            ref = next_log_probs(reference, tokens[tokens >= 0])
            score, kl = info.get("score", 0.0), by_hand(estimator, own, ref, action)
            (reward,) = token_rewards(
                score, own[[action]], ref[[action]], kl_coef, estimator, np.array([kl])
            )
            assert reward == pytest.approx(score - kl_coef * kl, rel=1e-9, abs=1e-12)
            rewards[float(step["log_probs"][env]), float(step["values"][env])] = reward
    return rewards


# In the reward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["bootstrap", pytest.param("carry", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rewards_are_score_minus_beta_times_the_estimate(tiny_task_kwargs, estimator, cut):
    """By full forwards of the very weights that sampled each step; for both ways of scoring."""
    reference = load_frozen(tiny_task_kwargs["reference"], "cpu").model
    rollouts: dict[str, list] = {}
    expected: dict[tuple, float] = {}
    for scoring in ("step", "deferred"):
        model = make_agent(
            shaped(tiny_task_kwargs, estimator, scoring=scoring),
            n_steps=9,
            kl_estimator=estimator,
            rollout_buffer_kwargs={"cut": cut},
        )
        spy = Spy()
        callback = begin(model, spy)
        rollouts[scoring] = []
        for kl_coef in (0.5, 1.5, 1.0):
            perturb(model.policy)  # as updates do: what waits was sampled by older weights
            model.env.env_method("set_kl_coef", kl_coef)
            spy.steps.clear()
            buffer = collect(model, callback)
            if scoring == "step":
                actor = copy.deepcopy(model.policy.actor)
                expected.update(expected_rewards(estimator, actor, reference, spy.steps, kl_coef))
            columns = zip(buffer.log_probs, buffer.values, buffer.rewards, strict=True)
            rollouts[scoring].append([tuple(map(float, row)) for row in columns])
            assert model.env.get_attr("kl_coef")[0] == kl_coef
    for step, deferred in zip(rollouts["step"], rollouts["deferred"], strict=True):
        assert len(step) >= 30
        # The rounding of k2 is the log-ratio's times the log-ratio: relative where large.
        np.testing.assert_allclose(deferred, step, rtol=1e-5, atol=1e-5)
        for log_prob, value, reward in step:
            wanted = expected[log_prob, value]
            assert abs(reward - wanted) <= 1e-5 * max(1.0, abs(wanted))


def test_no_chunk_of_whole_distributions_changes_the_full_kl(tiny_task_kwargs, monkeypatch):
    found = []
    for max_log_probs, max_tokens in ((2**22, 8192), (100, 16)):
        monkeypatch.setattr(log_probs_module, "LOGITS_AT_ONCE", max_log_probs)
        monkeypatch.setattr(new_steps_module, "MICRO_BATCH_TOKENS", max_tokens)
        model = make_agent(shaped(tiny_task_kwargs, "full"), kl_estimator="full")
        perturb(model.policy)
        found.append(collect(model, begin(model)).rewards)
    assert_close(found[1], found[0])


@pytest.mark.parametrize("agent", [PPO, A2C])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_stock_algorithms_with_their_own_buffer_pay_k2_and_k3(tiny_task_kwargs, agent, estimator):
    model = make_agent(shaped(tiny_task_kwargs, estimator), agent, n_steps=10)
    assert type(model.rollout_buffer) is RolloutBuffer
    perturb(model.policy)
    spy = Spy()
    callback = begin(model, RLHFCallback(kl_estimator=estimator), spy)
    collect(model, callback)
    reference = load_frozen(tiny_task_kwargs["reference"], "cpu").model
    expected = expected_rewards(estimator, model.policy.actor, reference, spy.steps, 0.1)
    for step, rewards in zip(spy.steps, model.rollout_buffer.rewards, strict=True):
        marks = zip(step["log_probs"].tolist(), step["values"].flatten().tolist(), strict=True)
        assert np.abs(rewards - [expected[mark] for mark in marks]).max() <= 1e-5


def test_the_metric_is_k1_per_response_whatever_the_estimator(tiny_task_kwargs):
    found = []
    for estimator in ESTIMATORS:
        for scoring in ("step", "deferred"):
            model = make_agent(
                shaped(tiny_task_kwargs, estimator, scoring=scoring), kl_estimator=estimator
            )
            perturb(model.policy)
            callback = begin(model)
            collect(model, callback)
            found.append([callback.callbacks[0].metrics[k] for k in ("kl", "objective", "kl_coef")])
    assert np.abs(np.array(found) - found[0]).max() <= 1e-5
    assert found[0][0] > 0.05


# In the loss --------------------------------------------------------------------------------------


def gradients(model, batch) -> torch.Tensor:
    """The gradient that `TokenPPO` leaves in the actor."""
    Update(model).accumulate_gradients(batch)
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in model.policy.actor.parameters()
        ]
    ).clone()


def independent_gradient(estimator, actor, reference, buffer, kl_coef) -> torch.Tensor:
    """∇ of β·mean of the estimator over the tokens, one sequence at a time.

    Estimates of one token are weighted by π/π_old, which is held fixed.
    """
    total = torch.zeros(())
    for i in range(len(buffer.lengths)):
        actions = buffer.actions[buffer.offsets[i] : buffer.offsets[i + 1]]
        prefix = buffer.prefix(i)
        tokens = torch.as_tensor(np.concatenate([prefix, actions])[None].astype(np.int64))
        states = slice(len(prefix) - 1, len(prefix) - 1 + len(actions))
        own = torch.log_softmax(actor(input_ids=tokens).logits[0, states], -1)
        ref = torch.log_softmax(reference(input_ids=tokens).logits[0, states], -1)
        if estimator == "full":
            total = total + (own.exp() * (own - ref)).sum()
            continue
        chosen = torch.as_tensor(actions.astype(np.int64))[:, None]
        log_probs = own.gather(1, chosen)
        rho = log_probs - ref.gather(1, chosen)
        old = torch.as_tensor(buffer.log_probs[buffer.offsets[i] : buffer.offsets[i + 1]])
        ratio = torch.exp(log_probs.detach() - old[:, None])
        value = rho**2 / 2 if estimator == "k2" else torch.exp(-rho) - 1 + rho
        total = total + (ratio * value).sum()
    actor.zero_grad()
    (kl_coef * total / buffer.num_tokens).backward()
    return torch.cat([p.grad.flatten() for p in actor.parameters()]).clone()


@pytest.mark.parametrize("scoring", ["step", "deferred"])
@pytest.mark.parametrize(
    ("estimator", "cut"), [("k2", "bootstrap"), ("k2", "carry"), ("k3", "carry"), ("full", "carry")]
)
def test_the_kl_loss_adds_its_own_gradient_to_ppos(tiny_task_kwargs, scoring, estimator, cut):
    kwargs = {**tiny_task_kwargs, "dtype": "float64"}
    model = make_agent(
        shaped(kwargs, estimator, scoring=scoring),
        n_steps=9,
        kl_estimator=estimator,
        use_kl_loss=True,
        rollout_buffer_kwargs={"cut": cut},
    )
    reference = load_frozen(kwargs["reference"], "cpu", "float64").model
    callback = begin(model)
    for kl_coef in (0.4, 2.5):
        perturb(model.policy)
        model.env.env_method("set_kl_coef", kl_coef)
        buffer = collect(model, callback)
    perturb(model.policy)  # not the policy that sampled: in later epochs it isn't, either
    model._current_progress_remaining = 1.0
    (batch,) = buffer.get(None)
    model.env.env_method("set_kl_coef", 9.0)  # of the next rollout, not of this update
    found = gradients(model, batch)
    with torch.no_grad():
        log_probs = model.policy.evaluate_actions(batch.observations, batch.actions)[1]
    assert float((log_probs - batch.old_log_prob).exp().max()) > 1.2, "off-policy"
    for micro_batch_tokens in (60, 1):
        model.micro_batch_tokens = micro_batch_tokens
        assert (gradients(model, batch) - found).abs().max() <= 1e-10
    model.micro_batch_tokens, model.use_kl_loss = None, False
    of_ppo = gradients(model, batch)
    expected = independent_gradient(estimator, model.policy.actor, reference, buffer, 2.5)
    assert expected.abs().max() > 1e-2
    # log π_ref is kept in float32.
    assert (found - of_ppo - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_with_the_kl_loss_the_reward_is_the_score_alone(tiny_task_kwargs, estimator):
    for scoring in ("step", "deferred"):
        model = make_agent(
            shaped(tiny_task_kwargs, estimator, scoring=scoring),
            kl_estimator=estimator,
            use_kl_loss=True,
        )
        perturb(model.policy)
        callback = begin(model)
        buffer = collect(model, callback)
        paid = np.sort(buffer.rewards[buffer.rewards != 0])
        scores = np.sort([record.score for record in callback.callbacks[0].records])
        assert_close(paid, scores, terms=1)  # the same numbers, stored in float32
        model._current_progress_remaining = 1.0
        model.train()
        assert model.logger.name_to_value["train/kl_loss"] > 0


@pytest.mark.slow
def test_log_probs_of_the_reference_cost_4_bytes_a_token_and_only_where_needed(tiny_task_kwargs):
    sizes = {}
    for name, given in {
        "default": {},
        "k3 in the reward": {"kl_estimator": "k3"},
        "full loss": {"kl_estimator": "full", "use_kl_loss": True},
        "k3 loss": {"kl_estimator": "k3", "use_kl_loss": True},
    }.items():
        for scoring in ("step", "deferred"):
            kwargs = shaped(tiny_task_kwargs, given.get("kl_estimator", "k1"), scoring=scoring)
            model = make_agent(kwargs, **given)
            buffer = collect(model, begin(model))
            open_bytes = sum(s.nbytes for s in buffer._open if s is not None)
            sizes[name, scoring] = buffer.nbytes - open_bytes
            n = buffer.num_tokens
    for scoring in ("step", "deferred"):
        for name in ("k3 in the reward", "full loss"):
            assert sizes[name, scoring] == sizes["default", scoring]
        assert sizes["k3 loss", scoring] == sizes["default", scoring] + 4 * n


@pytest.mark.slow
def test_the_kl_loss_holds_the_policy(tiny_task_kwargs):
    """Without a reward, it pulls a policy that has moved away back to its reference."""
    kls = {}
    for kl_coef in (0.0, 5.0):
        kwargs = shaped(tiny_task_kwargs, "full", scoring="deferred", reward_model=no_reward)
        model = make_agent(
            {**kwargs, "kl_coef": kl_coef},
            n_steps=40,
            kl_estimator="full",
            use_kl_loss=True,
            whiten_advantages=False,
            learning_rate=lambda _: 2e-3,
        )
        perturb(model.policy)
        keep = KeepMetrics(RLHFCallback())
        model.learn(10 * 240, callback=[keep.rlhf, keep])
        kls[kl_coef] = [metrics["kl"] for metrics in keep.metrics]
    assert kls[5.0][-1] < 0.5 * kls[5.0][0]
    assert kls[0.0][-1] > 0.8 * kls[0.0][0]


def no_reward(prompts, responses):
    return [0.0 for _ in responses]


def gradients_of_an_update(model, monkeypatch, advantages, **settings) -> list[torch.Tensor]:
    """The actor's gradient at every step of `train`, which moves nothing."""
    found = []

    def step() -> None:
        grads = [p.grad.flatten() for p in model.policy.actor.parameters() if p.grad is not None]
        found.append(torch.cat(grads).clone())

    monkeypatch.setattr(model.policy.optimizer, "step", step)
    model.whiten_advantages = model.normalize_advantage = False
    for name, value in settings.items():
        setattr(model, name, value)
    model.rollout_buffer.advantages = advantages
    np.random.seed(0)  # of the order of the minibatches
    model.train()
    return found


@pytest.mark.parametrize("way", ["whiten_advantages", "normalize_advantage"])
@pytest.mark.parametrize("estimator", ["k3", "full"])
def test_whitening_leaves_the_weight_of_the_kl_loss_against_the_score(
    tiny_task_kwargs, estimator, way, monkeypatch
):
    """Whitened, every gradient is 1/σ times that of centred advantages that are not scaled."""
    kwargs = shaped({**tiny_task_kwargs, "dtype": "float64", "kl_coef": 1.5}, estimator)
    model = make_agent(
        kwargs,
        kl_estimator=estimator,
        use_kl_loss=True,
        vf_coef=0.0,
        n_epochs=1,
        batch_size=40 if way == "whiten_advantages" else 10**6,
        max_grad_norm=1e9,
        micro_batch_tokens=30,
        whiten_advantages=False,
    )
    collect(model, begin(model))
    perturb(model.policy)
    model._current_progress_remaining = 1.0
    given = 3.0 * model.rollout_buffer.advantages
    plain = gradients_of_an_update(model, monkeypatch, given - given.mean())
    whitened = gradients_of_an_update(model, monkeypatch, given, **{way: True})
    assert len(plain) == len(whitened) == (3 if way == "whiten_advantages" else 1)
    sigma = given.std(ddof=1)
    assert not 0.8 < sigma < 1.25
    for own, other in zip(plain, whitened, strict=True):
        assert own.abs().max() > 1e-3
        assert (other - own / sigma).abs().max() <= 1e-5 * other.abs().max()


# Controllers --------------------------------------------------------------------------------------


class KeepMetrics(BaseCallback):
    """Of every rollout: its metrics, and β at its steps and after it; stands behind `rlhf`."""

    def __init__(self, rlhf: RLHFCallback) -> None:
        super().__init__()
        self.rlhf = rlhf
        self.metrics: list[dict[str, float]] = []
        self.episodes: list[int] = []
        self.at_steps: list[set[float]] = []
        self.after: list[float] = []

    def _on_rollout_start(self) -> None:
        self.at_steps.append(set())

    def _on_step(self) -> bool:
        self.at_steps[-1] |= set(self.training_env.get_attr("kl_coef"))
        return True

    def _on_rollout_end(self) -> None:
        self.metrics.append(dict(self.rlhf.metrics))
        self.episodes.append(len(self.rlhf.records))
        (after,) = set(self.training_env.get_attr("kl_coef"))
        self.after.append(after)


CONTROLS = {
    "adaptive": {"kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 200},
    "dual": {"kl_controller": "dual", "kl_target": 0.1, "kl_dual_rate": 0.02},
}


def controlled(name, kl_coef, kl, episodes) -> float:
    if name == "dual":
        return kl_coef * float(np.exp(np.clip(0.02 * (kl - 0.1) / 0.1, -1, 1)))
    return kl_coef * (1 + float(np.clip((kl - 0.5) / 0.5, -0.2, 0.2)) * episodes / 200)


@pytest.mark.parametrize("vec_env", ["TokenVecEnv", "DummyVecEnv"])
@pytest.mark.parametrize("name", CONTROLS)
def test_beta_moves_in_the_environment_between_rollouts_and_only_there(
    tiny_task_kwargs, name, vec_env
):
    if vec_env == "TokenVecEnv":
        env = make_vec_env(n_envs=3, seed=0, **tiny_task_kwargs)
    else:
        make = [lambda: gym.make("tokenenv:TokenRLHF-v0", **tiny_task_kwargs)] * 3
        env = DummyVecEnv(make)
    policy_kwargs = {"actor": tiny_task_kwargs["reference"]}
    given = {"n_steps": 12, "batch_size": 36, "n_epochs": 1, "seed": 0, "device": "cpu"}
    for agent in (TokenPPO, PPO):
        env.env_method("set_kl_coef", 0.1)
        own = CONTROLS[name] if agent is TokenPPO else {}
        callback = RLHFCallback() if agent is TokenPPO else RLHFCallback(**CONTROLS[name])
        model = agent(LMActorCriticPolicy, env, policy_kwargs=policy_kwargs, **given, **own)
        randomize_value_head(model.policy)
        perturb(model.policy)
        keep = KeepMetrics(callback)
        model.learn(4 * 36, callback=[callback, keep])
        kl_coef, moved = 0.1, []
        for metrics, episodes, at_steps, after in zip(
            keep.metrics, keep.episodes, keep.at_steps, keep.after, strict=True
        ):
            assert at_steps == {kl_coef}
            assert metrics["kl_coef"] == kl_coef, "logged: β as the rollout used it"
            expected = controlled(name, kl_coef, metrics["kl"], episodes)
            assert after == pytest.approx(expected, abs=1e-12)
            moved.append(abs(after - kl_coef))
            kl_coef = after
        assert len(moved) == 4 and min(moved) > 1e-4
        assert env.get_attr("settings")[0].kl_coef == env.get_attr("kl_coef")[0] == kl_coef


def test_a_rollout_without_a_finished_episode_moves_nothing(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, n_envs=1, n_steps=2, **CONTROLS["dual"])
    perturb(model.policy)
    keep = KeepMetrics(RLHFCallback())
    model.learn(40, callback=[keep.rlhf, keep])
    before = [0.1, *keep.after[:-1]]
    has_moved = [a != b for a, b in zip(before, keep.after, strict=True)]
    assert has_moved == [episodes > 0 for episodes in keep.episodes]
    assert 0 < sum(has_moved) < len(has_moved)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_loaded_controller_goes_on_from_the_saved_beta(tiny_task_kwargs, tmp_path, name):
    model = make_agent(tiny_task_kwargs, **CONTROLS[name])
    perturb(model.policy)
    model.learn(2 * 120)
    saved = model.env.get_attr("kl_coef")[0]
    assert abs(saved - 0.1) > 1e-3 and model.kl_coef == saved
    model.save(tmp_path / "model")

    def first_beta(loaded) -> float:
        keep = KeepMetrics(RLHFCallback())
        loaded.learn(120, callback=[keep.rlhf, keep])
        (found,) = keep.at_steps[0]
        return found

    env = make_vec_env(n_envs=6, seed=0, **tiny_task_kwargs)
    loaded = TokenPPO.load(tmp_path / "model", env=env, device="cpu")
    assert env.get_attr("kl_coef")[0] == 0.1
    assert first_beta(loaded) == saved
    env.env_method("set_kl_coef", 0.7)  # by the user, between two trainings
    assert first_beta(loaded) == 0.7
    moved = env.get_attr("kl_coef")[0]
    assert moved != 0.7 and first_beta(loaded) == moved, "and nobody else changes it"
    # With a fixed controller the environment's own β stands, and is none for a later one.
    env = make_vec_env(n_envs=6, seed=0, **{**tiny_task_kwargs, "kl_coef": 0.3})
    none = {"kl_controller": "fixed", "kl_target": None, "kl_horizon": 1e4, "kl_dual_rate": 0.1}
    fixed = TokenPPO.load(tmp_path / "model", env=env, device="cpu", **none)
    assert first_beta(fixed) == 0.3 and env.get_attr("kl_coef")[0] == 0.3
    fixed.save(tmp_path / "fixed")
    env = make_vec_env(n_envs=6, seed=0, **{**tiny_task_kwargs, "kl_coef": 0.6})
    again = TokenPPO.load(tmp_path / "fixed", env=env, device="cpu", **CONTROLS[name])
    assert first_beta(again) == 0.6, "0.3 was no controller's, but the other environment's"


@pytest.mark.slow
def test_the_range_of_beta_is_that_of_its_first_start_and_its_end_warns(tiny_task_kwargs, tmp_path):
    controls = {"kl_controller": "dual", "kl_target": 1e-9, "kl_dual_rate": 100.0}
    model = make_agent(tiny_task_kwargs, **controls)  # β = 0.1, e times as great each rollout
    perturb(model.policy)
    model.learn(3 * 120)
    assert model.env.get_attr("kl_coef")[0] == pytest.approx(0.1 * math.e**3)
    model.save(tmp_path / "model")
    env = make_vec_env(n_envs=6, seed=0, **tiny_task_kwargs)
    loaded = TokenPPO.load(tmp_path / "model", env=env, device="cpu")
    assert loaded.kl_coef_start == 0.1
    message = (
        r"β has reached 1e\+03, the upper bound of the controller: a factor of 10000 from the 0.1"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        loaded.learn(8 * 120)
    assert sum("β has reached" in str(one.message) for one in caught) == 1
    assert env.get_attr("kl_coef")[0] == 1e3
    env.env_method("set_kl_coef", 0.7)  # by the user: training starts there now
    loaded.learn(120)
    assert loaded.kl_coef_start == 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_stock_algorithms_keep_a_moved_beta_through_saving_too(tiny_task_kwargs, tmp_path, name):
    model = make_agent(tiny_task_kwargs, PPO)
    perturb(model.policy)
    model.learn(2 * 120, callback=RLHFCallback(**CONTROLS[name]))
    saved = model.env.get_attr("kl_coef")[0]
    assert abs(saved - 0.1) > 1e-3
    model.save(tmp_path / "model")
    for controls, kl_coef, expected in ((CONTROLS[name], 0.4, saved), ({}, 0.4, 0.4)):
        env = make_vec_env(n_envs=6, seed=0, **{**tiny_task_kwargs, "kl_coef": kl_coef})
        loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
        keep = KeepMetrics(RLHFCallback(**controls))
        loaded.learn(120, callback=[keep.rlhf, keep])
        assert keep.at_steps == [{expected}]
        env.env_method("set_kl_coef", 0.7)  # by the user, between two trainings
        keep = KeepMetrics(RLHFCallback(**controls))
        loaded.learn(120, callback=[keep.rlhf, keep])
        assert keep.at_steps == [{0.7}]


def test_the_environments_settings_hold_the_beta_that_holds(tiny_task_kwargs):
    env = gym.make("tokenenv:TokenRLHF-v0", **tiny_task_kwargs).unwrapped
    env.set_kl_coef(0.7)
    assert env.kl_coef == env.settings.kl_coef == env.mdp.kl_coef == 0.7
    assert env.settings.reference == tiny_task_kwargs["reference"]


# The critic's warm-up -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("value_head", ["shared", "separate"])
@pytest.mark.parametrize("given", [{}, {"kl_estimator": "full", "use_kl_loss": True}])
def test_in_the_warm_up_only_the_critic_learns(tiny_task_kwargs, tmp_path, value_head, given):
    kwargs = shaped(tiny_task_kwargs, given.get("kl_estimator", "k1"), scoring="deferred")
    model = make_agent(
        kwargs,
        policy_kwargs={"value_head": value_head},
        critic_warmup=2,
        kl_controller="dual",
        kl_target=0.05,
        **given,
    )
    perturb(model.policy)
    start, actors, losses = weights(model.policy), [], []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            actors.append(weights(self.model.policy.actor))
            losses.append(self.logger.name_to_value.get("train/policy_gradient_loss"))

    model.learn(2 * 120, callback=Keep())
    after = weights(model.policy)
    is_actors = {name: name.startswith("actor.") for name in start}
    for name, is_actor in is_actors.items():
        if is_actor:
            assert torch.equal(start[name], after[name]), name
    critic = [name for name, is_actor in is_actors.items() if not is_actor]
    own = {name for name in critic if not torch.equal(start[name], after[name])}
    assert own and ("value_net.weight" in own if value_head == "shared" else len(own) > 2)
    assert np.isfinite(model.logger.name_to_value["train/policy_gradient_loss"])
    assert model.logger.name_to_value["train/policy_gradient_loss"] != 0
    assert model.env.get_attr("kl_coef")[0] == 0.1, "β rests while the actor does"
    assert all(weight.requires_grad for weight in model.policy.actor.parameters())

    model.save(tmp_path / "model")
    env = make_vec_env(n_envs=6, seed=0, **kwargs)
    loaded = TokenPPO.load(tmp_path / "model", env=env, device="cpu")
    for going_on in (model, loaded):  # a model has one warm-up in its life
        assert not going_on.is_warming_up
        going_on.learn(120, reset_num_timesteps=False)
        assert largest_difference(weights(going_on.policy.actor), actors[0]) > 1e-4
        assert going_on.env.get_attr("kl_coef")[0] == 0.1, "sampled before the actor's first update"
        going_on.learn(120, reset_num_timesteps=False)
        assert going_on.env.get_attr("kl_coef")[0] != 0.1


def test_a_warm_up_that_can_not_be_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match=r"critic_warmup=-1 must be a whole number"):
        make_agent(tiny_task_kwargs, critic_warmup=-1)
    with pytest.raises(ValueError, match=r"critic_warmup=1 .*are is unknown for ActorCriticPolicy"):
        TokenPPO("MlpPolicy", make_vec_env(**tiny_task_kwargs), critic_warmup=1)
    with pytest.raises(ValueError, match="'reinforce', which needs no critic"):
        make_agent(
            tiny_task_kwargs,
            critic_warmup=1,
            rollout_buffer_kwargs={"cut": "carry", "advantage_estimator": "reinforce"},
        )
    with pytest.raises(ValueError, match="critic_warmup=1 with vf_coef=0"):
        make_agent(tiny_task_kwargs, critic_warmup=1, vf_coef=0.0)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_kl_loss": True}, "k1 as a loss"),
        ({"kl_estimator": "k5"}, "kl_estimator='k5' is unknown"),
        ({"kl_controller": "adaptive"}, "needs kl_target"),
        ({"kl_target": 3.0}, "kl_controller='fixed', which steers to nothing"),
        ({"kl_controller": "dual", "kl_target": -3.0}, "kl_target=-3.0 must be"),
        ({"kl_controller": "dual", "kl_target": 3.0, "kl_dual_rate": 0.0}, "kl_dual_rate=0.0"),
    ],
)
def test_what_token_ppo_refuses_at_once_the_command_line_refuses_too(
    tiny_task_kwargs, given, message
):
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, **given)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


@pytest.mark.parametrize("use_kl_loss", [False, True])
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_a_penalty_that_would_be_paid_twice_is_refused(tiny_task_kwargs, estimator, use_kl_loss):
    model = make_agent(tiny_task_kwargs, kl_estimator=estimator, use_kl_loss=use_kl_loss)
    with pytest.raises(ValueError, match=r"counted twice.*kl_shaping='none'"):
        model.learn(1)


def test_what_the_stock_buffer_can_not_do_is_refused(tiny_task_kwargs):
    kwargs = shaped(tiny_task_kwargs, "full")
    own = {"rollout_buffer_class": RolloutBuffer}
    for given in ({"kl_estimator": "full"}, {"kl_estimator": "k2", "use_kl_loss": True}):
        with pytest.raises(ValueError, match="rollout_buffer_class=EpisodeRolloutBuffer"):
            make_agent(kwargs, **given, **own).learn(1)
    with pytest.raises(ValueError, match="rollout_buffer_class=EpisodeRolloutBuffer"):
        make_agent(kwargs, PPO).learn(1, callback=RLHFCallback(kl_estimator="full"))
    model = make_agent(kwargs, PPO, rollout_buffer_class=EpisodeRolloutBuffer)
    model.learn(1, callback=RLHFCallback(kl_estimator="full"))
    assert model.num_timesteps == 120


def test_full_with_a_policy_that_is_no_language_model_is_refused(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **shaped(tiny_task_kwargs, "full"))
    model = PPO("MlpPolicy", env, n_steps=12, rollout_buffer_class=EpisodeRolloutBuffer)
    with pytest.raises(ValueError, match="ActorCriticPolicy has none: use LMActorCriticPolicy"):
        model.learn(1, callback=RLHFCallback(kl_estimator="full"))


def test_a_callback_that_contradicts_its_token_ppo_is_refused(tiny_task_kwargs):
    model = make_agent(shaped(tiny_task_kwargs, "k3"), kl_estimator="k3", **CONTROLS["dual"])
    with pytest.raises(ValueError, match=r"kl_estimator='k2', TokenPPO 'k3'.*TokenPPO alone"):
        model.learn(1, callback=RLHFCallback(kl_estimator="k2"))
    with pytest.raises(ValueError, match=r"kl_controller=AdaptiveKL.*TokenPPO DualKL"):
        model.learn(1, callback=RLHFCallback(**CONTROLS["adaptive"]))
    model.learn(1, callback=RLHFCallback(kl_estimator="k3", **CONTROLS["dual"]))
    with pytest.raises(ValueError, match="'dual' needs kl_target"):
        RLHFCallback(kl_controller="dual")


def test_controllers_that_would_move_nothing_are_refused(tiny_task_kwargs):
    for controls in CONTROLS.values():
        model = make_agent({**tiny_task_kwargs, "kl_coef": 0.0}, **controls)
        with pytest.raises(ValueError, match="from kl_coef=0 it would stay 0 forever"):
            model.learn(1)
    for given in ({"kl_horizon": 500.0}, {"kl_dual_rate": 0.3}):
        with pytest.raises(ValueError, match="without effect with 'fixed'"):
            RLHFCallback(**given)


@pytest.mark.parametrize("agent", [PPO, TokenPPO])
def test_k1_that_nobody_would_pay_is_refused(tiny_task_kwargs, agent):
    model = make_agent({**tiny_task_kwargs, "kl_shaping": "none"}, agent)
    with pytest.raises(ValueError, match=r"pays no KL at all.*kl_coef=0 if nothing is to be paid"):
        model.learn(1, callback=RLHFCallback())
    model.env.env_method("set_kl_coef", 0.0)
    model.learn(1, callback=RLHFCallback())


@pytest.mark.parametrize(
    ("own", "changes", "message"),
    [
        (
            {"vf_coef": 0.1},
            {"rollout_buffer_kwargs": {"cut": "carry", "advantage_estimator": "reinforce"}},
            r"vf_coef=0\.1 trains a critic",
        ),
        (
            {"policy_kwargs": {"value_head": "separate"}},
            {
                "rollout_buffer_kwargs": {"cut": "carry", "advantage_estimator": "reinforce"},
                "vf_coef": 0.0,
            },
            "value_head='separate' is a critic",
        ),
        ({}, {"use_kl_loss": True}, "k1 as a loss"),
        ({"gae_lambda": 0.9}, {"rollout_buffer_kwargs": {"advantage_estimator": "td"}}, "=0.9 is"),
        ({}, {"kl_controller": "dual", "kl_target": 3.0, "kl_horizon": 500.0}, "kl_horizon=500.0"),
        ({}, {"critic_warmup": 1, "vf_coef": 0.0}, "critic_warmup=1 with vf_coef=0"),
        ({}, {"normalize_advantage": True}, "the same thing twice"),
        ({}, {"kl_dual_rate": -1.0}, "kl_dual_rate=-1.0 must be"),
    ],
)
def test_what_the_constructor_refuses_loading_refuses_too(
    tiny_task_kwargs, tmp_path, own, changes, message
):
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, **{**own, **changes})
    model = make_agent(tiny_task_kwargs, **own)
    model.save(tmp_path / "model")
    TokenPPO.load(tmp_path / "model", env=model.env, device="cpu")
    with pytest.raises(ValueError, match=message):
        TokenPPO.load(tmp_path / "model", env=model.env, device="cpu", **changes)


# Command line -------------------------------------------------------------------------------------


def test_the_command_line_passes_them_on(tiny_task_kwargs):
    given = {
        "kl_estimator": "k3",
        "use_kl_loss": True,
        "kl_controller": "adaptive",
        "kl_target": 4.0,
        "kl_horizon": 300.0,
        "critic_warmup": 2,
    }
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    config = TrainConfig(n_envs=2, n_steps=12, **own, **given)
    environment = {**config.environment(), "prompts": tiny_task_kwargs["prompts"]}
    env = make_vec_env(n_envs=2, **environment)
    model = build_agent(config, env)
    assert {name: getattr(model, name) for name in given} == given
    assert TrainConfig.from_json(config.as_json()) == config
    for changes, kl_shaping in (
        ({}, "k1"),
        ({"kl_estimator": "k2"}, "none"),
        ({"kl_estimator": "full", "use_kl_loss": True}, "none"),
    ):
        assert TrainConfig(**changes).environment()["kl_shaping"] == kl_shaping
    for changes, message in (
        ({"kl_controller": "adaptive", "kl_target": 3.0, "kl_coef": 0.0}, "stay 0 forever"),
        ({"critic_warmup": 1, "vf_coef": 0.0}, "critic_warmup=1 with vf_coef=0"),
        ({"critic_warmup": 1, "advantage_estimator": "reinforce"}, "needs no critic"),
        ({"kl_controller": "dual", "kl_target": 3.0, "kl_horizon": 300.0}, "kl_horizon=300.0 is"),
        ({"advantage_estimator": "td", "gae_lambda": 0.5}, "gae_lambda=0.5 is without effect"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**changes)


def test_the_penalty_changes_nothing_of_how_a_run_is_judged():
    """The card's bound on J* holds for every estimator: J is score less k1, always."""
    from agents.evaluation.held_out import HeldOut

    known = {
        estimator: HeldOut.from_env_kwargs(
            TrainConfig(kl_estimator=estimator).environment(), 64
        ).known_optimum
        for estimator in ("k1", "k3")
    }
    assert known["k3"] == known["k1"] is not None
