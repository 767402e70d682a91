"""The check of a model's cached step: who is refused, in which unit, and with which tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import ARCHITECTURES, P, T
from support.tiny_task import make_agent, task_kwargs, tokenizer
from torch import nn

from agents import LMActorCriticPolicy
from tokenenv.models import cache_check, language_model
from tokenenv.models.cache_check import UnfaithfulModelError, check_cached_step


def config_of(model_type: str, kind: str = "") -> dict[str, Any]:
    return next(
        a for a in ARCHITECTURES if a.model_type == model_type and kind in a.kind and a.is_known
    ).config()


def headless(config: dict[str, Any], dtype: str = "float32") -> Any:
    """A trunk in a causal LM's shell, without an output layer, as an untied critic is."""
    model = language_model.build_language_model(config, dtype)
    model.set_output_embeddings(nn.Identity())
    return model


@pytest.fixture(autouse=True)
def nothing_has_passed(monkeypatch):
    monkeypatch.setattr(cache_check, "_passed", {})


@pytest.mark.parametrize("model_type", ["gptj", "phi", "gpt_bigcode", "deepseek_v3", "mpt"])
def test_a_right_critic_without_logits_passes_by_itself(model_type):
    check_cached_step(headless(config_of(model_type)), P, T, "critic")


def save(folder: Path, config: dict[str, Any]) -> str:
    model = language_model.build_language_model(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def agent_with_critic(tiny_folder: Path, actor: str, critic: str) -> LMActorCriticPolicy:
    kwargs = task_kwargs(tiny_folder, "llama")
    policy_kwargs = {"value_head": "separate", "actor": actor, "critic": critic}
    return make_agent(kwargs, policy_kwargs=policy_kwargs).policy


def test_a_right_critic_of_another_kind_is_accepted(tmp_path, tiny_folder):
    wide = save(tmp_path / "actor", config_of("gpt_neo", "wider"))
    critic = save(tmp_path / "critic", {**config_of("gptj"), "tie_word_embeddings": False})
    assert agent_with_critic(tiny_folder, wide, critic).critic is not None
    biased = {**config_of("llama"), "attention_bias": True}
    same = save(tmp_path / "biased", biased)
    other = save(tmp_path / "padded", {**biased, "pad_token_id": 3})
    assert agent_with_critic(tiny_folder, same, other).critic is not None


def test_a_wrong_critic_is_refused_when_the_policy_is_made(tmp_path, tiny_folder):
    config = {**config_of("gpt_neo", "within"), "tie_word_embeddings": False}
    critic = save(tmp_path / "critic", config)
    actor = task_kwargs(tiny_folder, "llama")["reference"]
    with pytest.raises(UnfaithfulModelError, match="token by token") as refusal:
        agent_with_critic(tiny_folder, actor, critic)
    message = str(refusal.value)
    assert "of its largest hidden state" in message and "nats" not in message
    assert "values would be wrong" in message


def test_an_actor_that_has_passed_does_not_vouch_for_a_critic_without_logits():
    config = config_of("gptj")
    check_cached_step(language_model.build_language_model(config), P, T, "actor")
    check_cached_step(headless(config), P, T, "critic")
    assert len(cache_check._passed) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["gptj", "phi", "mixtral", "gpt_bigcode"])
def test_half_precision_passes_with_and_without_logits(model_type, dtype, monkeypatch):
    monkeypatch.setattr(cache_check, "_PROBE_PARAMETERS", 0)
    config = config_of(model_type)
    check_cached_step(language_model.build_language_model(config, dtype), P, T, "actor")
    check_cached_step(headless(config, dtype), P, T, "critic")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_hides_no_fault_on_rare_tokens(dtype, monkeypatch):
    """Rare tokens lose half a nat and more, and the mean KL is within its bound all the same."""
    monkeypatch.setattr(cache_check, "_PROBE_PARAMETERS", 0)
    model = language_model.build_language_model(config_of("gpt_neo", "within"), dtype)
    rare = torch.arange(3, 12)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.1)
        head = nn.Linear(32, 40, dtype=model.dtype)
        head.weight.zero_()
        head.weight[rare] = 0.3 * torch.randn(len(rare), 32, dtype=model.dtype)
        head.bias.zero_()
        head.bias[rare] = -9.0
    model.set_output_embeddings(head)
    with pytest.raises(UnfaithfulModelError, match="token by token"):
        check_cached_step(model, P, T, "actor")


def test_a_badly_conditioned_model_is_judged_by_its_own_rounding(monkeypatch):
    monkeypatch.setattr(cache_check, "_PROBE_PARAMETERS", 0)
    config = {**config_of("llama"), "attention_bias": True, "num_hidden_layers": 8}
    for seed in range(3):
        torch.manual_seed(seed)
        model = language_model.build_language_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 6.0 / parameter.shape[-1] ** 0.5)
        cache_check._passed.clear()
        check_cached_step(model, P, T, "actor")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_machine_without_memory_is_no_fault_of_the_architecture(error, monkeypatch):
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cache_check, "StepComparison", fails)
    model = language_model.build_language_model(config_of("phi"))
    with pytest.raises(type(error), match=str(error)):
        check_cached_step(model, P, T, "actor")


@pytest.mark.parametrize("where", ["load_trainable", "_check_logits"])
def test_nor_of_the_folder_that_is_loaded(where, tiny_task_kwargs, monkeypatch):
    error = RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )

    def fails(*_: Any, **__: Any) -> None:
        raise error

    if where == "load_trainable":
        monkeypatch.setattr(language_model.AutoModelForCausalLM, "from_pretrained", fails)
    else:
        monkeypatch.setattr(language_model, "trunk_hidden_states", fails)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        language_model.load_trainable(tiny_task_kwargs["reference"])


def test_users_choice_of_float32_products_is_put_aside_and_kept(monkeypatch):
    seen = []

    class Passes:
        def __init__(self, *_: Any) -> None:
            seen.append(torch.backends.cuda.matmul.fp32_precision)

        def fault(self, cached: bool) -> None:
            return None

    monkeypatch.setattr(cache_check, "StepComparison", Passes)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check_cached_step(language_model.build_language_model(config_of("phi")), P, T, "actor")
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee"]
