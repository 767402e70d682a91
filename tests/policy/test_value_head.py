"""The critic learns returns in units of their deviation: the scale of scores changes nothing."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from support.seeds import seeds
from support.tiny_task import begin, collect, largest_difference, make_agent, weights

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.policy.value_head import ValueHead, return_std
from agents.ppo.losses import ppo_losses
from agents.runs.agent import build_agent
from tokenenv.tasks import model_source


def score_of(factor: float, offset: float = 0.0):
    """A reward function of response and prompt: `factor` times a number of about −2 to 2."""

    def score(prompts, responses):
        return [
            factor * (offset + math.sin(len(p)) + math.cos(3 * len(r)))
            for p, r in zip(prompts, responses, strict=True)
        ]

    return score


def trained(kwargs, factor: float, tokens: int = 2 * 120, **given):
    """An agent after some updates on scores and β times `factor`; its value head began at 0."""
    own = {**kwargs, "reward_model": score_of(factor), "kl_coef": factor * kwargs["kl_coef"]}
    model = make_agent(own, **given)
    torch.nn.init.zeros_(model.policy.critic_head.weight)
    model.learn(tokens)
    return model


# The head -----------------------------------------------------------------------------------------


def test_the_deviation_follows_the_returns_and_the_values_stay():
    torch.manual_seed(0)
    head, hidden = ValueHead(4, torch.float64), torch.randn(7, 4, dtype=torch.float64)
    before = head(hidden)
    assert torch.equal(before, torch.nn.functional.linear(hidden, head.weight, head.bias))
    expected = 0.0
    for k in range(1, 15):
        returns = k * np.array([1.0, -1.0, 3.0, -3.0])  # mean 0, variance 5·k²
        head.follow(returns)
        # The mean of the first 10 variances; then each new one counts a tenth.
        expected += max(1 / k, 0.1) * (5 * k**2 - expected)
        assert float(head.deviation) == pytest.approx(math.sqrt(expected), rel=1e-12)
        assert int(head.rollouts) == k
        assert (head(hidden) - before).abs().max() <= 1e-12
    assert not torch.allclose(head.weight * head.deviation, head.weight)


def test_returns_far_from_0_count_their_size_and_returns_of_0_count_nothing():
    assert return_std(np.array([1.0, -1.0])) == 1.0
    # 100 ± 1: a tenth of the root mean square, or the critic would never get there.
    assert return_std(np.array([99.0, 101.0])) == pytest.approx(0.1 * math.sqrt(10_001))
    assert return_std(np.full(9, np.float32(0.1))) == pytest.approx(0.01, rel=1e-6)
    assert return_std(np.zeros(5)) == return_std(np.zeros(0)) == 0.0
    head = ValueHead(3, torch.float32)
    head.follow(np.zeros(5))
    assert float(head.deviation) == 1.0 and int(head.rollouts) == 0
    for size in (1e-30, 1e30):
        head = ValueHead(3, torch.float32)
        head.follow(size * np.array([1.0, -1.0]))
        head.follow(np.zeros(5))  # what is known of the scale stays
        assert float(head.deviation) == pytest.approx(size, rel=1e-6)
        assert torch.isfinite(head(torch.ones(1, 3))).all()


def test_the_value_loss_and_its_clip_do_not_see_the_scale():
    generator = torch.Generator().manual_seed(0)
    values, old, returns, log_probs = torch.randn(4, 50, generator=generator)

    class Batch:
        old_log_prob = log_probs

    found = []
    for deviation in (1.0, 2.0**7, 2.0**-9):
        Batch.old_values, Batch.returns = deviation * old, deviation * returns
        given = (deviation * values, log_probs, -log_probs, Batch, values, 0.2, 0.2, deviation)
        found.append(ppo_losses(*given).value)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_the_deviation_travels_with_the_policy(tiny_task_kwargs, tmp_path, value_head):
    model = trained(tiny_task_kwargs, 30.0, policy_kwargs={"value_head": value_head})
    head = model.policy.critic_head
    assert float(head.deviation) > 10 and int(head.rollouts) == 2
    obs = torch.as_tensor(model.env.reset())
    with torch.no_grad():
        values = model.policy.predict_values(obs)
    assert values.abs().max() > 1, "in units of the reward"
    model.save(tmp_path / "model.zip")
    model.policy.save_pretrained(tmp_path / "policy")
    for loaded in (
        TokenPPO.load(tmp_path / "model.zip", device="cpu").policy,
        PPO.load(tmp_path / "model.zip", device="cpu", custom_objects={}).policy,
        LMActorCriticPolicy.from_pretrained(tmp_path / "policy"),
    ):
        with torch.no_grad():
            assert torch.equal(loaded.predict_values(obs), values)
        assert torch.equal(loaded.critic_head.deviation, head.deviation)
        assert torch.equal(loaded.critic_head.rollouts, head.rollouts)
    # Saved before there was a deviation: it is 1.
    old = {n: w for n, w in model.policy.state_dict().items() if ".deviation" not in n}
    old = {n: w for n, w in old.items() if ".rollouts" not in n}
    fresh = make_agent(tiny_task_kwargs, policy_kwargs={"value_head": value_head}).policy
    fresh.load_state_dict(old)
    assert float(fresh.critic_head.deviation) == 1.0


# Invariance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"clip_range_vf": 0.2},
        {"clip_range_vf": None, "policy_kwargs": {"value_head": "separate"}},
        {"micro_batch_tokens": 40, "critic_warmup": 1},
        {"precision": "bfloat16"},
        {"kl_estimator": "k2", "use_kl_loss": True},
        {"rollout_buffer_class": RolloutBuffer},
    ],
    ids=["clip", "separate", "micro-batches", "bfloat16", "KL as a loss", "SB3's buffer"],
)
def test_scores_and_beta_times_a_power_of_2_give_the_same_policy(tiny_task_kwargs, given):
    """Such a factor is exact in floating point, so all of training is the same but V's scale."""
    kwargs = {**tiny_task_kwargs, "kl_shaping": "none" if "kl_estimator" in given else "k1"}
    if "rollout_buffer_class" not in given:
        kwargs["scoring"] = "deferred"
    one = trained(kwargs, 1.0, **given)
    start = weights(make_agent(kwargs, policy_kwargs=given.get("policy_kwargs")).policy.actor)
    assert largest_difference(start, weights(one.policy.actor)) > 1e-3
    factor = 2.0 ** (-12 if "clip_range_vf" in given else 9)
    other = trained(kwargs, factor, **given)
    heads = one.policy.critic_head, other.policy.critic_head
    assert heads[1].deviation / factor == pytest.approx(float(heads[0].deviation), rel=1e-5)
    for name, weight in one.policy.state_dict().items():
        if not name.endswith("deviation"):
            found = other.policy.state_dict()[name]
            # Equal bits, in fact; but threads may sum in another order.
            assert (found - weight).abs().max() <= 1e-5 * weight.abs().max(), name


