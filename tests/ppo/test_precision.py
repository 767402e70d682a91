"""bfloat16 updates: what is narrow, what stays wide, and ratios that begin at one all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from support.tiny_task import begin, collect, make_agent, perturb, save_actor, weights
from torch import nn

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.policy.token_scores import score_tokens
from agents.ppo import precision as precision_choice
from agents.ppo.precision import computing_in
from agents.ppo.update import Update
from tokenenv.models.language_model import load_trainable
from tokenenv.models.packing import PackedSequences

ROOMY = 10**6
"""A batch size that no rollout reaches: one minibatch."""


def log_probs_in(model, precision: str) -> np.ndarray:
    """Of the update's tokens, in the buffer's order, as an update in `precision` computes them."""
    buffer = model.rollout_buffer
    batch = next(iter(buffer.get(None)))
    with torch.no_grad(), computing_in(precision, "cpu"):
        found = model.policy.evaluate_actions(batch.observations, batch.actions.flatten())[1]
    return found.numpy()


@pytest.mark.parametrize("batch_size", [20, ROOMY])
@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize("micro_batch_tokens", [None, 40])
def test_the_first_ratio_of_a_bfloat16_update_is_one(
    tiny_task_kwargs, batch_size, cut, micro_batch_tokens
):
    """Not so with the log-probabilities that sampling computed in float32."""
    model = make_agent(
        tiny_task_kwargs,
        n_steps=9,
        n_epochs=1,
        batch_size=batch_size,
        learning_rate=0.0,
        precision="bfloat16",
        micro_batch_tokens=micro_batch_tokens,
        rollout_buffer_kwargs={"cut": cut},
    )
    perturb(model.policy)
    callback = begin(model)
    for _ in range(3):
        buffer = collect(model, callback)
        sampled = buffer.log_probs.copy()
        model.train()
        assert abs(model.logger.name_to_value["train/approx_kl"]) <= 1e-6
        assert model.logger.name_to_value["train/clip_fraction"] == 0.0
        # Batches of other lengths are rounded alike: a row's products do not know its neighbours'.
        assert np.abs(buffer.old_log_probs - log_probs_in(model, "bfloat16")).max() <= 1e-4
        assert 1e-4 < np.abs(buffer.old_log_probs - sampled).max() <= 0.2
        assert np.array_equal(buffer.log_probs, sampled)


@pytest.mark.parametrize("change", [("batch_size", 20), ("update_precision", "bfloat16")])
def test_old_log_probs_follow_what_changes_between_rollout_and_update(tiny_task_kwargs, change):
    """A callback lowered `batch_size` after the rollout, or chose the other precision."""
    precision = "float32" if change[0] == "update_precision" else "bfloat16"
    model = make_agent(
        tiny_task_kwargs,
        n_steps=9,
        n_epochs=1,
        batch_size=ROOMY if precision == "bfloat16" else 20,
        learning_rate=0.0,
        precision=precision,
    )
    perturb(model.policy)
    buffer = collect(model, begin(model))
    setattr(model, *change)
    model.train()
    assert abs(model.logger.name_to_value["train/approx_kl"]) <= 1e-6
    assert np.abs(buffer.old_log_probs - log_probs_in(model, "bfloat16")).max() <= 1e-4


def test_what_waited_keeps_the_log_probs_of_the_weights_that_sampled_it(tiny_task_kwargs):
    """Carried tokens: computed in the update's precision, before the weights moved on."""
    model = make_agent(
        tiny_task_kwargs,
        n_steps=9,
        precision="bfloat16",
        batch_size=ROOMY,
        rollout_buffer_kwargs={"cut": "carry"},
    )
    perturb(model.policy)
    callback = begin(model)
    collect(model, callback)
    waiting = [s for s in model.rollout_buffer._open if s is not None and len(s.actions)]
    assert waiting
    kept = {s.env: s.old_log_probs.copy() for s in waiting}
    perturb(model.policy)  # as an update does
    buffer = collect(model, callback)
    now = log_probs_in(model, "bfloat16")
    carried = 0
    for index in range(len(buffer.lengths)):
        begins, ends = buffer.offsets[index], buffer.offsets[index + 1]
        old = buffer.old_log_probs[begins:ends]
        for own in kept.values():
            if len(own) < len(old) and np.array_equal(old[: len(own)], own):
                carried += 1
                assert np.abs(now[begins : begins + len(own)] - own).max() > 1e-2
                assert np.abs(now[begins + len(own) : ends] - old[len(own) :]).max() <= 1e-4
    assert carried == len(kept)


def test_a_float32_update_takes_the_log_probs_of_sampling(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, n_steps=9)
    buffer = collect(model, begin(model))
    assert buffer.old_log_probs is buffer.log_probs
    assert model.rollout_buffer.binding.update_log_probs() is None
    model.train()
    assert buffer.old_log_probs is buffer.log_probs


