"""Low-rank adapters: W + (α/r)·B·A over frozen weights that are shared; merged, saved as peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import small_model
from support.tiny_task import save_actor
from transformers import AutoModelForCausalLM

from tokenenv.models import (
    LoraSettings,
    add_lora,
    copy_sharing_frozen,
    is_adapter_weight,
    load_adapter,
    load_frozen,
    load_trainable,
    merged,
    save_adapter,
)

pytest.importorskip("peft", reason="the extra `lora` is not installed")
TOKENS = torch.arange(3, 12)[None]


def frozen(name: str = "llama", dtype: str = "float64") -> Any:
    return small_model(name, seed=3, dtype=dtype).requires_grad_(False)


def randomize(model: Any, seed: int = 0) -> None:
    """Adapters that change something: B is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_adapter_weight(name):
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 3)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def adapter_folder(folder: Path, base: str, seed: int = 0, rank: int = 2) -> str:
    """An adapter over the model in `base`, with weights that matter."""
    model = add_lora(copy_sharing_frozen(load_frozen(base).model), LoraSettings(rank), "actor")
    randomize(model, seed)
    save_adapter(model, folder, base)
    return str(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_an_adapter_adds_alpha_over_rank_times_b_times_a(name):
    """By hand on every adapted layer, and a new adapter changes no bit."""
    base = frozen(name)
    adapted = add_lora(copy_sharing_frozen(base), LoraSettings(2, alpha=3.0), "actor")
    assert torch.equal(logits(adapted), logits(base))
    randomize(adapted)
    expected = dict(base.state_dict())
    for key, weight in adapted.state_dict().items():
        if ".lora_A." in key:
            layer = key.partition(".lora_A.")[0]
            change = 1.5 * adapted.state_dict()[key.replace("lora_A", "lora_B")] @ weight
            is_transposed = name == "gpt2"  # Conv1D
            expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + (
                change.T if is_transposed else change
            )
    by_hand = small_model(name, seed=3, dtype="float64")
    by_hand.load_state_dict(expected)
    assert not torch.equal(logits(adapted), logits(base))
    torch.testing.assert_close(logits(adapted), logits(by_hand), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits(merged(adapted)), logits(by_hand), rtol=1e-10, atol=1e-10)


def test_two_trees_share_every_frozen_tensor_and_nothing_else():
    base = frozen()
    first, second = (
        add_lora(copy_sharing_frozen(base), LoraSettings(4), "actor") for _ in range(2)
    )
    storages = {weight.untyped_storage().data_ptr() for weight in base.parameters()}
    for tree in (first, second):
        trained = 0
        for name, weight in tree.named_parameters():
            is_shared = weight.untyped_storage().data_ptr() in storages
            assert is_shared != is_adapter_weight(name)
            assert weight.requires_grad == is_adapter_weight(name)
            trained += weight.numel() * weight.requires_grad
        assert 0 < trained < sum(weight.numel() for weight in base.parameters())
    randomize(first)
    assert torch.equal(logits(second), logits(base))
    twin = copy_sharing_frozen(first)
    randomize(twin, seed=1)
    assert not torch.equal(logits(twin), logits(first)), "trained weights are copied"


def test_moving_or_training_one_tree_leaves_the_other():
    base = frozen()
    before = logits(base)
    tree = copy_sharing_frozen(base)
    tree.to(torch.float32)
    tree.requires_grad_(True)
    assert base.dtype == torch.float64 and torch.equal(logits(base), before)
    assert not any(weight.requires_grad for weight in base.parameters())


def test_merging_leaves_the_adapted_model_and_shares_what_was_not_adapted():
    adapted = add_lora(frozen(), LoraSettings(2), "actor")
    randomize(adapted)
    before = logits(adapted)
    plain = merged(adapted)
    assert torch.equal(logits(adapted), before)
    assert type(plain) is type(adapted) and not any("lora" in n for n, _ in plain.named_modules())
    assert (
        plain.model.embed_tokens.weight.data_ptr() == adapted.model.embed_tokens.weight.data_ptr()
    )


def test_adapters_over_half_precision_are_in_float32():
    adapted = add_lora(frozen(dtype="bfloat16"), LoraSettings(2), "actor")
    dtypes = {is_adapter_weight(n): w.dtype for n, w in adapted.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_peft_loads_what_is_saved_and_we_load_what_peft_saves(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = save_actor(tmp_path / "base", "gpt2")
    ours = add_lora(load_trainable(base).model, LoraSettings(3), "actor")
    randomize(ours)
    save_adapter(ours, tmp_path / "ours", base)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours"
    )
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=1e-5)

    config = LoraConfig(r=3, target_modules=["c_proj", "c_attn"], task_type="CAUSAL_LM")
    other = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    randomize(other, seed=2)
    other.eval().save_pretrained(tmp_path / "theirs")
    loaded = load_frozen(str(tmp_path / "theirs"))
    torch.testing.assert_close(logits(loaded.model), logits(other), rtol=1e-5, atol=1e-5)
    assert loaded.eos_token_ids == load_frozen(base).eos_token_ids
    assert loaded.tokenizer.get_vocab() == load_frozen(base).tokenizer.get_vocab()

    again = add_lora(load_trainable(base).model, LoraSettings(3), "actor")
    load_adapter(again, tmp_path / "ours", "it")
    assert torch.equal(logits(again), logits(ours))


def test_an_adapter_of_an_adapter_adds_both(tmp_path):
    base = save_actor(tmp_path / "base", "llama")
    first = adapter_folder(tmp_path / "first", base, seed=1)
    second = adapter_folder(tmp_path / "second", first, seed=2)
    expected = add_lora(load_trainable(first).model, LoraSettings(2), "actor")
    load_adapter(expected, Path(second), "it")
    torch.testing.assert_close(
        logits(load_frozen(second).model), logits(expected), rtol=1e-5, atol=1e-5
    )
    assert not torch.equal(logits(load_frozen(second).model), logits(load_frozen(first).model))


def test_the_base_may_lie_beside_the_adapter(tmp_path, monkeypatch):
    base = save_actor(tmp_path / "base", "llama")
    folder = Path(adapter_folder(tmp_path / "adapter", base))
    expected = logits(load_frozen(str(folder)).model)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "../base"})
    )
    assert torch.equal(logits(load_frozen(str(folder)).model), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora_rank=0"),
        ({"rank": 2.5}, "lora_rank=2.5"),
        ({"rank": 2, "alpha": 0.0}, "lora_alpha=0.0"),
        ({"rank": 2, "target_modules": []}, r"lora_target_modules=\[\]"),
        ({"rank": 2, "target_modules": "q_proj"}, "lora_target_modules='q_proj'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraSettings(**settings)


def test_layers_that_the_model_has_not_are_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"no adapter.*down_proj, gate_proj, k_proj"):
        add_lora(frozen(), LoraSettings(2, target_modules=("c_attn",)), "actor")
    with pytest.raises(ValueError, match="the output layer among them"):
        add_lora(frozen(), LoraSettings(2, target_modules=("lm_head", "q_proj")), "actor")


def test_an_embedding_that_is_tied_to_the_output_layer_is_not_adapted(tmp_path):
    """Merging would change the output layer as well, which the adapted model does not."""
    from peft import LoraConfig, get_peft_model

    base = save_actor(tmp_path / "base", "gpt2")
    tied = load_trainable(base).model
    assert tied.lm_head.weight is tied.transformer.wte.weight
    with pytest.raises(ValueError, match="the input embedding that is tied to it"):
        add_lora(tied, LoraSettings(2, target_modules=("wte",)), "actor")
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["wte"])
    )
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="tied to the output layer"):
        load_frozen(str(tmp_path / "theirs"))