def test_without_normalised_returns_the_scale_of_scores_decides_what_is_learned(tiny_task_kwargs):
    ends = []
    for factor in (1.0, 2.0**7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ends.append(trained(tiny_task_kwargs, factor, normalize_returns=False).policy)
        assert float(ends[-1].critic_head.deviation) == 1.0
    assert largest_difference(*(weights(end.actor) for end in ends)) > 1e-3


def test_a_clip_that_stops_the_critic_is_said(tiny_task_kwargs):
    with pytest.warns(UserWarning, match=r"clip_range_vf=0\.2 lets a value .*normalize_returns"):
        trained(tiny_task_kwargs, 100.0, 120, normalize_returns=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="clip_range_vf")
        trained(tiny_task_kwargs, 100.0, 120)
        trained(tiny_task_kwargs, 1.0, 120, normalize_returns=False)
        trained(tiny_task_kwargs, 100.0, 120, normalize_returns=False, clip_range_vf=None)


# Where there is nothing to normalise --------------------------------------------------------------


def test_without_a_critic_nothing_is_normalised_and_asking_for_it_is_refused(tiny_task_kwargs):
    buffer = {"advantage_estimator": "reinforce", "cut": "carry"}
    model = make_agent(tiny_task_kwargs, rollout_buffer_kwargs=buffer)
    before = weights(model.policy)
    model.learn(120)
    after = weights(model.policy)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("value_net."))
    with pytest.raises(
        ValueError, match=r"normalize_returns=True is for a critic, but .*reinforce"
    ):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs=buffer, normalize_returns=True)
    with pytest.raises(ValueError, match="normalize_returns=True with vf_coef=0"):
        make_agent(tiny_task_kwargs, vf_coef=0.0, normalize_returns=True)
    with pytest.raises(ValueError, match="normalize_returns=True is for a critic"):
        TrainConfig(advantage_estimator="reinforce", normalize_returns=True)
    with pytest.raises(ValueError, match="ActorCriticPolicy has no place for it"):
        TokenPPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=RolloutBuffer,
                 normalize_returns=True, device="cpu")  # fmt: skip


