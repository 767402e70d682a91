"""`LMActorCriticPolicy(attention=…)`: the same numbers, and a second derivative where eager.

An algorithm such as TRPO multiplies the Hessian of a KL with vectors: fused attention has no second
derivative, and the chunked log-probabilities of `agents.policy.token_scores` have none either.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from support.models import save_language_model
from support.tolerances import assert_close
from torch.distributions import kl_divergence

from agents import LMActorCriticPolicy, make_vec_env
from agents.rollout.compatibility import refuse_fused_attention

P, T, V = 4, 5, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """GPT-2: all of it runs in float64, where Llama's norms would round to float32."""
    return save_language_model(tmp_path_factory.mktemp("attention") / "actor", "gpt2")


def make_policy(folder, attention, dtype="float32", **kwargs):
    spaces = gym.spaces.Box(-1, V - 1, (P + T,), np.int64), gym.spaces.Discrete(V)
    return LMActorCriticPolicy(
        *spaces, lambda _: 1e-3, actor=str(folder), attention=attention, dtype=dtype, **kwargs
    )


@pytest.fixture(scope="module")
def states():
    """Six states of mixed lengths, and an action at each."""
    rng = np.random.default_rng(0)
    observations = np.full((6, P + T), -1)
    for row, (prompt, response) in enumerate([(1, 0), (4, 0), (2, 4), (4, 3), (3, 1), (4, 4)]):
        observations[row, P - prompt : P + response] = rng.integers(3, V, prompt + response)
    return torch.as_tensor(observations), torch.as_tensor(rng.integers(0, V, 6))


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_eager_attention_gives_the_same_numbers(folder, states, value_head):
    usual, eager = (make_policy(folder, a, value_head=value_head) for a in (None, "eager"))
    for policy in (usual, eager):  # a head of zeros would hide a difference between the trunks
        head = policy.value_net if policy.critic is None else policy.critic.head
        torch.nn.init.constant_(head.weight, 0.1)
    assert usual.actor.config._attn_implementation == "sdpa"
    models = [eager.actor] + ([] if eager.critic is None else [eager.critic.model])
    assert [m.config._attn_implementation for m in models] == ["eager"] * len(models)
    for found, expected in zip(
        eager.evaluate_actions(*states), usual.evaluate_actions(*states), strict=True
    ):
        assert_close(found, expected)
    logits = [p.get_distribution(states[0]).distribution.logits for p in (eager, usual)]
    assert_close(*logits)
    sampled = [p.forward(states[0], deterministic=True) for p in (eager, usual)]  # the slot cache
    for found, expected in zip(*sampled, strict=True):
        assert_close(found, expected)


def test_saved_models_and_folders_keep_what_they_must(folder, tmp_path):
    """A saved model goes on as it was; a folder for transformers names no implementation."""
    env = make_vec_env("TokenRLHF-Exact-v0", n_envs=2, seed=0)
    kwargs = {"actor": "exact", "attention": "eager"}
    model = PPO(LMActorCriticPolicy, env, n_steps=4, batch_size=8, policy_kwargs=kwargs)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu").policy
    assert loaded.attention == "eager"
    assert loaded.actor.config._attn_implementation == "eager"
    model.policy.save(tmp_path / "policy.pt")
    alone = LMActorCriticPolicy.load(tmp_path / "policy.pt")
    assert alone.actor.config._attn_implementation == "eager"
    assert "attention" not in make_policy(folder, None).rebuild_kwargs()


def test_unknown_attention_is_refused_with_the_choices(folder):
    with pytest.raises(ValueError, match=r"attention='flash'.*'eager'.*'sdpa'.*None"):
        make_policy(folder, "flash")


def parameters_of(policy):
    return [p for name, p in policy.named_parameters() if "value" not in name]


def hessian_times(loss, parameters, direction):
    """(∂²loss/∂θ²)·v, as TRPO computes it: the gradient of ⟨gradient, v⟩."""
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    inner = sum((g * v).sum() for g, v in zip(first, direction, strict=True))
    return torch.autograd.grad(inner, parameters)


