"""PPO on SB3's buffer, on ours, and `TokenPPO` are one algorithm; what is frozen stays frozen."""

from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from support.tiny_task import (
    Spy,
    T,
    begin,
    collect,
    largest_difference,
    make_agent,
    perturb,
    randomize_value_head,
    task_kwargs,
    weights,
)

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, TokenPPO
from agents.ppo.losses import whiten
from tokenenv.models.language_model import load_frozen
from tokenenv.rewards.reward_model import load_reward_model


def constant(rate: float):
    """A learning rate without TokenPPO's decay."""
    return lambda _progress: rate


PLAIN = {
    "learning_rate": constant(1e-3),
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "clip_range": 0.1,
    "ent_coef": 0.01,
    "vf_coef": 0.3,
    "max_grad_norm": 0.5,
    "normalize_advantage": False,
}
"""Hyperparameters that leave no part of the loss out."""

THREE = {
    "SB3's buffer": (PPO, {"rollout_buffer_class": RolloutBuffer}),
    "our buffer": (PPO, {"rollout_buffer_class": EpisodeRolloutBuffer}),
    "TokenPPO": (TokenPPO, {"whiten_advantages": False, "normalize_returns": False}),
}


def make(kwargs, way: str, **given):
    agent, own = THREE[way]
    return make_agent(kwargs, agent, **{**PLAIN, "clip_range_vf": None, **own, **given})


def logged(model, *names: str) -> list[float]:
    return [float(model.logger.name_to_value[f"train/{name}"]) for name in names]


# Agreement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("clip_range_vf", [None, pytest.param(0.05, marks=pytest.mark.slow)])
def test_the_three_losses_agree_on_one_rollout(tiny_task_kwargs, normalize, clip_range_vf):
    found, lengths = [], set()
    for way in THREE:
        model = make(
            tiny_task_kwargs,
            way,
            n_envs=8,
            n_steps=40,
            batch_size=320,
            n_epochs=1,
            normalize_advantage=normalize,
            clip_range_vf=clip_range_vf,
        )
        callback = begin(model)
        buffer = collect(model, callback)
        lengths |= {record.length for record in callback.callbacks[0].records}
        perturb(model.policy, 0.02)  # so that ratios differ from 1, and some are clipped
        model._current_progress_remaining = 1.0
        model.train()
        found.append(
            logged(
                model,
                "policy_gradient_loss",
                "value_loss",
                "entropy_loss",
                "loss",
                "approx_kl",
                "clip_fraction",
                "explained_variance",
            )
        )
        assert buffer.buffer_size * 8 == 320
    assert lengths == set(range(1, T + 1)), "responses of all lengths are mixed"
    assert 0.05 < found[0][5] < 0.95, "some ratios are clipped and some are not"
    assert np.abs(np.array(found) - found[0]).max() <= 1e-5


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
def test_stock_ppo_on_our_buffer_and_token_ppo_end_with_the_same_weights(
    tiny_task_kwargs, normalize, clip_range_vf
):
    kwargs = {**tiny_task_kwargs, "dtype": "float64"}
    ends = []
    for way, callback in (("our buffer", RLHFCallback()), ("TokenPPO", None)):
        model = make(kwargs, way, normalize_advantage=normalize, clip_range_vf=clip_range_vf)
        start = weights(model.policy)
        model.learn(2 * 20 * 6, callback=callback)
        ends.append(weights(model.policy))
        assert largest_difference(start, ends[-1]) > 1e-3
    assert largest_difference(*ends) <= 1e-6


def test_target_kl_stops_both_at_the_same_minibatch(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "dtype": "float64"}
    given = {"learning_rate": constant(3e-3), "target_kl": 0.01, "n_epochs": 6, "batch_size": 30}
    ends, updates = [], []
    for way, callback in (("our buffer", RLHFCallback()), ("TokenPPO", None)):
        model = make(kwargs, way, **given)
        model.learn(20 * 6, callback=callback)
        ends.append(weights(model.policy))
        updates.append(model._n_updates)
    assert updates[0] == updates[1] < 6
    assert largest_difference(*ends) <= 1e-6