def test_the_command_line_passes_it_on(tiny_task_kwargs):
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    for value in (None, True, False):
        config = TrainConfig(n_envs=2, n_steps=9, normalize_returns=value, **own)
        env = make_vec_env(n_envs=2, **{**config.environment(), "prompts": ["w3"]})
        assert build_agent(config, env).normalize_returns is value


# A constant reward --------------------------------------------------------------------------------


def constant(prompts, responses):
    return [0.1 for _ in responses]


@pytest.mark.parametrize("way", ["one token", "reinforce", "per minibatch", "KL as a loss"])
def test_a_constant_reward_does_not_move_the_actor(tiny_task_kwargs, way):
    """With β > 0 too, where actor and reference agree but for rounding."""
    kwargs = {**tiny_task_kwargs, "reward_model": constant, "kl_coef": 0.05}
    given = {"vf_coef": 0.0, "n_epochs": 1, "batch_size": 10**6}
    if way == "one token":
        kwargs["max_new_tokens"] = 1
    else:
        kwargs["scoring"] = "deferred"
        given["rollout_buffer_kwargs"] = {"advantage_estimator": "reinforce", "cut": "carry"}
    if way == "per minibatch":
        given |= {"whiten_advantages": False, "normalize_advantage": True}
    if way == "KL as a loss":
        kwargs["kl_shaping"] = "none"
        given |= {"kl_estimator": "k2", "use_kl_loss": True}
    model = make_agent(kwargs, **given)
    torch.nn.init.zeros_(model.policy.critic_head.weight)
    before = weights(model.policy.actor)
    callback = begin(model)
    buffer = collect(model, callback)
    assert np.abs(buffer.returns).max() > 0.09
    model._current_progress_remaining = 1.0
    model.train()
    moved = largest_difference(before, weights(model.policy.actor))
    if way == "KL as a loss":  # log-ratios of rounding's size are not multiplied
        assert model.logger.name_to_value["train/grad_norm"] <= 1e-4
    else:
        assert moved == 0.0


# On a bundled task --------------------------------------------------------------------------------


class KeepExplained(BaseCallback):
    """How much of the returns of each rollout the critic explained, before it learned from it."""

    def __init__(self, seen: list[float]) -> None:
        super().__init__()
        self.seen = seen

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.seen.append(float(explained_variance(buffer.values.ravel(), buffer.returns.ravel())))


def scaled_reward_model(folder: Path, factor: int) -> str:
    """The reward model of `exact` with normalised scores that are `factor` times as large."""
    target = folder / f"times-{factor}"
    if not target.exists():
        shutil.copytree(model_source("exact", "reward_model"), target)
        config = json.loads((target / "config.json").read_text())
        config["reward_std"] /= factor
        (target / "config.json").write_text(json.dumps(config))
    return str(target)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("clip_range_vf", [0.2, pytest.param(None, marks=pytest.mark.long)])
def test_the_critic_explains_as_much_whatever_the_scale_of_scores(tmp_path, clip_range_vf, seed):
    """Scores times 1, 10 and 100 at one learning rate, after 10 rollouts of one policy.

    A policy that learns beside its critic is another one after a few updates, by the rounding of
    the factor alone; by powers of 2 it is compared above. Here the actor rests.
    """
    explained = {}
    for factor in (1, 10, 100):
        env = make_vec_env(
            "TokenRLHF-Exact-v0",
            n_envs=64,
            scoring="deferred",
            seed=seed,
            reward_model=scaled_reward_model(tmp_path, factor),
            device="cpu",
        )
        model = TokenPPO(
            LMActorCriticPolicy,
            env,
            learning_rate=lambda _: 3e-3,
            n_steps=32,
            batch_size=512,
            clip_range_vf=clip_range_vf,
            critic_warmup=11,
            policy_kwargs={"value_head": "separate"},
            seed=seed,
            device="cpu",
        )
        seen = []
        model.learn(11 * 2048, callback=KeepExplained(seen))
        explained[factor] = seen[10]
    # 0.06 to 0.08 on seed 0, equal to three digits: the tenth rollout of a task full of noise.
    assert min(explained.values()) > 0, explained
    assert max(explained.values()) - min(explained.values()) <= 0.01, explained
