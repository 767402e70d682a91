"""Whatever way weights are written, cached answers equal a full forward of the new ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import polyak_update
from support.tiny_task import make_agent, save_actor, task_kwargs
from torch import nn

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO
from tokenenv.models import weight_watch
from tokenenv.models.language_model import load_frozen
from tokenenv.models.log_probs import log_softmax
from tokenenv.models.weight_watch import WeightWatch

TOLERANCE = 2e-5


def other_weights(module: nn.Module) -> nn.Module:
    """A copy with other weights."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.2 * noise).to(parameter.dtype))
    return other


def negate_data(policy: LMActorCriticPolicy) -> None:
    for parameter in policy.actor.parameters():
        parameter.data.mul_(-1)


def assign_data(policy: LMActorCriticPolicy) -> None:
    other = other_weights(policy.actor)
    for parameter, new in zip(policy.actor.parameters(), other.parameters(), strict=True):
        parameter.data = new.data


def swap_with_average(policy: LMActorCriticPolicy) -> None:
    average = [p.data for p in other_weights(policy.actor).parameters()]
    for parameter, mean in zip(policy.actor.parameters(), average, strict=True):
        kept = parameter.data.clone()
        parameter.data.copy_(mean)
        mean.copy_(kept)


def write_in_place(policy: LMActorCriticPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(1.3)


def polyak(policy: LMActorCriticPolicy) -> None:
    other = other_weights(policy.actor)
    polyak_update(other.parameters(), policy.actor.parameters(), 0.5)


def load_vector(policy: LMActorCriticPolicy) -> None:
    policy.load_from_vector(1.2 * policy.parameters_to_vector())


def load_state(policy: LMActorCriticPolicy) -> None:
    policy.load_state_dict(other_weights(policy).state_dict())


def assign_state(policy: LMActorCriticPolicy) -> None:
    policy.actor.load_state_dict(other_weights(policy.actor).state_dict(), assign=True)


def assign_state_of_a_layer(policy: LMActorCriticPolicy) -> None:
    layer = policy.actor.model.layers[0].mlp.down_proj
    layer.load_state_dict(other_weights(layer).state_dict(), assign=True)


def replace_actor(policy: LMActorCriticPolicy) -> None:
    policy.actor = other_weights(policy.actor)


def replace_trunk(policy: LMActorCriticPolicy) -> None:
    policy.actor.model = other_weights(policy.actor.model)


def replace_layer(policy: LMActorCriticPolicy) -> None:
    policy.actor.model.layers[1] = other_weights(policy.actor.model.layers[1])


def replace_output(policy: LMActorCriticPolicy) -> None:
    policy.actor.lm_head = other_weights(policy.actor.lm_head)


def replace_parameter(policy: LMActorCriticPolicy) -> None:
    layer = policy.actor.model.layers[0].self_attn.v_proj
    layer.weight = nn.Parameter(-layer.weight.detach())


def parametrize(policy: LMActorCriticPolicy) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2.0 * weight

    layer = policy.actor.model.layers[0].self_attn.v_proj
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())


def write_parametrization(policy: LMActorCriticPolicy) -> None:
    layer = policy.actor.model.layers[0].self_attn.v_proj
    for parameter in layer.parameters():
        parameter.data.mul_(-1)


WAYS: list[Callable[[LMActorCriticPolicy], None]] = [
    negate_data,
    assign_data,
    swap_with_average,
    write_in_place,
    polyak,
    load_vector,
    load_state,
    assign_state,
    assign_state_of_a_layer,
    replace_actor,
    replace_trunk,
    replace_layer,
    replace_output,
    replace_parameter,
    parametrize,
    write_parametrization,
]


@pytest.fixture
def model(tiny_task_kwargs) -> Any:
    return make_agent(tiny_task_kwargs, n_envs=4)


def some_states(model: Any, steps: int) -> np.ndarray:
    """(4, P+T) observations after some steps, every one of which the policy has seen."""
    observations = model.env.reset()
    for _ in range(steps):
        model.predict(observations)
        sampled, _, _ = model.policy.forward(torch.as_tensor(observations))
        observations, *_ = model.env.step(sampled.numpy())
    model.predict(observations)
    model.policy.forward(torch.as_tensor(observations))
    return observations


