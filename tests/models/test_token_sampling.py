"""Tokens drawn by inversion: the right token for every uniform number, in the right frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tolerances import assert_close

from tokenenv.models import log_probs as module
from tokenenv.models.log_probs import BLOCK, LOGITS_AT_ONCE, sample_tokens

SIZES = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000)


def distribution(vocabulary: int, seed: int = 0) -> torch.Tensor:
    """(V,) log-probabilities; where there is more than one token, some have probability 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(vocabulary, generator=generator)
    if vocabulary > 1:
        logits[torch.randperm(vocabulary, generator=generator)[: vocabulary // 3 or 1]] = -torch.inf
    return torch.log_softmax(logits, dim=-1)


@pytest.mark.parametrize("vocabulary", SIZES)
def test_every_uniform_number_finds_its_token(vocabulary, monkeypatch):
    """The middles of the tokens' shares of [0, 1), by numpy's cumulative sum, and the ends."""
    row = distribution(vocabulary)
    probabilities = row.exp().double().numpy()
    ends = np.cumsum(probabilities) / probabilities.sum()
    tokens = np.flatnonzero(probabilities)
    middles = ends[tokens] - probabilities[tokens] / 2
    uniform = np.concatenate([middles, [0.0, 1.0 - 2.0**-53]])
    expected = np.concatenate([tokens, tokens[[0, -1]]])
    drawn = torch.as_tensor(uniform)[:, None]
    monkeypatch.setattr(module.torch, "rand", lambda *_, **__: drawn)
    found, log_probs = sample_tokens(row.expand(len(uniform), -1))
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(log_probs, row[found])


@pytest.mark.parametrize("vocabulary", [6, BLOCK + 1, 500])
def test_frequencies_are_the_probabilities(vocabulary):
    """Pearson's χ² of 100,000 draws: mean V − 1, standard deviation √(2(V − 1)); five of them."""
    row, draws = distribution(vocabulary, seed=1), 100_000
    found, _ = sample_tokens(row.expand(draws, -1), torch.Generator().manual_seed(2))
    counts = torch.bincount(found, minlength=vocabulary).double()
    expected = row.exp().double() * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_squared = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert abs(chi_squared - freedom) <= 5 * (2 * freedom) ** 0.5


def test_rows_are_drawn_independently_and_a_generator_repeats_them():
    rows = torch.log_softmax(torch.randn(2000, 50), dim=-1)
    first, _ = sample_tokens(rows, torch.Generator().manual_seed(3))
    again, _ = sample_tokens(rows, torch.Generator().manual_seed(3))
    other, _ = sample_tokens(rows, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert 0 < (first == other).float().mean() < 0.5


def test_half_precision_log_probs_draw_too():
    row = torch.log_softmax(torch.randn(300), dim=-1).to(torch.bfloat16)
    found, log_probs = sample_tokens(row.expand(50, -1))
    assert log_probs.dtype == torch.bfloat16 and int(found.max()) < 300


def test_scoring_holds_no_more_logits_than_it_says(monkeypatch):
    """Whatever the size of the chunks, the same numbers; and no chunk is larger than asked for."""
    layer = torch.nn.Linear(4, 30)
    sizes: list[int] = []

    class Shell:
        config = None

        def get_output_embeddings(self):
            return layer

    def counted(*args):
        logits = tempered(*args)
        sizes.append(logits.numel())
        return logits

    tempered = module.tempered_logits
    monkeypatch.setattr(module, "tempered_logits", counted)
    hidden, tokens = torch.randn(50, 4), torch.randint(30, (50,))
    with torch.no_grad():
        whole = module.token_log_probs(Shell(), hidden, tokens, 0.7)
        assert sizes == [50 * 30] and sizes[0] <= LOGITS_AT_ONCE
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 100)
        parts = module.token_log_probs(Shell(), hidden, tokens, 0.7)
    assert max(sizes[1:]) == 90 and sum(sizes[1:]) == 1500
    assert_close(parts, whole)


def test_nan_finds_a_token_all_the_same_and_is_told_by_its_log_prob():
    row = torch.full((3, 100), torch.nan)
    tokens, log_probs = sample_tokens(row)
    assert int(tokens.max()) < 100 and bool(log_probs.isnan().all())
    with pytest.raises(ValueError, match="the logits of a model are NaN"):
        module.refuse_nan(log_probs, "a model")
