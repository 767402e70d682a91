"""The strength of a token's update: closed forms against autograd, shares, effects of a step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support.models import ARCHITECTURES

from agents import LMActorCriticPolicy
from agents.credit import (
    evaluate_states,
    exact_norms_and_shares,
    output_layer_norms,
    output_layer_shares,
    step_effect,
)
from agents.credit import exact_strength as exact_module
from tokenenv.models import LanguageModel, Reference, pack, tempered_logits

V, P, T = 40, 4, 6
_SMALL = ARCHITECTURES["llama"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "llama-tied": {**_SMALL, "tie_word_embeddings": True},
    "gpt2": ARCHITECTURES["gpt2"],
    "phi-head-with-bias": {**_SMALL, "model_type": "phi", "num_key_value_heads": 4},
    "gemma2-soft-capped": {
        **_SMALL,
        "model_type": "gemma2",
        "head_dim": 8,
        "final_logit_softcapping": 1.5,
        "attn_logit_softcapping": 20.0,
        "layer_types": ["full_attention", "full_attention"],
    },
}
SEQUENCES = [([3, 5], [7, 8, 9]), ([4], [6]), ([10, 11, 12, 13], [20, 21, 22, 23, 2])]


def new_policy(name: str, temperature: float = 1.0) -> LMActorCriticPolicy:
    policy = LMActorCriticPolicy(
        spaces.Box(-1, V - 1, (P + T,), np.int64),
        spaces.Discrete(V),
        lambda _: 1e-3,
        config=CONFIGS[name],
        dtype="float64",
        temperature=temperature,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return policy


@pytest.fixture(scope="module")
def sequences() -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.array(p) for p, _ in SEQUENCES], [np.array(r) for _, r in SEQUENCES]


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=sum(len(r) for _, r in SEQUENCES))


def states_of(policy: LMActorCriticPolicy, sequences: Any) -> Any:
    model = copy.deepcopy(policy.actor)
    reference = Reference(LanguageModel("copy", model, None, (2,)), policy.temperature)
    return evaluate_states(policy, reference, *sequences)


def layer_gradients(policy: LMActorCriticPolicy, sequences: Any) -> np.ndarray:
    """(n, p) ∇ log π over the output layer alone, by one backward per token."""
    prefixes, responses = sequences
    packed = pack(prefixes, responses, "cpu")
    hidden = policy.trunk_states(packed)[0].detach()  # so that tied weights count as output only
    layer = policy.actor.get_output_embeddings()
    parameters = [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    log_probs = torch.log_softmax(tempered_logits(policy.actor, hidden, policy.temperature), dim=-1)
    rows = []
    for i, action in enumerate(np.concatenate(responses).tolist()):
        gradients = torch.autograd.grad(log_probs[i, action], parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_closed_form_is_the_gradient_in_the_output_layer(name, temperature, sequences, weights):
    policy = new_policy(name, temperature)
    states = states_of(policy, sequences)
    gradients = layer_gradients(policy, sequences)
    norms = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(output_layer_norms(policy, states), norms, rtol=1e-9)
    terms = weights[:, None] * gradients
    total = terms.sum(axis=0)
    shares = terms @ total / (total @ total)
    np.testing.assert_allclose(output_layer_shares(policy, states, weights), shares, atol=1e-9)
    assert shares.sum() == pytest.approx(1.0, abs=1e-12)


def test_what_the_closed_form_is_for_is_in_these_models():
    """A bias, a cap and a tie: without one of them its case would prove nothing."""
    assert new_policy("phi-head-with-bias").actor.get_output_embeddings().bias is not None
    assert new_policy("gemma2-soft-capped").actor.config.final_logit_softcapping == 1.5
    tied = new_policy("llama-tied").actor
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_nothing_moves_where_all_weights_are_zero(sequences):
    policy = new_policy("llama")
    shares = output_layer_shares(policy, states_of(policy, sequences), np.zeros(9))
    assert np.isnan(shares).all()


@pytest.mark.parametrize(("name", "rounding"), [("llama-tied", 1e-6), ("gpt2", 1e-9)])
def test_exact_strengths_are_those_of_one_backward_per_token(
    name, rounding, sequences, weights, monkeypatch
):
    """Whatever the chunks: here of two tokens. Llama's norms are float32."""
    policy = new_policy(name)
    size = sum(p.numel() for p in policy.actor.parameters())
    monkeypatch.setattr(exact_module, "CHUNK", 2 * size)
    norms, shares = exact_norms_and_shares(policy, *sequences, weights)
    packed, actions = pack(*sequences, "cpu"), torch.as_tensor(np.concatenate(sequences[1]))
    log_probs = policy.evaluate_actions(packed, actions)[1]
    rows = []
    for i in range(len(actions)):
        parameters = list(policy.actor.parameters())
        gradients = torch.autograd.grad(log_probs[i], parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]).numpy())
    gradients = np.stack(rows)
    np.testing.assert_allclose(norms, np.linalg.norm(gradients, axis=1), rtol=rounding)
    terms = weights[:, None] * gradients
    total = terms.sum(axis=0)
    np.testing.assert_allclose(shares, terms @ total / (total @ total), atol=rounding)