def largest_error(policy: LMActorCriticPolicy, observations: np.ndarray) -> dict[str, float]:
    """Of what `predict`, `forward` and `predict_values` answer, against full forwards."""
    obs = torch.as_tensor(observations)
    with torch.no_grad():
        expected = policy.get_distribution(obs).distribution.logits
        followed = log_softmax(
            policy.actor, policy.decoders.follow("predict", [policy.actor], observations)[0], 1.0
        )
        actions, values, log_probs = policy.forward(obs)
        full_values, full_log_probs, _ = policy.evaluate_actions(obs, actions)
        answers = policy.predict(observations, deterministic=True)[0]
        return {
            "predict": float((followed - expected).abs().max()),
            "action": float((answers != expected.argmax(-1).numpy()).sum()),
            "forward": float((log_probs - full_log_probs).abs().max()),
            "values": float((values - full_values).abs().max()),
            "predict_values": float((policy.predict_values(obs) - full_values).abs().max()),
        }


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_written_weights_are_noticed_everywhere(write, model):
    observations = some_states(model, 3)
    before = model.policy.get_distribution(torch.as_tensor(observations)).distribution.logits
    assert max(largest_error(model.policy, observations).values()) <= TOLERANCE
    write(model.policy)
    errors = largest_error(model.policy, observations)
    assert max(errors.values()) <= TOLERANCE, errors
    after = model.policy.get_distribution(torch.as_tensor(observations)).distribution.logits
    assert (after - before).abs().max() > 1e-2  # or the test would show nothing


@pytest.mark.parametrize("write", [negate_data, assign_state, load_state], ids=lambda w: w.__name__)
def test_set_parameters_and_a_separate_critic_are_noticed(write, tiny_task_kwargs):
    model = make_agent(
        tiny_task_kwargs, n_envs=4, policy_kwargs={"value_head": "separate", "critic": "actor"}
    )
    observations = some_states(model, 3)
    for parameter in model.policy.critic.parameters():
        parameter.data.mul_(1.5)
    write(model.policy)
    assert max(largest_error(model.policy, observations).values()) <= TOLERANCE
    model.set_parameters({"policy": other_weights(model.policy).state_dict()}, exact_match=False)
    assert max(largest_error(model.policy, observations).values()) <= TOLERANCE


def test_predict_notices_one_element_written_through_data(model):
    observations = some_states(model, 3)
    weight = model.policy.actor.model.layers[0].mlp.down_proj.weight
    for index in [(0, 0), (7, 13), (20, 31)]:
        weight.data[index] += 5.0
        errors = largest_error(model.policy, observations)
        assert errors["predict"] <= TOLERANCE and errors["action"] == 0, index


def test_a_rollout_notices_one_element_written_through_data_before_it(model):
    observations = some_states(model, 3)
    model.policy.actor.model.layers[0].mlp.down_proj.weight.data[7, 13] += 5.0
    model.policy.set_training_mode(False)  # what SB3 calls before it collects a rollout
    assert max(largest_error(model.policy, observations).values()) <= TOLERANCE


def test_calls_outside_of_a_rollout_notice_one_element_written_through_data(model):
    observations = some_states(model, 3)
    weight = model.policy.actor.model.layers[0].mlp.down_proj.weight
    for index in [(0, 0), (7, 13), (20, 31)]:
        weight.data[index] += 5.0
        errors = largest_error(model.policy, observations)
        assert max(errors.values()) <= TOLERANCE, (index, errors)


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_calls_notice_what_a_quick_look_on_a_gpu_does_not(
    value_head, tiny_task_kwargs, monkeypatch
):
    """There no element is looked at: `.data` written in place shows in nothing but the contents."""
    monkeypatch.setattr(weight_watch, "_sample_reads", lambda tensor: [])
    model = make_agent(tiny_task_kwargs, n_envs=4, policy_kwargs={"value_head": value_head})
    obs = torch.as_tensor(some_states(model, 3))
    for factor in (-1.0, 1.5):
        for parameter in model.policy.parameters():
            parameter.data.mul_(factor)
        with torch.no_grad():
            values = model.policy.predict_values(obs)
            actions, more_values, log_probs = model.policy.forward(obs)
            full_values, full_log_probs, _ = model.policy.evaluate_actions(obs, actions)
        for cached, full in (
            (values, full_values),
            (more_values, full_values),
            (log_probs, full_log_probs),
        ):
            assert (cached - full).abs().max() <= TOLERANCE