def test_an_adapter_is_loaded_again_when_the_model_below_it_has_changed(tmp_path):
    base = save_actor(tmp_path / "base", "llama")
    first = adapter_folder(tmp_path / "first", base)
    second = adapter_folder(tmp_path / "second", first, seed=1)
    before = logits(load_frozen(second).model)
    changed = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    changed.save_pretrained(base)
    assert not torch.equal(logits(load_frozen(second).model), before)


def test_folders_of_adapters_that_can_not_be_used_are_refused(tmp_path):
    base = save_actor(tmp_path / "base", "llama")
    folder = Path(adapter_folder(tmp_path / "adapter", base))
    config = json.loads((folder / "adapter_config.json").read_text())

    def with_base(path: str | None) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        content = json.dumps({**config, "base_model_name_or_path": path})
        (copy / "adapter_config.json").write_text(content)
        return str(copy)

    with pytest.raises(ValueError, match="does not say which model it adapts"):
        load_frozen(with_base(None))
    with pytest.raises(ValueError, match="adapter of an adapter"):
        load_frozen(with_base(str(tmp_path / "copy")))
    with pytest.raises(ValueError, match="neither a model's folder nor a hub id"):
        load_frozen(with_base("/nowhere/at/all/x"))
    wrong = save_actor(tmp_path / "wrong", "gpt2")
    with pytest.raises(ValueError, match="can't be loaded"):
        load_frozen(with_base(wrong))
    broken = Path(with_base(base))
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="can't be loaded"):
        load_frozen(str(broken))
    with pytest.raises(ValueError, match="can't be read"):
        load_adapter(add_lora(frozen(), LoraSettings(2), "actor"), broken, "it")
    with pytest.raises(ValueError, match="does not hold the adapter"):
        load_adapter(add_lora(frozen(), LoraSettings(3), "actor"), folder, "it")


def test_a_model_in_memory_is_refused_with_what_to_do():
    for load in (load_frozen, load_trainable):
        with pytest.raises(ValueError, match="torch module: save it with save_pretrained"):
            load(frozen())
