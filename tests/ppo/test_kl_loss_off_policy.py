"""KL as a loss after the first step: tokens of π_old, and still the gradient of KL(π ‖ π_ref).

On `exact`, every state and action enumerated, for a policy with a logit of its own at each.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.ppo.losses import kl_loss
from agents.settings.kl import KLPenalty
from tokenenv.maths.kl import full_kl, kl_estimate


@pytest.fixture(scope="module")
def states(exact_solution):
    """(S, V) log π_old and log π_ref at all states, and (S,) how often π_old visits them."""
    tree = exact_solution.tree
    policy = exact_solution.policy_between(0.5)
    visits = [np.exp(level) / len(tree.prompts) for level in tree.state_log_probs(policy)]
    width = tree.vocabulary_size
    old, ref = (
        torch.as_tensor(np.concatenate([level.reshape(-1, width) for level in levels]))
        for levels in (policy, tree.ref_log_probs)
    )
    return old, ref, torch.as_tensor(np.concatenate([level.ravel() for level in visits]))


def moved(old: torch.Tensor, largest_ratio: float) -> torch.Tensor:
    """Logits of a policy whose largest π/π_old is that."""
    direction = torch.randn(old.shape, generator=torch.Generator().manual_seed(0)).double()
    low, high = 0.0, 1.0
    for _ in range(60):
        size = (low + high) / 2
        ratio = (torch.log_softmax(old + size * direction, -1) - old).exp().max()
        low, high = (size, high) if ratio < largest_ratio else (low, size)
    return (old + low * direction).requires_grad_()


def gradient_of_samples(slopes, states, logits) -> torch.Tensor:
    """Of a loss with (S, V) slopes by log π(a|s), in expectation over tokens of π_old."""
    old, _, visits = states
    weights = (visits[:, None] * old.exp() * slopes).detach()
    loss = (weights * torch.log_softmax(logits, -1)).sum()
    return torch.autograd.grad(loss, logits)[0]


def slopes_of_the_loss(estimator: str, states, logits) -> torch.Tensor:
    """(S, V) slopes of `kl_loss`, every state and action being one token of a minibatch."""
    old, ref, _ = states
    log_probs = torch.log_softmax(logits, -1).detach().flatten().requires_grad_()
    samples = SimpleNamespace(old_log_prob=old.flatten(), ref_log_prob=ref.flatten())
    loss = kl_loss(KLPenalty(estimator, as_loss=True), samples, log_probs, None, None)
    return torch.autograd.grad(loss * len(log_probs), log_probs)[0].reshape(old.shape)


@pytest.mark.parametrize("largest_ratio", [1.0, 1.04, 1.18, 1.45, 4.0])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_gradient_is_that_of_the_kl_at_the_states_of_the_old_policy(
    states, estimator, largest_ratio
):
    old, ref, visits = states
    logits = moved(old, largest_ratio)
    log_policy = torch.log_softmax(logits, -1)
    assert float((log_policy.detach() - old).exp().max()) == pytest.approx(largest_ratio, rel=1e-9)
    kls = full_kl(log_policy, ref) if estimator == "k2" else full_kl(ref, log_policy)
    truth = torch.autograd.grad((visits * kls).sum(), logits, retain_graph=True)[0]
    found = gradient_of_samples(slopes_of_the_loss(estimator, states, logits), states, logits)
    assert float((found - truth).detach().norm() / truth.norm()) <= 1e-9
    # Without the weight, it is another gradient as soon as π is not π_old.
    rho = (log_policy - ref).detach()
    slopes = rho if estimator == "k2" else 1 - torch.exp(-rho)
    plain = float((gradient_of_samples(slopes, states, logits) - truth).norm() / truth.norm())
    least = {1.0: 0.0, 1.04: 0.002, 1.18: 0.01, 1.45: 0.02, 4.0: 0.1}[largest_ratio]
    assert plain >= least
    assert largest_ratio > 1 or plain <= 1e-9


def test_with_the_gradient_of_its_weight_k3_would_be_another_way_to_k2s_gradient(states):
    """Said in the docstring of `kl_loss`: why the weight is held fixed."""
    old, ref, visits = states
    logits = moved(old, 1.45)
    log_policy = torch.log_softmax(logits, -1)
    weighted = (log_policy - old).exp() * kl_estimate("k3", log_policy - ref)
    found = torch.autograd.grad(
        (visits[:, None] * old.exp() * weighted).sum(), logits, retain_graph=True
    )[0]
    truth = torch.autograd.grad((visits * full_kl(log_policy, ref)).sum(), logits)[0]
    assert float((found - truth).detach().norm() / truth.norm()) <= 1e-9