@pytest.mark.parametrize(("normalize", "normalize_returns"), [(False, True), (True, False)])
def test_micro_batches_change_nothing(tiny_task_kwargs, normalize, normalize_returns):
    kwargs = {**tiny_task_kwargs, "dtype": "float64", "scoring": "deferred"}
    ends, losses = [], []
    for micro_batch_tokens in (None, 40, 1):
        model = make(
            kwargs,
            "TokenPPO",
            micro_batch_tokens=micro_batch_tokens,
            normalize_advantage=normalize,
            normalize_returns=normalize_returns,
            clip_range_vf=0.2,
        )
        model.learn(20 * 6)
        ends.append(weights(model.policy))
        losses.append(logged(model, "loss", "policy_gradient_loss", "value_loss", "clip_fraction"))
    assert max(largest_difference(ends[0], end) for end in ends[1:]) <= 1e-6
    assert np.abs(np.array(losses) - losses[0]).max() <= 1e-6


# What must hold at the start ----------------------------------------------------------------------


@pytest.mark.parametrize("way", THREE)
def test_the_first_ratio_is_one_and_the_first_kl_is_zero(tiny_task_kwargs, way):
    model = make(tiny_task_kwargs, way)
    callback = begin(model)
    buffer = collect(model, callback)
    assert abs(callback.callbacks[0].metrics["kl"]) <= 1e-4
    first = next(buffer.get(64))
    with torch.no_grad():
        _, log_probs, _ = model.policy.evaluate_actions(
            first.observations, first.actions.long().flatten()
        )
    assert (torch.exp(log_probs - first.old_log_prob) - 1).abs().max() <= 1e-5


def test_learning_rate_zero_keeps_the_kl_at_zero_and_the_weights_bit_equal(tiny_task_kwargs):
    model = make_agent({**tiny_task_kwargs, "scoring": "deferred"}, learning_rate=0.0)
    before, kls = weights(model.policy), []
    head = model.policy.critic_head
    value_weights = head.weight.detach().clone()

    class Keep(RLHFCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            kls.append(self.metrics["kl"])

    model.learn(3 * 20 * 6, callback=Keep())
    assert len(kls) == 3 and max(map(abs, kls)) <= 1e-4
    after = weights(model.policy)
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("value_net."))
    # The head is measured in deviations of the returns now, and V is what it was.
    assert int(head.rollouts) == 3 and not 0.9 < float(head.deviation) < 1.1
    assert (head.weight * head.deviation / value_weights - 1).abs().max() <= 1e-6
    assert logged(model, "approx_kl")[0] <= 1e-6


