"""Fused activations compute what transformers' own do, and leave no trace in a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_task import save_actor, save_reward_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from agents import LMActorCriticPolicy
from tokenenv.models.language_model import build_language_model, load_frozen, load_trainable
from tokenenv.models.preparation import fuse_activations
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model

WRITTEN_OUT = ("gelu_new", "gelu_fast")


def written_out(model: nn.Module) -> int:
    """How many activations of a model are transformers' own, operation by operation."""
    kinds = tuple(type(ACT2FN[name]) for name in WRITTEN_OUT)
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_fused_kernel_is_the_same_function_and_derivative(name):
    own, fused = nn.Sequential(ACT2FN[name]), nn.Sequential(ACT2FN[name])
    fuse_activations(fused)
    assert written_out(own) == 1 and written_out(fused) == 0
    found = []
    for model in (own, fused):
        x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
        y = model(x)
        y.sum().backward()
        found.append((y.detach(), x.grad))
    # gelu_fast rounds √(2/π) to ten digits.
    tolerance = 1e-14 if name == "gelu_new" else 1e-9
    for expected, got in zip(*found, strict=True):
        assert (expected - got).abs().max() <= tolerance


def test_a_model_computes_the_same_and_saves_the_same(tiny_folder, tmp_path):
    source = save_actor(tiny_folder / "gpt2", "gpt2")
    plain = AutoModelForCausalLM.from_pretrained(source).eval()
    ours = load_trainable(source).model
    assert written_out(plain) > 0 and written_out(ours) == 0
    tokens = torch.arange(3, 11)[None, :]
    with torch.no_grad():
        assert (plain(tokens).logits - ours(tokens).logits).abs().max() <= 1e-5
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert ours.config.activation_function == plain.config.activation_function
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert written_out(again) == written_out(plain)
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_every_way_to_a_model_fuses(tiny_folder, tiny_task_kwargs):
    source = save_actor(tiny_folder / "gpt2", "gpt2")
    config = load_trainable(source).model.config.to_dict()
    models = [
        load_frozen(source).model,
        load_trainable(source).model,
        build_language_model(copy.deepcopy(config)),
        new_reward_model(source).model,
    ]
    assert [written_out(model) for model in models] == [0] * len(models)
    assert written_out(load_reward_model(save_reward_model(tiny_folder / "rm")).model) == 0


def test_a_separate_critic_is_fused_too(tiny_folder, tiny_task_kwargs):
    from agents import make_vec_env

    source = save_actor(tiny_folder / "gpt2", "gpt2")
    env = make_vec_env(n_envs=2, **{**tiny_task_kwargs, "reference": source})
    policy = LMActorCriticPolicy(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        actor=source,
        value_head="separate",
    )
    assert written_out(policy) == 0