def test_weights_gradients_values_and_log_probs_stay_float32(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, precision="bfloat16", n_steps=9)
    collect(model, begin(model))
    batch = next(iter(model.rollout_buffer.get(None)))
    with computing_in("bfloat16", "cpu"):
        values, log_probs, entropies = model.policy.evaluate_actions(
            batch.observations, batch.actions.flatten()
        )
    assert {values.dtype, log_probs.dtype, entropies.dtype} == {torch.float32}
    (log_probs.sum() + values.sum()).backward()
    assert {p.dtype for p in model.policy.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.policy.parameters() if p.grad is not None} == {
        torch.float32
    }


def test_bfloat16_changes_an_update_by_its_rounding_and_no_more(tiny_task_kwargs):
    """The gradient of the first minibatch points where that of float32 does."""
    found = []
    for precision in ("float32", "bfloat16"):
        model = make_agent(tiny_task_kwargs, precision=precision, n_steps=20, batch_size=ROOMY)
        perturb(model.policy)
        collect(model, begin(model))
        batch = next(iter(model.rollout_buffer.get(ROOMY)))
        update = Update(model)
        update.first_pass_is_old = precision == "bfloat16"
        update.accumulate_gradients(batch)
        grads = [p.grad.flatten() for p in model.policy.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    wide, narrow = found
    assert torch.cosine_similarity(wide, narrow, dim=0) >= 0.995
    assert (wide - narrow).norm() > 1e-5 * wide.norm()


def test_attention_on_a_cpu_stays_in_float32(tiny_folder):
    """Its backward pass is several times slower in bfloat16; the results are those of float32's."""
    layer = nn.functional.scaled_dot_product_attention
    query = torch.randn(2, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    with computing_in("bfloat16", "cpu"):
        found = layer(query, query, query, is_causal=True)
    wide = query.float()
    expected = layer(wide, wide, wide, is_causal=True).to(torch.bfloat16)
    assert torch.equal(found, expected)
    model = load_trainable(save_actor(tiny_folder / "llama", "llama")).model
    with computing_in("bfloat16", "cpu"), torch.no_grad():
        narrow = model(torch.tensor([[3, 4, 5, 6]])).logits
    assert narrow.dtype == torch.bfloat16


def test_float32_computes_as_if_nothing_were_there():
    with computing_in("float32", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32


# auto ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_auto_takes_what_it_measured_to_be_faster_and_says_so(
    tiny_task_kwargs, monkeypatch, capsys, faster
):
    slower = {"float32": "bfloat16", "bfloat16": "float32"}[faster]
    seconds = {faster: 1.0, slower: 1.5}
    monkeypatch.setattr(precision_choice, "seconds_by_precision", lambda *_: seconds)
    model = make_agent(tiny_task_kwargs, precision="auto", n_steps=9, verbose=1)
    assert model.update_precision == "float32"
    before = weights(model.policy)
    callback = begin(model)
    assert model.update_precision == faster
    assert f"updates compute in {faster}" in capsys.readouterr().out
    assert all(torch.equal(before[k], v) for k, v in weights(model.policy).items())
    monkeypatch.setattr(precision_choice, "seconds_by_precision", None)
    collect(model, callback)
    model.train()
    begin(model)  # a second training does not measure again


def test_auto_measures_both_for_real_and_leaves_no_gradient(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, precision="auto", n_steps=9)
    begin(model)
    assert model.update_precision in ("float32", "bfloat16")
    assert all(p.grad is None for p in model.policy.parameters())


def test_the_measured_batch_is_as_full_as_an_update_can_be():
    packed, actions = precision_choice._random_batch(50, 10, 6, 40, torch.device("cpu"))
    assert isinstance(packed, PackedSequences)
    assert packed.tokens.shape == (4, 9) and len(packed) == len(actions) == 24
    assert packed.columns.min() == 3 and packed.columns.max() == 8


def test_the_measured_batch_is_no_larger_than_a_micro_batch_prompts_included():
    packed, _ = precision_choice._random_batch(50, 528, 16, 1024, torch.device("cpu"))
    assert packed.tokens.numel() == 527


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "fp16"}, "choose one of 'float32', 'bfloat16', 'auto'"),
        (
            {"precision": "bfloat16", "policy_kwargs": {"dtype": "float64"}},
            "dtype='float64' are the weights'",
        ),
    ],
)
def test_what_can_not_be_computed_is_refused(tiny_task_kwargs, given, words):
    with pytest.raises(ValueError, match="precision=") as error:
        make_agent(tiny_task_kwargs, TokenPPO, **given)
    assert words in str(error.value)


def test_scores_under_autocast_need_no_autocast_in_the_backward_pass():
    layer = nn.Linear(8, 20, bias=False)
    shell = type("Shell", (), {"config": None, "get_output_embeddings": lambda _self: layer})()
    hidden = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _ = score_tokens(shell, hidden, torch.zeros(4, dtype=torch.int64), 1.0)
    log_probs.sum().backward()
    assert hidden.grad.dtype == torch.float32