def test_calls_after_an_interrupted_rollout_notice_them_too(model, monkeypatch):
    monkeypatch.setattr(weight_watch, "_sample_reads", lambda tensor: [])
    observations = model.env.reset()
    with model.policy.reading(lambda: observations):
        model.policy.forward(torch.as_tensor(observations))
    negate_data(model.policy)
    assert max(largest_error(model.policy, observations).values()) <= TOLERANCE


@pytest.mark.parametrize("agent", [TokenPPO, PPO])
def test_steps_of_a_rollout_do_not_read_all_weights(agent, tiny_task_kwargs, monkeypatch):
    looks = []
    read = WeightWatch._read_contents
    monkeypatch.setattr(WeightWatch, "_read_contents", lambda watch: looks.append(1) or read(watch))
    make_agent(tiny_task_kwargs, agent).learn(120, callback=RLHFCallback())
    assert not looks


def test_predict_follows_no_critic(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, n_envs=4, policy_kwargs={"value_head": "separate"})
    model.predict(model.env.reset())
    assert [d.model for d in model.policy.decoders.by_purpose["predict"]] == [model.policy.actor]


def test_predicting_in_the_middle_of_a_rollout_drops_nothing(model):
    observations = some_states(model, 3)
    decoder = model.policy.decoders.by_purpose["rollout"][0]
    forwards = decoder.forwards
    model.predict(observations)
    model.policy.forward(torch.as_tensor(observations))
    assert decoder.forwards == forwards


def test_a_reference_whose_weights_are_written_answers_with_the_new_ones(tmp_path, tiny_folder):
    kwargs = {
        **task_kwargs(tiny_folder, "llama"),
        "reference": save_actor(tmp_path / "own", "llama"),
    }
    env = gym.make("TokenRLHF-v0", **kwargs)
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(13)
    frozen = load_frozen(kwargs["reference"]).model
    for parameter in frozen.parameters():
        parameter.data.mul_(-1)
    _, _, _, _, info = env.step(14)
    tokens = torch.as_tensor(observation[observation >= 0])[None]
    with torch.no_grad():
        expected = torch.log_softmax(frozen(input_ids=tokens).logits[0, -1], -1)[14]
    assert abs(info["ref_logprob"] - float(expected)) <= TOLERANCE


def test_a_readers_kept_distribution_follows_trunk_and_output_layer(tmp_path, tiny_folder):
    kwargs = {
        **task_kwargs(tiny_folder, "llama"),
        "reference": save_actor(tmp_path / "own", "llama"),
    }
    env = gym.make("TokenRLHF-v0", **kwargs)
    observation, _ = env.reset(seed=0)
    reader, frozen = env.unwrapped.mdp.reference_decoder, load_frozen(kwargs["reference"]).model
    tokens = torch.as_tensor(observation[observation >= 0])[None]
    for written in (frozen.model, frozen.lm_head):
        reader.log_probs(observation[None])
        for parameter in written.parameters():
            parameter.data.mul_(-0.7)
        with torch.no_grad():
            expected = torch.log_softmax(frozen(input_ids=tokens).logits[0, -1], -1)
        assert (reader.log_probs(observation[None])[0] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_thorough_look_sees_one_bit_and_what_was_moved(dtype):
    torch.manual_seed(0)
    module = nn.Linear(7, 5).to(dtype)
    watch = WeightWatch(module)
    assert watch.changed(thorough=True)  # nothing is known to compare with
    assert not watch.changed(thorough=True)
    weight = module.weight.data
    weight[2, 3] = torch.nextafter(weight[2, 3].float(), torch.tensor(9.0)).to(dtype) * 1.01
    assert watch.changed(thorough=True)
    weight[[1, 2]] = weight[[2, 1]].clone()
    assert watch.changed(thorough=True)
    assert not watch.changed(thorough=True)