def test_only_what_is_trained_counts(sequences, weights):
    policy = new_policy("llama")
    for parameter in policy.actor.base_model.parameters():
        parameter.requires_grad_(False)
    norms, _ = exact_norms_and_shares(policy, *sequences, weights)
    expected = output_layer_norms(policy, states_of(policy, sequences))
    np.testing.assert_allclose(norms, expected, rtol=1e-9)


def test_too_large_a_model_is_refused_with_its_size_and_the_closed_form(
    sequences, weights, monkeypatch
):
    policy = new_policy("llama")
    monkeypatch.setattr(exact_module, "MAX_PARAMETERS", 1_000)
    with pytest.raises(ValueError, match=r"[\d,]+ trainable parameters.*up to 1,000.*closed form"):
        exact_norms_and_shares(policy, *sequences, weights)


def take_steps(policy: LMActorCriticPolicy, sequences: Any, count: int) -> None:
    """Steps on another loss, so that Adam has a momentum that is not the next gradient's."""
    packed, actions = pack(*sequences, "cpu"), torch.as_tensor(np.concatenate(sequences[1]))
    for i in range(count):
        values, log_probs, entropies = policy.evaluate_actions(packed, actions)
        policy.optimizer.zero_grad()
        (log_probs[i] + values.mean() - entropies.sum()).backward()
        policy.optimizer.step()


def test_a_small_step_does_what_the_gradients_predict(sequences, weights):
    """In a model that is float64 throughout: Llama's norms are float32."""
    policy = new_policy("gpt2")
    take_steps(policy, sequences, 3)
    state = copy.deepcopy(policy.state_dict())
    effect = step_effect(policy, *sequences, weights, learning_rate=1e-6)
    np.testing.assert_allclose(effect.predicted, effect.actual, rtol=1e-2, atol=1e-9)
    assert effect.correlation > 0.9999
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_the_step_is_the_optimisers_with_its_momentum(sequences, weights):
    """The real optimiser's step on the same loss changes log π by just as much."""
    policy = new_policy("llama")
    take_steps(policy, sequences, 3)
    effect = step_effect(policy, *sequences, weights)
    packed, actions = pack(*sequences, "cpu"), torch.as_tensor(np.concatenate(sequences[1]))
    before = policy.evaluate_actions(packed, actions)[1]
    policy.optimizer.zero_grad()
    (-(torch.as_tensor(weights) * before).mean()).backward()
    policy.optimizer.step()
    after = policy.evaluate_actions(packed, actions)[1]
    change = (after - before).detach().numpy()
    np.testing.assert_allclose(effect.actual, change, rtol=1e-9, atol=1e-12)