# Together with the rest ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [30, ROOMY])
@pytest.mark.parametrize(
    "given",
    [
        {"policy_kwargs": {"value_head": "separate"}, "critic_warmup": 1},
        {"critic_warmup": 1},
        {"use_kl_loss": True, "kl_estimator": "k3"},
        {"use_kl_loss": True, "kl_estimator": "full", "micro_batch_tokens": 40},
        {"target_kl": 0.1},
        {
            "rollout_buffer_kwargs": {
                "cut": "carry",
                "advantage_estimator": "rloo",
                "group_size": 2,
            }
        },
    ],
    ids=["separate critic", "warm-up", "k3 loss", "full loss", "target_kl", "groups"],
)
def test_ratios_begin_at_one_whatever_else_is_on(tiny_task_kwargs, given, batch_size):
    kwargs = dict(tiny_task_kwargs)
    if given.get("use_kl_loss"):
        kwargs["kl_shaping"] = "none"
    if "rollout_buffer_kwargs" in given:
        kwargs["group_size"] = 2
    options = {"n_steps": 20, "n_epochs": 1, "batch_size": batch_size, "learning_rate": 0.0}
    model = make_agent(kwargs, precision="bfloat16", **{**options, **given})
    perturb(model.policy)
    callback = begin(model)
    for _ in range(2):
        collect(model, callback)
        model.train()
        assert abs(model.logger.name_to_value["train/approx_kl"]) <= 1e-7


def test_the_full_kl_of_the_reference_to_itself_is_zero_in_bfloat16_too(tiny_task_kwargs):
    model = make_agent(
        {**tiny_task_kwargs, "kl_shaping": "none"},
        n_steps=9,
        n_epochs=1,
        precision="bfloat16",
        use_kl_loss=True,
        kl_estimator="full",
    )
    collect(model, begin(model))
    model.train()
    assert abs(model.logger.name_to_value["train/kl_loss"]) <= 1e-7


@pytest.mark.parametrize(
    ("saved", "told", "expected"),
    [
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", None, "bfloat16"),
    ],
)
def test_a_loaded_model_computes_in_the_precision_it_is_told(
    tiny_task_kwargs, tmp_path, saved, told, expected
):
    model = make_agent(tiny_task_kwargs, precision=saved, n_steps=9)
    model.save(tmp_path / "model")
    given = {} if told is None else {"precision": told}
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu", **given)
    assert loaded.update_precision == expected
    perturb(loaded.policy)
    collect(loaded, begin(loaded))
    loaded.train()
    assert (loaded.rollout_buffer.old_log_probs is loaded.rollout_buffer.log_probs) == (
        expected == "float32"
    )


def test_a_loaded_model_measures_auto_again(tiny_task_kwargs, tmp_path, monkeypatch):
    seconds = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision_choice, "seconds_by_precision", lambda *_: dict(seconds))
    model = make_agent(tiny_task_kwargs, precision="auto", n_steps=9)
    begin(model)
    model.save(tmp_path / "model")
    seconds["float32"] = 0.5
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu")
    begin(loaded)
    assert (model.update_precision, loaded.update_precision) == ("bfloat16", "float32")


@pytest.mark.parametrize("order", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_what_waits_survives_a_change_of_precision(tiny_task_kwargs, order):
    """Its steps of before keep the log-probabilities of then, token by token."""
    model = make_agent(
        tiny_task_kwargs, n_steps=9, precision=order[0], rollout_buffer_kwargs={"cut": "carry"}
    )
    perturb(model.policy)
    collect(model, begin(model))
    assert any(s is not None and len(s.actions) for s in model.rollout_buffer._open)
    model.update_precision = order[1]
    _, callback = model._setup_learn(10**6, [RLHFCallback()], reset_num_timesteps=False)
    callback.on_training_start({}, {})
    buffer = collect(model, callback)
    assert len(buffer.old_log_probs) == len(buffer.log_probs)
    assert 0 < np.abs(buffer.old_log_probs - buffer.log_probs).max() <= 0.2
    model.train()


def test_a_buffer_that_can_not_tell_is_refused_and_auto_stays_wide(tiny_task_kwargs):
    with pytest.raises(ValueError, match="leave rollout_buffer_class out"):
        make_agent(tiny_task_kwargs, precision="bfloat16", rollout_buffer_class=RolloutBuffer)
    model = make_agent(tiny_task_kwargs, precision="auto", rollout_buffer_class=RolloutBuffer)
    begin(model)
    assert model.update_precision == "float32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains_in_either_precision(tiny_task_kwargs, precision):
    env = make_vec_env(n_envs=6, seed=0, **{**tiny_task_kwargs, "device": "cuda"})
    model = TokenPPO(
        LMActorCriticPolicy,
        env,
        precision=precision,
        n_steps=20,
        n_epochs=1,
        batch_size=30,
        learning_rate=0.0,
        device="cuda",
        seed=0,
    )
    perturb(model.policy.cpu())
    model.policy.to("cuda")
    collect(model, begin(model))
    model.train()
    assert abs(model.logger.name_to_value["train/approx_kl"]) <= 1e-6
