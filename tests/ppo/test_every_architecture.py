"""Every architecture that is not refused trains, whole and by adapters, and is reloaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import ARCHITECTURES, Architecture, P, T
from support.tiny_task import tokenizer
from transformers import AutoModelForCausalLM

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.evaluation import HeldOut, evaluate
from tokenenv.models import language_model, load_frozen

PROMPTS = ["w3 w4 w5 w6 w7 w8", "w9", "w10 w11 w12", "w13 w14"]
QUICK = ("gpt2", "llama")


def cases() -> list[Any]:
    accepted = [a for a in ARCHITECTURES if a.refused is None]
    return [
        pytest.param(
            a,
            id=f"{a.model_type}-{a.kind}".replace(" ", "-"),
            marks=[] if a.model_type in QUICK and a.kind == "full attention" else pytest.mark.slow,
        )
        for a in accepted
    ]


def lengths_of(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) / 10 for response in responses]


def save(folder: Path, architecture: Architecture) -> str:
    torch.manual_seed(0)
    model = language_model.build_language_model(architecture.config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    model.generation_config.eos_token_id = [2, 5, 9, 11]
    with language_model.quiet_loading():
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "lora"])
@pytest.mark.parametrize("architecture", cases())
def test_trains_and_is_measured_saved_and_reloaded(architecture, lora, tmp_path, monkeypatch):
    if not architecture.is_known:
        pytest.skip("this transformers has no such architecture")
    # Of some families transformers takes its own tokenizer class, whatever the folder says.
    monkeypatch.setattr(language_model, "load_tokenizer", lambda name, what: tokenizer())
    kwargs = {
        "reference": save(tmp_path / "model", architecture),
        "reward_model": lengths_of,
        "prompts": PROMPTS,
        "max_prompt_tokens": P,
        "max_new_tokens": T,
        "kl_coef": 0.05,
        "scoring": "deferred",
        "device": "cpu",
    }
    model = TokenPPO(
        LMActorCriticPolicy,
        make_vec_env(n_envs=4, seed=0, **kwargs),
        n_steps=T,
        batch_size=2 * T,
        n_epochs=1,
        learning_rate=1e-3,
        policy_kwargs={"lora": lora},
        seed=0,
        device="cpu",
    )
    model.policy.actor_source = kwargs["reference"]
    before = {name: w.clone() for name, w in model.policy.actor.named_parameters()}
    model.learn(4 * T, callback=RLHFCallback())
    trained = {n for n, w in model.policy.actor.named_parameters() if not torch.equal(w, before[n])}
    assert trained and (lora is None or all("lora_" in name for name in trained))
    assert model.num_updates == 1
    held_out = HeldOut.from_env_kwargs(kwargs, 2)
    assert math.isfinite(evaluate(model.policy.actor, held_out, 4, seed=0).objective)

    folder = tmp_path / "policy"
    model.policy.save_pretrained(folder, tokenizer())
    tokens = torch.arange(3, 12)[None]
    # Loading a Youtu, transformers writes zeros over the row of the pad token, which is tied to
    # that token's logit.
    kept = slice(1 if architecture.model_type == "youtu" else 0, None)
    again = LMActorCriticPolicy.from_pretrained(folder)
    with torch.no_grad():
        expected = model.policy.actor(tokens).logits[..., kept]
        for other in (again.actor, AutoModelForCausalLM.from_pretrained(folder)):
            other.eval()
            torch.testing.assert_close(
                other(tokens).logits[..., kept], expected, rtol=1e-4, atol=1e-4
            )
    load_frozen.cache_clear()
