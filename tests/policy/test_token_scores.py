"""Log-probabilities and entropies in chunks: the same numbers and gradients as by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents.policy import token_scores
from agents.policy.token_scores import score_tokens, scores_of_logits

STATES, HIDDEN, VOCABULARY = 23, 8, 70


class Shell:
    """As much of a causal LM as has an output layer."""

    def __init__(self, layer: nn.Module, softcap: float | None = None) -> None:
        self.layer = layer
        self.config = type("Config", (), {"final_logit_softcapping": softcap})

    def get_output_embeddings(self) -> nn.Module:
        return self.layer


@pytest.fixture
def case():
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)
    hidden = 3 * torch.randn(STATES, HIDDEN, dtype=torch.float64)
    return layer, hidden.requires_grad_(), torch.randint(VOCABULARY, (STATES,))


def gradients(scores, hidden, layer, with_entropy=True):
    """Of a loss in which every token weighs differently."""
    weights = torch.arange(1.0, STATES + 1, dtype=torch.float64)
    log_probs, entropies = scores
    loss = (weights * torch.exp(0.3 * log_probs)).sum()
    if with_entropy:
        loss = loss + (weights.flip(0) * entropies**2).sum()
    found = [p for p in (hidden, *layer.parameters()) if p.requires_grad]
    return torch.autograd.grad(loss, found)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_scores_and_gradients_are_those_of_autograd(
    case, monkeypatch, bias, temperature, kept, chunk
):
    """In float64, whatever the chunk, with log-probabilities kept or computed again."""
    layer, hidden, actions = case
    if not bias:
        layer.bias = None
    monkeypatch.setattr(token_scores, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(token_scores, "KEPT_LOGITS", 10**9 if kept else 0)
    ours = score_tokens(Shell(layer), hidden, actions, temperature)
    plain = scores_of_logits(layer(hidden) / temperature, actions)
    for own, expected in zip(ours, plain, strict=True):
        assert (own - expected).abs().max() <= 1e-13
    for own, expected in zip(
        gradients(ours, hidden, layer), gradients(plain, hidden, layer), strict=True
    ):
        assert (own - expected).abs().max() <= 1e-11 * expected.abs().max()


def test_gradients_agree_with_finite_differences(case):
    layer, hidden, actions = case

    def scores(states, weight, bias):
        own = nn.Linear(HIDDEN, VOCABULARY)
        own.weight, own.bias = nn.Parameter(weight), nn.Parameter(bias)
        return token_scores._TokenScores.apply(
            states, weight, bias, actions[:4], 0.9, True, False, 32
        )

    assert torch.autograd.gradcheck(
        scores, (hidden[:4].detach().requires_grad_(), layer.weight, layer.bias)
    )


def test_entropy_carries_no_gradient_where_none_is_needed(case):
    layer, hidden, actions = case
    log_probs, entropies = score_tokens(Shell(layer), hidden, actions, 1.0, False)
    assert log_probs.requires_grad and not entropies.requires_grad
    plain = scores_of_logits(layer(hidden), actions, False)
    own = gradients((log_probs, entropies), hidden, layer, with_entropy=False)
    for found, expected in zip(
        own, gradients(plain, hidden, layer, with_entropy=False), strict=True
    ):
        assert (found - expected).abs().max() <= 1e-11 * expected.abs().max()


def test_frozen_weights_get_no_gradient(case):
    """Critic warm-up holds the actor; a frozen hidden state leaves the layer alone to learn."""
    layer, hidden, actions = case
    layer.requires_grad_(False)
    (found,) = gradients(score_tokens(Shell(layer), hidden, actions, 1.0), hidden, layer)
    (expected,) = gradients(scores_of_logits(layer(hidden), actions), hidden, layer)
    assert (found - expected).abs().max() <= 1e-11 * expected.abs().max()
    layer.requires_grad_(True)
    states = hidden.detach()
    found = gradients(score_tokens(Shell(layer), states, actions, 1.0), states, layer)
    expected = gradients(scores_of_logits(layer(states), actions), states, layer)
    assert len(found) == 2 and (found[0] - expected[0]).abs().max() <= 1e-11


def test_capped_logits_and_other_layers_go_by_autograd(case):
    layer, hidden, actions = case
    capped = 5.0 * torch.tanh(layer(hidden) / 5.0)
    for shell, logits in (
        (Shell(layer, softcap=5.0), capped),
        (Shell(nn.Sequential(layer)), layer(hidden)),
    ):
        if not hasattr(shell.layer, "weight"):
            shell.layer.weight = layer.weight
        ours = score_tokens(shell, hidden, actions, 1.0)
        plain = scores_of_logits(logits, actions)
        assert (ours[0] - plain[0]).abs().max() <= 1e-12
        assert (ours[1] - plain[1]).abs().max() <= 1e-12


def test_no_vocabulary_wide_tensor_outlives_a_chunk(monkeypatch):
    """Where nothing is kept, the largest tensor that the graph holds is the weight."""
    monkeypatch.setattr(token_scores, "KEPT_LOGITS", 0)
    layer = nn.Linear(HIDDEN, 5000, bias=False)
    hidden = torch.randn(200, HIDDEN, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
    ):
        score_tokens(Shell(layer), hidden, torch.zeros(200, dtype=torch.int64), 1.0)
    assert max(sizes) == layer.weight.numel()


def test_autocast_multiplies_in_bfloat16_and_keeps_logits_in_float32():
    """The log-probabilities are those of float32; the gradients differ by bfloat16's rounding."""
    torch.manual_seed(1)
    layer = nn.Linear(64, 300, bias=False)
    hidden = torch.randn(50, 64, requires_grad=True)
    actions = torch.randint(300, (50,))
    wide = score_tokens(Shell(layer), hidden, actions, 1.0)
    expected = torch.autograd.grad(wide[0].sum(), [hidden, layer.weight])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = score_tokens(Shell(layer), hidden, actions, 1.0)
    assert torch.equal(narrow[0], wide[0]) and narrow[0].dtype == torch.float32
    found = torch.autograd.grad(narrow[0].sum(), [hidden, layer.weight])
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        assert 0 < (own - other).norm() <= 1e-2 * other.norm()