def test_without_normalised_returns_learning_rate_zero_keeps_every_bit(tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred"}
    model = make_agent(kwargs, learning_rate=0.0, normalize_returns=False)
    before = weights(model.policy)
    model.learn(2 * 20 * 6)
    assert largest_difference(before, weights(model.policy)) == 0.0


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # tied and untied embeddings
@pytest.mark.parametrize("critic", ["shared", "reward model"])
def test_reference_and_reward_model_stay_bit_constant(tiny_folder, name, critic):
    kwargs = task_kwargs(tiny_folder, name)
    frozen = [
        load_frozen(kwargs["reference"], "cpu", "float32").model,
        load_reward_model(kwargs["reward_model"], "cpu", "float32").model,
    ]
    before = [weights(model) for model in frozen]
    policy_kwargs = {}
    if critic == "reward model":
        policy_kwargs = {"value_head": "separate", "critic": kwargs["reward_model"]}
    model = make_agent(kwargs, policy_kwargs=policy_kwargs)
    start = weights(model.policy)
    assert model.env.get_attr("scorer")[0].reference.language_model.model is frozen[0]
    model.learn(2 * 20 * 6)
    assert largest_difference(start, weights(model.policy)) > 1e-3
    trained = {p.untyped_storage().data_ptr() for p in model.policy.parameters()}
    for weights_before, module in zip(before, frozen, strict=True):
        assert largest_difference(weights_before, weights(module)) == 0.0
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        assert trained.isdisjoint(p.untyped_storage().data_ptr() for p in module.parameters())


# TokenPPO's own -----------------------------------------------------------------------------------


def test_whitening_is_over_the_whole_rollout_and_leaves_the_returns_alone(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, n_epochs=1, learning_rate=0.0)
    buffer = collect(model, begin(model))
    advantages, returns = buffer.advantages.copy(), buffer.returns.copy()
    model.train()
    assert abs(buffer.advantages.mean()) <= 1e-6
    assert abs(buffer.advantages.std(ddof=1) - 1) <= 1e-5
    expected = (advantages - advantages.mean()) / advantages.std(ddof=1)
    assert np.abs(buffer.advantages - expected).max() <= 1e-5
    assert np.array_equal(buffer.returns, returns)
    assert np.array_equal(whiten(np.array([3.0])), [3.0])


def test_whitening_twice_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match="choose one"):
        make_agent(tiny_task_kwargs, normalize_advantage=True)


def test_the_learning_rate_decays_and_the_last_update_still_learns(tiny_task_kwargs):
    rates = []

    class Keep(TokenPPO):
        def train(self) -> None:
            super().train()
            rates.append(self.policy.optimizer.param_groups[0]["lr"])

    make_agent(tiny_task_kwargs, Keep, learning_rate=8e-4).learn(4 * 20 * 6)
    assert rates == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4], rel=1e-9)
    rates.clear()
    make_agent(tiny_task_kwargs, Keep, learning_rate=constant(8e-4)).learn(2 * 20 * 6)
    assert rates == [8e-4, 8e-4]


def rates_of(model: TokenPPO, steps: int, **learn) -> list[float]:
    """Learning rates of the updates of a `learn`."""
    rates = []
    model._update_learning_rate = lambda optimizers: (
        TokenPPO._update_learning_rate(model, optimizers),
        rates.append(optimizers.param_groups[0]["lr"]),
    )
    model.learn(steps, **learn)
    del model._update_learning_rate
    return rates


def as_constant(progress: float) -> float:
    return 8e-4


@pytest.mark.parametrize("way", ["load", "custom_objects", "as saved", "attribute"])
@pytest.mark.parametrize("rate", [8e-4, np.float32(8e-4)])
def test_a_number_means_the_same_learning_rates_wherever_it_is_set(
    tiny_task_kwargs, tmp_path, way, rate
):
    model = make_agent(
        tiny_task_kwargs, learning_rate=rate if way == "as saved" else 1e-3, n_steps=5
    )
    model.save(tmp_path / "model")
    given = {"load": {"learning_rate": rate}, "custom_objects": {}}.get(way, {})
    if way == "custom_objects":
        given = {"custom_objects": {"learning_rate": rate}}
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu", **given)
    if way == "attribute":
        loaded.learning_rate = rate
        loaded._setup_lr_schedule()
    assert rates_of(loaded, 4 * 5 * 6) == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4], rel=1e-6)


@pytest.mark.parametrize("schedule", [LinearSchedule(8e-4, 0.0, 1.0), as_constant])
def test_a_loaded_schedule_is_taken_as_it_is(tiny_task_kwargs, tmp_path, schedule):
    """SB3 reads it at the end of the rollout."""
    model = make_agent(tiny_task_kwargs, n_steps=5)
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu", learning_rate=schedule)
    expected = [schedule(0.5), schedule(0.0)]
    assert rates_of(loaded, 2 * 5 * 6) == pytest.approx(expected, rel=1e-9)


