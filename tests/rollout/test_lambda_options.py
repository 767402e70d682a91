"""λ of the critic's targets, λ by the length of the response, and the critic's pretraining."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from support.tiny_task import T, begin, collect, make_agent, perturb, weights
from support.worlds import World, new_buffer, textbook_advantages

from agents import EpisodeRolloutBuffer, RLHFCallback, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.runs.agent import build_agent


def by_mark(buffer: EpisodeRolloutBuffer, name: str) -> dict[float, float]:
    """Mark of each token in the update → a quantity of it; the mark is the sampled log-prob."""
    return dict(zip(buffer.log_probs.tolist(), getattr(buffer, name).tolist(), strict=True))


def to_come(buffer: EpisodeRolloutBuffer) -> np.ndarray:
    """(n,) sums of the rewards from each token of a whole response on."""
    parts = np.split(buffer.rewards.astype(np.float64), buffer.offsets[1:-1])
    return np.concatenate([np.cumsum(part[::-1])[::-1] for part in parts])


# The critic's λ -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize(("estimator", "own"), [("gae", 0.9), ("monte-carlo", 1.0), ("td", 0.0)])
@pytest.mark.parametrize("value_lambda", [None, 0.0, 0.6, 1.0])
def test_the_returns_have_a_lambda_of_their_own(cut, estimator, own, value_lambda):
    world = World(n_envs=5)
    buffer = new_buffer(
        11,
        5,
        cut,
        gamma=0.97,
        gae_lambda=0.9,
        advantage_estimator=estimator,
        gae_lambda_value=value_lambda,
    )
    for _ in range(3):
        world.rollout(buffer)
        expected: dict[float, dict[float, float]] = {}
        for lam in (own, own if value_lambda is None else value_lambda):
            expected[lam] = {}
            for steps in world.steps:
                if cut == "carry":  # what waits is joined with what follows
                    steps[-1].bootstrap = 0.0
                known = [s for s in steps if s.mark in by_mark(buffer, "values")]
                expected[lam].update(textbook_advantages(known, 0.97, lam))
        found, values = by_mark(buffer, "advantages"), by_mark(buffer, "values")
        of_critic = expected[own if value_lambda is None else value_lambda]
        assert len(found) >= 20
        for mark, target in by_mark(buffer, "returns").items():
            assert abs(found[mark] - expected[own][mark]) <= 2e-5
            assert abs(target - (of_critic[mark] + values[mark])) <= 2e-5


def test_the_critic_is_trained_towards_them_by_every_algorithm(tiny_task_kwargs):
    """With λ = 1 and whole responses they are the rewards to come, free of V."""
    for agent in (TokenPPO, PPO):
        given = {"rollout_buffer_class": EpisodeRolloutBuffer} if agent is PPO else {}
        model = make_agent(
            tiny_task_kwargs,
            agent,
            gamma=1.0,
            rollout_buffer_kwargs={"cut": "carry", "gae_lambda_value": 1.0},
            **given,
        )
        buffer = collect(model, begin(model))
        assert np.abs(buffer.returns - to_come(buffer)).max() <= 1e-5
        assert np.abs(buffer.advantages + buffer.values - buffer.returns).max() > 1e-2
        model.learn(1, callback=RLHFCallback())
        assert math.isfinite(model.logger.name_to_value["train/value_loss"])


# λ by the length of the response ------------------------------------------------------------------


def test_lambda_follows_the_length_of_every_response():
    """α = 0.4: λ is 0 up to 2 tokens, and 1 − 1/(0.4·l) above."""
    world = World(n_envs=5, end=0.15)
    given = {"gamma": 0.97, "gae_lambda_alpha": 0.4}
    buffer, both = (
        new_buffer(T + 3, 5, "carry", **given, **own) for own in ({}, {"gae_lambda_value": 1.0})
    )
    lengths = set()
    for _ in range(3):
        world.rollout(buffer)
        found, returns = by_mark(buffer, "advantages"), by_mark(buffer, "returns")
        values = by_mark(buffer, "values")
        for steps in world.steps:
            steps[-1].bootstrap = 0.0  # what waits is joined with what follows
            start = 0
            for row, step in enumerate(steps):
                if not step.done:
                    continue
                episode, start = steps[start : row + 1], row + 1
                if episode[0].mark not in found:
                    continue
                lengths.add(len(episode))
                lam = max(0.0, 1 - 1 / (0.4 * len(episode)))
                for mark, advantage in textbook_advantages(episode, 0.97, lam).items():
                    assert abs(found[mark] - advantage) <= 2e-5
                    assert abs(returns[mark] - (advantage + values[mark])) <= 2e-5
    assert min(lengths) <= 2 < 6 <= max(lengths)
    world = World(n_envs=5, end=0.15)
    world.rollout(both)
    other = World(n_envs=5, end=0.15)
    other.rollout(buffer)
    assert np.array_equal(both.advantages, buffer.advantages)
    assert np.abs(both.returns - buffer.returns).max() > 1e-2, "the critic's λ stays apart"


def test_an_agent_trains_with_it(tiny_task_kwargs):
    model = make_agent(
        {**tiny_task_kwargs, "scoring": "deferred"},
        rollout_buffer_kwargs={"cut": "carry", "gae_lambda_alpha": 0.05, "gae_lambda_value": 1.0},
    )
    buffer = collect(model, begin(model))
    following = np.append(buffer.values[1:], 0.0)
    following[buffer.offsets[1:] - 1] = 0.0
    # At α = 0.05 and T = 8 all λ are 0.
    assert np.abs(buffer.advantages - (buffer.rewards + following - buffer.values)).max() <= 1e-5
    assert np.abs(buffer.returns - to_come(buffer)).max() <= 1e-5
    model.learn(120)
    assert math.isfinite(model.logger.name_to_value["train/loss"])


# The critic's pretraining -------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_in_the_warm_up_the_critic_learns_the_returns_of_the_policy_at_rest(
    tiny_task_kwargs, tmp_path, scoring
):
    model = make_agent(
        {**tiny_task_kwargs, "scoring": scoring},
        n_steps=T + 1,
        critic_warmup=2,
        critic_warmup_lambda=1.0,
        rollout_buffer_kwargs={"cut": "carry"},
    )
    perturb(model.policy)
    actor = weights(model.policy.actor)
    callback = begin(model)
    model._current_progress_remaining = 1.0
    for update in range(4):
        buffer = collect(model, callback)
        by_lambda = buffer.advantages + buffer.values
        if update < 2:
            assert np.abs(buffer.returns - to_come(buffer)).max() <= 1e-5
            assert np.abs(buffer.returns - by_lambda).max() > 1e-3
        else:
            assert np.abs(buffer.returns - by_lambda).max() == 0.0, "those of gae_lambda again"
        model.train()
        same = all((actor[name] == now).all() for name, now in weights(model.policy.actor).items())
        assert same == (update < 2)
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.critic_warmup_lambda == 1.0 and loaded.value_lambda() is None


def test_a_cut_episode_of_the_warm_up_ends_in_the_critics_value(tiny_task_kwargs):
    model = make_agent(
        tiny_task_kwargs, n_steps=3, n_envs=8, critic_warmup=1, critic_warmup_lambda=1.0
    )
    buffer = collect(model, begin(model))
    errors = (buffer.returns - to_come(buffer))[buffer.offsets[1:] - 1]
    assert (np.abs(errors) <= 1e-5).any() and (np.abs(errors) > 1e-3).any()


# Settings -----------------------------------------------------------------------------------------

CARRY = {"cut": "carry"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gae_lambda_value": 1.5}, r"gae_lambda_value=1\.5 must be a number from 0 to 1"),
        ({"gae_lambda_alpha": 0.0, **CARRY}, r"gae_lambda_alpha=0\.0 must be a positive"),
        ({"gae_lambda_alpha": 0.05}, r"of the whole response, but cut='bootstrap'.*--cut carry"),
        *(
            (
                {"gae_lambda_alpha": 0.05, "advantage_estimator": name, **CARRY},
                f"gae_lambda_alpha=0.05 is without effect with advantage_estimator='{name}'",
            )
            for name in ("monte-carlo", "td", "reinforce", "vine")
        ),
        *(
            (
                {"gae_lambda_value": 1.0, "advantage_estimator": name, **CARRY},
                f"for the targets of a critic, but advantage_estimator='{name}' needs none",
            )
            for name in ("reinforce", "vine")
        ),
    ],
)
def test_a_lambda_that_makes_no_sense_is_refused(tiny_task_kwargs, given, message):
    with pytest.raises(ValueError, match=message):
        new_buffer(T, 2, **given)
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs=given)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"cut": "bootstrap", **given})


@pytest.mark.parametrize(
    ("given", "of_buffer", "message"),
    [
        (
            {"gae_lambda": 0.9},
            {"gae_lambda_alpha": 0.05, **CARRY},
            r"gae_lambda=0\.9 is without effect with gae_lambda_alpha=0\.05",
        ),
        ({"vf_coef": 0.0}, {"gae_lambda_value": 1.0}, "with vf_coef=0: no critic learns these"),
        ({"critic_warmup_lambda": 1.0}, {}, "critic_warmup=0: there are no updates"),
        (
            {"critic_warmup": 1, "critic_warmup_lambda": -0.1},
            {},
            r"critic_warmup_lambda=-0\.1 must be a number from 0 to 1",
        ),
    ],
)
def test_a_lambda_without_effect_is_refused(tiny_task_kwargs, given, of_buffer, message):
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs=of_buffer, **given)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given, **of_buffer)


def test_the_stock_buffer_has_one_lambda(tiny_task_kwargs):
    with pytest.raises(ValueError, match="RolloutBuffer has those of gae_lambda alone"):
        make_agent(
            tiny_task_kwargs,
            critic_warmup=1,
            critic_warmup_lambda=1.0,
            rollout_buffer_class=RolloutBuffer,
        )


def test_the_command_line_passes_them_on(tiny_task_kwargs):
    given = {"critic_warmup": 1, "critic_warmup_lambda": 1.0}
    of_buffer = {"gae_lambda_value": 1.0, "gae_lambda_alpha": 0.05}
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    config = TrainConfig(n_envs=2, n_steps=12, **own, **given, **of_buffer)
    assert TrainConfig.from_json(config.as_json()) == config
    environment = {**config.environment(), "prompts": tiny_task_kwargs["prompts"]}
    model = build_agent(config, make_vec_env(n_envs=2, **environment))
    assert {name: getattr(model, name) for name in given} == given
    assert {name: getattr(model.rollout_buffer, name) for name in of_buffer} == of_buffer
    assert model.rollout_buffer.cut == "carry", "what α needs is the default then"