def test_narrow_weights_get_a_gradient_that_was_added_up_wide(monkeypatch):
    """Over hundreds of chunks: as close to float64 as autograd's, which adds up in one product."""
    torch.manual_seed(2)
    monkeypatch.setattr(token_scores, "CHUNK_LOGITS", 500)
    layer = nn.Linear(16, 100, bias=True).to(torch.bfloat16)
    hidden = torch.randn(2000, 16, dtype=torch.bfloat16)
    actions = torch.randint(100, (2000,))
    exact = nn.Linear(16, 100).double()
    exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    scores_of_logits(exact(hidden.double()), actions)[0].sum().backward()
    score_tokens(Shell(layer), hidden, actions, 1.0)[0].sum().backward()
    for own, wanted in zip(layer.parameters(), exact.parameters(), strict=True):
        assert own.grad.dtype == torch.bfloat16
        assert (own.grad.double() - wanted.grad).norm() <= 5e-3 * wanted.grad.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chunk", [10, 10**6])
@pytest.mark.parametrize("narrow", [False, True])
def test_scores_on_a_gpu_are_those_of_float64(monkeypatch, chunk, narrow):
    torch.manual_seed(3)
    monkeypatch.setattr(token_scores, "CHUNK_LOGITS", chunk)
    layer = nn.Linear(64, 300).cuda()
    hidden = torch.randn(50, 64, device="cuda", requires_grad=True)
    actions = torch.randint(300, (50,), device="cuda")
    exact = torch.log_softmax(hidden.double() @ layer.weight.double().T + layer.bias.double(), -1)
    expected = exact.gather(-1, actions[:, None]).squeeze(-1)
    with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
        found, _ = score_tokens(Shell(layer), hidden, actions, 1.0)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= (3e-2 if narrow else 1e-4)
    own, wanted = (torch.autograd.grad(x.sum(), [hidden, layer.weight]) for x in (found, expected))
    for gradient, other in zip(own, wanted, strict=True):
        assert (gradient - other).norm() <= (2e-2 if narrow else 1e-4) * other.norm()