def test_schedules_are_never_asked_for_progress_below_zero(tiny_task_kwargs):
    """The last rollout overshoots: 240 steps where 130 are asked for."""
    asked = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.1 + progress

    given = dict.fromkeys(("learning_rate", "clip_range", "clip_range_vf"), schedule)
    model = make_agent(tiny_task_kwargs, **given)
    asked.clear()
    model.learn(130)
    assert asked and min(asked) == 0.0
    assert rates_of(make_agent(tiny_task_kwargs, learning_rate=8e-4), 130) == pytest.approx(
        [8e-4, 8e-4 * 10 / 130]
    )


class RaiseEntropy(BaseCallback):
    """Raises `ent_coef` from 0 at the end of the first rollout, before its update."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model.ent_coef = 0.5


@pytest.mark.parametrize(
    ("agent", "attention"), [(TokenPPO, None), (PPO, None), (A2C, None), (PPO, "eager")]
)
def test_an_entropy_weight_raised_in_training_acts_as_one_from_the_start(
    tiny_task_kwargs, agent, attention
):
    """The weights after one update; without the entropy's gradient they are others."""
    ends = []
    for ent_coef, callbacks in ((0.5, []), (0.0, [RaiseEntropy()]), (0.0, [])):
        policy = {} if attention is None else {"attention": attention}
        model = make_agent(tiny_task_kwargs, agent, ent_coef=ent_coef, policy_kwargs=policy)
        needed = watch_entropies(model)
        model.learn(1, callback=[RLHFCallback(), *callbacks])
        ends.append(weights(model.policy))
        assert needed and set(needed) == {model.ent_coef > 0}
    assert largest_difference(ends[0], ends[1]) == 0.0
    assert largest_difference(ends[0], ends[2]) > 1e-5


def watch_entropies(model, fails_at: int = 10**6) -> list[bool]:
    """Whether entropies carry gradient, for each evaluation of an update; one may fail."""
    found = []
    evaluate = model.policy.evaluate_actions

    def watched(*args):
        result = evaluate(*args)
        if not torch.is_grad_enabled():  # no update
            return result
        found.append(result[2].requires_grad)
        if len(found) == fails_at:
            raise KeyboardInterrupt
        return result

    model.policy.evaluate_actions = watched
    return found


@pytest.mark.parametrize("agent", [TokenPPO, PPO, A2C])
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_entropies_carry_gradient_again_after_a_training_without_them(
    tiny_task_kwargs, agent, is_interrupted
):
    model = make_agent(tiny_task_kwargs, agent, n_envs=2, ent_coef=0.0)
    needed = watch_entropies(model, fails_at=1 if is_interrupted else 10**6)
    with pytest.raises(KeyboardInterrupt) if is_interrupted else contextlib.nullcontext():
        model.learn(1, callback=RLHFCallback())
    assert needed and not any(needed)
    del model.policy.evaluate_actions
    states = torch.as_tensor(model._last_obs)
    entropy = model.policy.evaluate_actions(states, torch.tensor([3, 4]))[2]
    assert model.policy.entropy_needs_gradient and entropy.requires_grad
    entropy.sum().backward()
    assert max(float(w.grad.abs().max()) for w in model.policy.actor.parameters()) > 0


def test_an_update_of_the_users_own_gets_the_entropys_gradient(tiny_task_kwargs):
    class Own(PPO):
        def train(self) -> None:
            assert self.policy.entropy_needs_gradient and self.ent_coef == 0.0

    make_agent(tiny_task_kwargs, Own).learn(1, callback=RLHFCallback())


