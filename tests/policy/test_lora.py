"""Training an adapter: π = π_ref until the first update, one copy of the weights, all saved."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from support.tiny_task import begin, collect, make_agent, weights
from transformers import AutoModelForCausalLM

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.ppo.precision import computing_in
from tokenenv.models import is_adapter_weight, load_frozen, response_log_probs, save_adapter

pytest.importorskip("peft", reason="the extra `lora` is not installed")
LORA = {"lora": {"rank": 2}}
STEPS = 6 * 20


@pytest.fixture
def kwargs(tiny_task_kwargs, tmp_path):
    """The tiny task with a reference of its own, whose files a test may change."""
    folder = shutil.copytree(tiny_task_kwargs["reference"], tmp_path / "reference")
    return {**tiny_task_kwargs, "reference": str(folder), "scoring": "deferred"}


def reference(kwargs: dict[str, Any]) -> Any:
    return load_frozen(kwargs["reference"]).model


def sequences(model: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    draw = [rng.integers(3, 40, size=n) for n in (5, 8, 3, 6)]
    return draw[:2], draw[2:]


def storages(*models: torch.nn.Module) -> dict[int, int]:
    """Address → bytes of every tensor that models hold."""
    tensors = [t for m in models for t in [*m.parameters(), *m.buffers()]]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_actor_critic_and_reference_are_one_copy_of_the_weights(kwargs, value_head):
    model = make_agent(kwargs, policy_kwargs={**LORA, "value_head": value_head})
    frozen = reference(kwargs)
    once, policy = storages(frozen), model.policy
    everything = storages(frozen, *policy._trunks())
    adapters = sum(
        weight.numel() * weight.element_size()
        for trunk in policy._trunks()
        for name, weight in trunk.named_parameters()
        if is_adapter_weight(name)
    )
    assert once.keys() <= everything.keys()
    assert sum(everything.values()) - sum(once.values()) == adapters
    trained = {id(w) for group in policy.optimizer.param_groups for w in group["params"]}
    heads = list(policy.critic_head.parameters())
    assert trained == {
        *(id(w) for t in policy._trunks() for n, w in t.named_parameters() if is_adapter_weight(n)),
        *(id(w) for w in heads),
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_the_weights_are_shared_there_and_the_kl_starts_at_0(kwargs, dtype):
    settings = {**kwargs, "device": "cuda", "dtype": dtype}
    model = TokenPPO(
        LMActorCriticPolicy,
        make_vec_env(n_envs=6, seed=0, **settings),
        policy_kwargs={**LORA, "dtype": dtype},
        **{"n_steps": 20, "batch_size": 64, "n_epochs": 2, "learning_rate": 1e-3, "seed": 0},
        device="cuda",
    )
    frozen = load_frozen(kwargs["reference"], "cuda", dtype).model
    before = weights(frozen)
    assert storages(frozen).keys() <= storages(model.policy.actor).keys()
    ours, theirs = (response_log_probs(m, *sequences(m), 1.0) for m in (model.policy.actor, frozen))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    adapters = {n: w.clone() for n, w in model.policy.state_dict().items()}
    model.learn(2 * STEPS, callback=RLHFCallback())
    assert all(torch.equal(w, before[name]) for name, w in frozen.state_dict().items())
    assert any(not torch.equal(w, adapters[n]) for n, w in model.policy.state_dict().items())
    assert storages(frozen).keys() <= storages(model.policy.actor).keys()


def test_before_the_first_update_the_kl_is_exactly_0_and_the_reference_never_moves(kwargs):
    model = make_agent(kwargs, policy_kwargs=LORA, learning_rate=1e-2)
    frozen = reference(kwargs)
    before = weights(frozen)
    ours, theirs = (response_log_probs(m, *sequences(m), 1.0) for m in (model.policy.actor, frozen))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    model.learn(2 * STEPS, callback=RLHFCallback())
    after = response_log_probs(model.policy.actor, *sequences(frozen), 1.0)
    assert max(float(abs(a - b).max()) for a, b in zip(after, theirs, strict=True)) > 1e-3
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.state_dict().items())


def test_an_sft_adapter_is_where_training_starts_and_what_the_reference_is(kwargs, tmp_path):
    """Not the model below the adapter: 'adapter off' would be that one."""
    first = make_agent(kwargs, policy_kwargs=LORA, learning_rate=3e-2)
    first.learn(2 * STEPS, callback=RLHFCallback())
    sft = tmp_path / "sft"
    save_adapter(first.policy.actor, sft, kwargs["reference"])
    model = make_agent({**kwargs, "reference": str(sft)}, policy_kwargs=LORA)
    frozen = load_frozen(str(sft)).model
    of_actor, of_sft, of_base = (
        response_log_probs(m, *sequences(m), 1.0)
        for m in (model.policy.actor, frozen, reference(kwargs))
    )
    assert all(np.array_equal(a, b) for a, b in zip(of_actor, of_sft, strict=True))
    assert max(float(abs(a - b).max()) for a, b in zip(of_actor, of_base, strict=True)) > 1e-3
    assert storages(frozen).keys() <= storages(model.policy.actor).keys()
    model.learn(STEPS, callback=RLHFCallback())


@pytest.mark.parametrize("agent", [TokenPPO, PPO])
@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_an_archive_holds_adapters_and_critic_and_loads_over_shared_weights(
    kwargs, tmp_path, agent, value_head
):
    settings = {} if agent is TokenPPO else {"n_steps": 20}
    kwargs["scoring"] = "deferred" if agent is TokenPPO else "step"
    policy_kwargs = {**LORA, "value_head": value_head}
    model = make_agent(kwargs, agent, policy_kwargs=policy_kwargs, **settings)
    model.learn(STEPS, callback=RLHFCallback())
    state = model.policy.state_dict()
    assert all(is_adapter_weight(n) or "value_net" in n or "head" in n for n in state)
    model.save(tmp_path / "model.zip")
    again = agent.load(tmp_path / "model.zip", env=model.env, device="cpu")
    for (name, weight), (_, loaded) in zip(
        model.policy.named_parameters(), again.policy.named_parameters(), strict=True
    ):
        assert torch.equal(weight, loaded), name
    assert storages(reference(kwargs)).keys() <= storages(again.policy.actor).keys()
    again.learn(STEPS, callback=RLHFCallback(), reset_num_timesteps=False)


def test_a_folder_holds_adapter_and_merged_model_and_both_go_on(kwargs, tmp_path):
    from peft import PeftModel

    model = make_agent(kwargs, policy_kwargs=LORA, learning_rate=1e-2)
    model.learn(STEPS, callback=RLHFCallback())
    folder = tmp_path / "policy"
    model.policy.save_pretrained(folder)
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = model.policy.actor(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(kwargs["reference"])
        adapted = PeftModel.from_pretrained(base, folder / "adapter")
        for other in (merged, adapted):
            torch.testing.assert_close(other(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    again = LMActorCriticPolicy.from_pretrained(folder)
    for (name, weight), (_, loaded) in zip(
        model.policy.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(weight, loaded), name
    observation = begin(model) and model._last_obs[:1]
    assert torch.equal(
        again.predict_values(torch.as_tensor(observation)),
        model.policy.predict_values(torch.as_tensor(observation)),
    )
    # The merged model trains whole, and the adapter is a reference.
    make_agent({**kwargs, "reference": str(folder)}).learn(STEPS, callback=RLHFCallback())
    adapter = {**kwargs, "reference": str(folder / "adapter")}
    make_agent(adapter, policy_kwargs=LORA).learn(STEPS, callback=RLHFCallback())


def test_other_weights_below_a_saved_adapter_are_refused(kwargs, tmp_path):
    model = make_agent(kwargs, policy_kwargs=LORA)
    model.learn(STEPS, callback=RLHFCallback())
    model.save(tmp_path / "model.zip")
    model.policy.save_pretrained(tmp_path / "policy")
    changed = AutoModelForCausalLM.from_pretrained(kwargs["reference"])
    with torch.no_grad():
        next(changed.parameters())[3, 0] += 0.5
    changed.save_pretrained(kwargs["reference"])
    with pytest.raises(ValueError, match="not the model that the adapter was trained on"):
        LMActorCriticPolicy.from_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="not the model that the adapter was trained on"):
        TokenPPO.load(tmp_path / "model.zip", env=model.env, device="cpu")


def test_other_weights_below_a_critics_adapter_are_refused(kwargs, tmp_path):
    critic = shutil.copytree(kwargs["reference"], tmp_path / "critic")
    policy_kwargs = {**LORA, "value_head": "separate", "critic": str(critic)}
    model = make_agent(kwargs, policy_kwargs=policy_kwargs)
    model.policy.save_pretrained(tmp_path / "policy")
    LMActorCriticPolicy.from_pretrained(tmp_path / "policy")
    changed = AutoModelForCausalLM.from_pretrained(critic)
    with torch.no_grad():
        next(changed.parameters())[3, 0] += 0.5
    changed.save_pretrained(critic)
    with pytest.raises(ValueError, match=r"critic='.*' is not the model that the adapter"):
        LMActorCriticPolicy.from_pretrained(tmp_path / "policy")


def test_a_policy_is_loaded_from_another_working_directory(kwargs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_agent({**kwargs, "reference": "reference"}, policy_kwargs=LORA)
    model.policy.save_pretrained("policy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    LMActorCriticPolicy.from_pretrained("../policy")
    shutil.rmtree(tmp_path / "reference")
    with pytest.raises(ValueError, match=r"The merged model in '\.\./policy' needs nothing else"):
        LMActorCriticPolicy.from_pretrained("../policy")


def test_algorithms_that_differentiate_all_weights_are_refused(kwargs):
    from agents.rollout.compatibility import refuse_fused_attention

    class TRPO:
        hessian_vector_product = None
        policy = make_agent(kwargs, policy_kwargs=LORA).policy

    with pytest.raises(ValueError, match="TRPO differentiates all weights"):
        refuse_fused_attention(TRPO())


def test_loading_a_whole_state_dict_separates_the_weights_first(kwargs):
    model = make_agent(kwargs, policy_kwargs=LORA)
    frozen = reference(kwargs)
    before = weights(frozen)
    whole = {
        f"actor.{name}": weight + 1.0 for name, weight in model.policy.actor.state_dict().items()
    }
    model.policy.load_state_dict({**model.policy.state_dict(), **whole})
    for name, weight in model.policy.actor.state_dict().items():
        assert torch.equal(weight, whole[f"actor.{name}"]), name
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.state_dict().items())


def test_a_copy_of_the_policy_is_a_policy(kwargs):
    model = make_agent(kwargs, policy_kwargs=LORA)
    twin = copy.deepcopy(model.policy)
    model.learn(STEPS, callback=RLHFCallback())
    names = [n for n, _ in twin.named_parameters() if is_adapter_weight(n)]
    state, moved = twin.state_dict(), model.policy.state_dict()
    assert set(state) == set(moved)
    assert any(not torch.equal(state[name], moved[name]) for name in names)


def test_the_critics_warm_up_leaves_the_adapter(kwargs):
    model = make_agent(kwargs, policy_kwargs=LORA, critic_warmup=1)
    before = {n: w.clone() for n, w in model.policy.state_dict().items()}
    model.learn(STEPS, callback=RLHFCallback())
    for name, weight in model.policy.state_dict().items():
        if "lora" in name:
            assert torch.equal(weight, before[name])
        elif name == "value_net.weight":
            assert not torch.equal(weight, before[name])
    assert all(w.requires_grad == is_adapter_weight(n) for n, w in
               model.policy.actor.named_parameters())  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_changes_no_gradient(kwargs, precision):
    """The layers are computed twice, to the same bits up to rounding."""
    gradients = []
    for checkpointing in (False, True):
        model = make_agent(kwargs, policy_kwargs={"gradient_checkpointing": checkpointing})
        collect(model, begin(model))
        policy = model.policy
        policy.set_training_mode(True)
        calls = []
        layer = policy.actor.base_model.layers[0].input_layernorm
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for batch in model.rollout_buffer.get(None):
            with computing_in(precision, "cpu"):
                _, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
            log_prob.sum().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([w.grad.clone() for w in policy.actor.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "eps"),
    [("adam", "Adam", 1e-5), ("adamw", "AdamW", 1e-5), ("sgd", "SGD", None),
     ("adagrad", "Adagrad", 1e-10)],
)  # fmt: skip
def test_optimizers_by_name(kwargs, name, kind, eps):
    model = make_agent(kwargs, policy_kwargs={"optimizer_class": name})
    optimizer = model.policy.optimizer
    assert type(optimizer) is getattr(torch.optim, kind)
    assert optimizer.defaults["fused"] and optimizer.defaults.get("eps") == eps
    model.learn(STEPS, callback=RLHFCallback())


def test_bad_settings_are_refused(kwargs):
    for lora, message in (
        ({"rank": 0}, "lora_rank=0"),
        ({"r": 2}, "must be a dict with rank"),
        (2, "must be a dict with rank"),
        ({"rank": 2, "target_modules": ["c_attn"]}, "no adapter can be put into"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(kwargs, policy_kwargs={"lora": lora})
    with pytest.raises(ValueError, match="optimizer='lion' is unknown"):
        make_agent(kwargs, policy_kwargs={"optimizer_class": "lion"})
    for settings, message in (
        ({"lora_alpha": 8.0}, "lora_alpha is for adapters"),
        ({"lora_target_modules": ("q_proj",)}, "lora_target_modules is for adapters"),
        ({"lora_rank": 2, "lora_target_modules": (" ",)}, "must be names of linear layers"),
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"dtype": "bfloat16"}, "too coarse"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**settings)
    TrainConfig(dtype="bfloat16", lora_rank=4)


def test_weights_too_coarse_to_move_are_refused_and_why(kwargs):
    """Adam's step of 1e-4 is less than half a unit in the last place of most weights."""
    coarse = {**kwargs, "dtype": "bfloat16"}
    with pytest.raises(ValueError, match=r"too coarse .*\(lora_rank"):
        make_agent(coarse)
    model = make_agent({**coarse, "scoring": "step"}, PPO, n_steps=20)
    with pytest.raises(ValueError, match="too coarse"):
        model.learn(STEPS, callback=RLHFCallback())
    adapted = make_agent(coarse, policy_kwargs=LORA, learning_rate=1e-4)
    before = {n: w.clone() for n, w in adapted.policy.state_dict().items()}
    adapted.learn(STEPS, callback=RLHFCallback())
    moved = [
        (weight != before[name]).float().mean().item()
        for name, weight in adapted.policy.state_dict().items()
        if "lora_B" in name
    ]
    assert min(moved) > 0.9
    weight = torch.full((1000,), 0.02, dtype=torch.bfloat16)
    assert torch.equal(weight + 1e-5, weight) and not math.isclose(0.02 + 1e-5, 0.02)
    assert Path(kwargs["reference"]).is_dir()