def mean_kl(policy, observations, old):
    return kl_divergence(policy.get_distribution(observations).distribution, old).mean()


def mean_log_prob(policy, observations, actions):
    return policy.evaluate_actions(observations, actions)[1].mean()


def mean_entropy(policy, observations, actions):
    return policy.evaluate_actions(observations, actions)[2].mean()


@pytest.mark.parametrize("of", [mean_kl, mean_log_prob, mean_entropy])
def test_double_backward_equals_finite_differences(folder, states, of):
    """H·v against (∇L(θ + h·v) − ∇L(θ − h·v)) / 2h in float64, away from the KL's minimum.

    The difference errs by O(h²) of the third derivative and by 1e-16 / h of rounding.
    """
    policy = make_policy(folder, "eager", "float64")
    with torch.no_grad():
        old = policy.get_distribution(states[0]).distribution
    parameters, step = parameters_of(policy), 1e-5
    away, direction = (random_direction(parameters, seed) for seed in (0, 1))
    move(parameters, away, 0.02)  # the old distribution is no longer the policy's

    def loss():
        return of(policy, states[0], old if of is mean_kl else states[1])

    found = hessian_times(loss(), parameters, direction)
    move(parameters, direction, step)
    above = torch.autograd.grad(loss(), parameters)
    move(parameters, direction, -2 * step)
    below = torch.autograd.grad(loss(), parameters)
    assert max(float(product.abs().max()) for product in found) > 1e-2
    for product, up, down in zip(found, above, below, strict=True):
        torch.testing.assert_close(product, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


def random_direction(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]


def move(parameters, direction, step):
    with torch.no_grad():
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.add_(part, alpha=step)


def test_at_the_minimum_the_hessian_of_the_kl_is_the_fisher_matrix(folder, states):
    """vᵀHv = mean over states of Σ_a p_a·(∂ log p_a·v)²: what TRPO's step length rests on."""
    policy = make_policy(folder, "eager", "float64")
    parameters = parameters_of(policy)
    with torch.no_grad():
        old = policy.get_distribution(states[0]).distribution
    direction = random_direction(parameters, 1)
    product = hessian_times(mean_kl(policy, states[0], old), parameters, direction)
    curvature = sum((h * v).sum() for h, v in zip(product, direction, strict=True))
    step = 1e-5
    move(parameters, direction, step)
    above = policy.get_distribution(states[0]).distribution.logits
    move(parameters, direction, -2 * step)
    slope = (above - policy.get_distribution(states[0]).distribution.logits) / (2 * step)
    expected = (old.probs * slope**2).sum(dim=1).mean()
    torch.testing.assert_close(curvature, expected.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("of", [mean_log_prob, mean_entropy])
def test_fused_attention_has_no_second_derivative(folder, states, of):
    policy = make_policy(folder, "sdpa")
    parameters = parameters_of(policy)
    with pytest.raises(RuntimeError, match="derivative"):
        hessian_times(of(policy, *states), parameters, random_direction(parameters, 0))
    loss = policy.get_distribution(states[0]).log_prob(states[1]).mean()
    with pytest.raises(RuntimeError, match="derivative"):
        hessian_times(loss, parameters, random_direction(parameters, 0))


def test_only_an_algorithm_that_differentiates_twice_needs_eager_attention(folder):
    class Agent:
        def __init__(self, policy):
            self.policy = policy

    class TwiceDifferentiating(Agent):
        def hessian_vector_product(self):
            raise AssertionError("only its being there counts")

    fused, eager = (make_policy(folder, attention) for attention in (None, "eager"))
    refuse_fused_attention(Agent(fused))
    refuse_fused_attention(TwiceDifferentiating(eager))
    with pytest.raises(ValueError, match=r"TwiceDifferentiating.*'sdpa'.*'attention': 'eager'"):
        refuse_fused_attention(TwiceDifferentiating(fused))