@pytest.mark.parametrize("agent", [PPO, A2C])
def test_a_schedule_below_zero_in_an_overshooting_rollout_is_refused(tiny_task_kwargs, agent):
    """SB3's own algorithms ask for the progress 1 − 16/10 = −0.6 there, and −0.6·1e-3 undoes."""

    def linear(progress: float) -> float:
        return 1e-3 * progress

    given = {} if agent is A2C else {"batch_size": 16}
    make = lambda rate: make_agent(  # noqa: E731
        tiny_task_kwargs, agent, n_envs=2, n_steps=8, learning_rate=rate, **given
    )
    with pytest.raises(ValueError, match=r"learning_rate would be -0\.0006 .* multiple of 16"):
        make(linear).learn(10, callback=RLHFCallback())
    model = make(linear)
    model.learn(16, callback=RLHFCallback())
    with pytest.raises(ValueError, match="6 steps beyond the 26"):
        model.learn(10, callback=RLHFCallback(), reset_num_timesteps=False)
    make(lambda progress: max(0.0, linear(progress))).learn(10, callback=RLHFCallback())


def test_a_clip_range_below_zero_in_an_overshooting_rollout_is_refused(tiny_task_kwargs):
    given = {"n_envs": 2, "n_steps": 8, "batch_size": 16, "clip_range": lambda p: 0.2 * p}
    with pytest.raises(ValueError, match=r"clip_range would be -0\.12"):
        make_agent(tiny_task_kwargs, PPO, **given).learn(10, callback=RLHFCallback())
    make_agent(tiny_task_kwargs, TokenPPO, **given).learn(10)


def test_a_callback_that_is_given_is_not_doubled(tiny_task_kwargs):
    """β·log π is paid once, wherever the RLHFCallback stands."""
    rewards = []
    for given in (None, RLHFCallback(), [RLHFCallback()], CallbackList([RLHFCallback()])):
        model = make_agent(tiny_task_kwargs)
        callback = model._init_callback(given)
        callback.on_training_start({}, {})
        model._setup_learn(10**6, callback)
        rewards.append(collect(model, callback).rewards)
    for other in rewards[1:]:
        assert np.array_equal(other, rewards[0])


def test_a_function_callback_sees_complete_rewards(tiny_task_kwargs):
    seen = []
    model = make_agent(tiny_task_kwargs)

    def keep(local, _global):
        seen.append(local["rewards"].copy())
        return True

    model.learn(20 * 6, callback=keep)
    spy, other = Spy(), make_agent(tiny_task_kwargs)
    collect(other, begin(other, spy))
    assert np.array_equal(seen, [step["rewards"] for step in spy.steps])


def test_token_ppo_on_sb3s_own_buffer_trains(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, rollout_buffer_class=RolloutBuffer)
    before = weights(model.policy)
    model.learn(20 * 6)
    assert largest_difference(before, weights(model.policy)) > 1e-4


# Other algorithms and environments ----------------------------------------------------------------


def test_a2c_trains_the_same_policy(tiny_task_kwargs):
    for given in ({}, {"rollout_buffer_class": EpisodeRolloutBuffer}):
        model = make_agent(tiny_task_kwargs, A2C, **given)
        before = weights(model.policy)
        callback = RLHFCallback()
        model.learn(4 * 5 * 6, callback=callback)
        assert largest_difference(before, weights(model.policy)) > 1e-4
        assert "objective" in callback.metrics


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_stock_ppo_in_stock_vector_environments(tiny_task_kwargs, vec_env):
    def make_env():
        return gym.make("tokenenv:TokenRLHF-v0", **tiny_task_kwargs)

    extra = {"start_method": "fork"} if vec_env is SubprocVecEnv else {}
    env = vec_env([make_env, make_env], **extra)
    model = PPO(
        LMActorCriticPolicy,
        env,
        n_steps=12,
        batch_size=24,
        n_epochs=1,
        policy_kwargs={"actor": tiny_task_kwargs["reference"]},
        device="cpu",
        seed=0,
    )
    randomize_value_head(model.policy)
    before = weights(model.policy)
    callback = RLHFCallback()
    model.learn(24, callback=callback)
    assert largest_difference(before, weights(model.policy)) > 1e-5
    assert callback.records and abs(callback.metrics["kl"]) <= 1e-4
    env.close()
