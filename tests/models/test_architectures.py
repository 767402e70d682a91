"""An architecture gives the log-probabilities of its plain forward, or is refused when made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from support.architectures import ARCHITECTURES, Architecture, P, T, table
from support.tiny_task import tokenizer
from transformers import AutoModelForCausalLM

from agents import LMActorCriticPolicy
from tokenenv.models import language_model
from tokenenv.models.cache_check import TESTED_FAMILIES, check_cached_step, is_tested

TOLERANCE = 1e-4
PROMPTS = ["w3 w4 w5 w6 w7 w8", "w9", "w10 w11 w12", "w13 w14"]


def name_of(architecture: Architecture) -> str:
    return f"{architecture.model_type}-{architecture.kind}".replace(" ", "-")


def cases() -> list[Any]:
    return [
        pytest.param(a, id=name_of(a), marks=[pytest.mark.slow] if a.is_slow else [])
        for a in ARCHITECTURES
    ]


def save(folder: Path, architecture: Architecture) -> Any:
    """A random model with weights large enough to matter, as transformers loads it."""
    torch.manual_seed(0)
    model = language_model.build_language_model(architecture.config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    with language_model.quiet_loading():
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder)


def lengths_of(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def make_env(folder: Path) -> Any:
    env = gym.make_vec(
        "TokenRLHF-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        reference=str(folder),
        reward_model=lengths_of,
        prompts=PROMPTS,
        max_prompt_tokens=P,
        max_new_tokens=T,
        device="cpu",
    )
    env.unwrapped.mdp.episodes.is_eos[:] = False  # no response ends early
    return env


@torch.no_grad()
def plain_log_probs(model: Any, sequence: np.ndarray, first: int) -> np.ndarray:
    """Of every token from column `first` on, by transformers' own forward of that row alone."""
    logits = model(input_ids=torch.as_tensor(sequence)[None], use_cache=False).logits[0]
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return np.array([float(log_probs[i - 1, sequence[i]]) for i in range(first, len(sequence))])


@pytest.mark.parametrize("architecture", cases())
def test_equals_plain_forwards_or_is_refused_when_made(architecture, tmp_path, monkeypatch):
    if not architecture.is_known:
        pytest.skip("this transformers has no such architecture")
    # Of some families transformers takes its own tokenizer class, whatever the folder says.
    monkeypatch.setattr(language_model, "load_tokenizer", lambda name, what: tokenizer())
    model = save(tmp_path, architecture)
    if architecture.refused is not None:
        with pytest.raises(ValueError, match=architecture.refused) as refusal:
            make_env(tmp_path)
        assert type(model).__name__ in str(refusal.value)
        return
    env = make_env(tmp_path)
    policy = LMActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 0.0,
        actor=str(tmp_path),
    )
    observations, _ = env.reset(seed=0)
    found: dict[str, list[np.ndarray]] = {"reference": [], "actor": [], "update": []}
    states, taken = [], []
    for _ in range(T):
        actions, _, log_probs = policy.forward(torch.as_tensor(observations))
        states.append(observations.copy())
        taken.append(actions)
        observations, _, ended, _, infos = env.step(actions.numpy())
        found["actor"].append(log_probs.numpy())
        found["reference"].append(infos["ref_logprob"])
    assert ended.all()
    with torch.no_grad():
        _, scored, _ = policy.evaluate_actions(
            torch.as_tensor(np.concatenate(states)), torch.cat(taken)
        )
    found["update"] = list(scored.reshape(T, -1).numpy())
    for row in range(4):
        last = states[-1][row]
        sequence = np.append(last[last >= 0], int(taken[-1][row]))
        expected = plain_log_probs(model, sequence, len(sequence) - T)
        for what, log_probs in found.items():
            difference = np.abs(np.array(log_probs)[:, row] - expected).max()
            assert difference <= TOLERANCE, f"{what}, row {row}"


def test_the_table_has_at_least_fifty_kinds():
    assert len(ARCHITECTURES) >= 50
    assert len({name_of(a) for a in ARCHITECTURES}) == len(ARCHITECTURES)


def test_the_documented_table_is_this_one():
    documented = Path(__file__).parents[2] / "docs" / "architectures.md"
    assert documented.read_text(encoding="utf-8") == table(), (
        "python tests/support/architectures.py > docs/architectures.md"
    )


def test_every_family_that_is_not_checked_again_is_in_the_table_as_equal():
    equal = {a.model_type for a in ARCHITECTURES if a.refused is None}
    assert set(TESTED_FAMILIES) <= equal


@pytest.mark.parametrize("family", TESTED_FAMILIES)
def test_settings_that_no_test_covers_are_checked(family):
    """A setting beside sizes and windows, of any name, takes a model off the tested list."""
    config = next(a for a in ARCHITECTURES if a.model_type == family).config()
    model = language_model.build_language_model(config)
    assert is_tested(model)
    model.config._attn_implementation = "flex_attention"
    assert not is_tested(model)
    model.config._attn_implementation = "sdpa"
    model.config.something_new = 1
    assert not is_tested(model)


def test_rotary_frequencies_that_are_not_plain_are_checked():
    for architecture in ARCHITECTURES:
        if architecture.model_type == "llama" and architecture.is_known:
            model = language_model.build_language_model(architecture.config())
            assert is_tested(model) == ("scaling" not in architecture.kind)


def test_a_sliding_window_is_tested_where_it_is_shorter_than_the_sequences():
    windows = [a for a in ARCHITECTURES if "window" in a.kind and a.refused is None]
    config = next(a for a in windows if a.model_type == "mistral").config()
    assert 0 < config["sliding_window"] < P + T


def test_half_precision_follows_its_rounding():
    for dtype in ("bfloat16", "float16", "float64"):
        config = next(a for a in ARCHITECTURES if a.model_type == "phi").config()
        model = language_model.build_language_model(config, dtype)
        check_cached_step(model, P, T, "reference")
