"""The slot cache gives what a full forward of every sequence gives, whatever the episodes' ages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.models import ARCHITECTURES, small_model

from tokenenv.episodes import EpisodeBatch
from tokenenv.models.forward import trunk_hidden_states
from tokenenv.models.language_model import build_language_model
from tokenenv.models.slot_decoder import SlotDecoder

N, P, T, V = 5, 9, 14, 40


def start(episodes: EpisodeBatch, row: int, rng: np.random.Generator) -> None:
    episodes.start(row, rng.integers(3, V, size=rng.integers(1, P + 1)))


def full_forward(model, observations: np.ndarray) -> torch.Tensor:
    """Each sequence alone and unpadded through the whole model: the slowest and plainest way."""
    rows = []
    with torch.no_grad():
        for row in observations:
            tokens = torch.as_tensor(row[row >= 0])[None]
            rows.append(
                model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
            )
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_a_full_forward_with_episodes_of_all_ages(name, attention, rng):
    model = small_model(name)
    model.set_attn_implementation(attention)
    episodes = EpisodeBatch(N, P, T, V, eos_token_ids=[2])
    decoder = SlotDecoder(model, N, P + T)
    for row in range(N):
        start(episodes, row, rng)
    for step in range(3 * T):
        expected = full_forward(model, episodes.observations)
        found = decoder.hidden_states(episodes.observations)
        assert (found - expected).abs().max() <= 1e-5, f"step {step}"
        for row in np.flatnonzero(~episodes.running):
            start(episodes, row, rng)
        running = np.flatnonzero(episodes.response_lengths > 0) if step % 7 == 3 else np.arange(N)
        actions = rng.integers(0, V, size=N)
        actions[rng.random(N) < 0.1] = 2  # EOS: an end at any age
        episodes.append(actions, running)
        for row in np.flatnonzero(~episodes.running):
            start(episodes, row, rng)
        if step == 11:  # a reset in the middle of an episode
            start(episodes, 2, rng)


def test_one_forward_per_step_once_the_prompts_are_in(rng):
    model = small_model("llama")
    episodes = EpisodeBatch(N, P, T, V, eos_token_ids=[])
    decoder = SlotDecoder(model, N, P + T)
    for row in range(N):
        start(episodes, row, rng)
    for step in range(T):
        decoder.hidden_states(episodes.observations)
        assert decoder.forwards == step + 1
        decoder.hidden_states(episodes.observations)  # nothing new: answered from memory
        assert decoder.forwards == step + 1
        episodes.append(rng.integers(0, V, size=N), np.arange(N))


def test_dropping_the_cache_changes_nothing(rng):
    model = small_model("gpt2")
    episodes = EpisodeBatch(N, P, T, V, eos_token_ids=[])
    decoder = SlotDecoder(model, N, P + T)
    for row in range(N):
        start(episodes, row, rng)
    for _ in range(5):
        kept = decoder.hidden_states(episodes.observations).clone()
        episodes.append(rng.integers(0, V, size=N), np.arange(N))
    kept = decoder.hidden_states(episodes.observations).clone()
    decoder.drop()
    assert (decoder.hidden_states(episodes.observations) - kept).abs().max() <= 1e-5


def test_another_prompt_of_the_same_length_is_not_mistaken_for_a_continuation():
    model = small_model("gpt2")
    decoder = SlotDecoder(model, 1, P + T)
    episodes = EpisodeBatch(1, P, T, V, eos_token_ids=[])
    episodes.start(0, np.array([5, 6, 7]))
    decoder.hidden_states(episodes.observations)
    episodes.start(0, np.array([5, 9, 7]))
    episodes.append(np.array([4]), np.array([0]))
    expected = full_forward(model, episodes.observations)
    assert (decoder.hidden_states(episodes.observations) - expected).abs().max() <= 1e-5


def test_right_padding_changes_nothing(rng):
    for name in ARCHITECTURES:
        model = small_model(name)
        tokens = torch.as_tensor(rng.integers(3, V, size=(1, 11)))
        padded = torch.cat([tokens, torch.full((1, 6), 7)], dim=1)
        with torch.no_grad():
            alone = trunk_hidden_states(model, tokens)
            beside = trunk_hidden_states(model, padded)[:, :11]
        assert (alone - beside).abs().max() <= 1e-5, name


def test_an_attention_kind_that_the_cache_cannot_follow_is_refused():
    config = {**ARCHITECTURES["gemma3-window-6"]}
    model = build_language_model(config)
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match="chunked_attention"):
        SlotDecoder(model, 1, P + T)
