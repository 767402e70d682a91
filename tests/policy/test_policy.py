"""`LMActorCriticPolicy`: caches that change nothing, critics that start right, files that load."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from support.models import ARCHITECTURES
from support.tiny_task import (
    EOS,
    P,
    Spy,
    T,
    V,
    begin,
    collect,
    largest_difference,
    make_agent,
    randomize_value_head,
    save_actor,
    task_kwargs,
    tokenizer,
    weights,
)
from support.tolerances import assert_close
from transformers import AutoModelForCausalLM, pipeline

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.policy.fast_paths import in_one_transfer
from tokenenv.models.language_model import load_frozen
from tokenenv.models.packing import PackedSequences, pack
from tokenenv.rewards.reward_model import load_reward_model

SHAPES = ["gpt2", "llama", "qwen2", "mistral-window-6", "gemma3-window-6"]
OBSERVATIONS = spaces.Box(-1, V - 1, (P + T,), np.int64)
ACTIONS = spaces.Discrete(V)


def make_policy(actor: str, **kwargs) -> LMActorCriticPolicy:
    policy = LMActorCriticPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-2, actor=actor, **kwargs)
    if policy.critic is None:
        randomize_value_head(policy)
    return policy


def states(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Observations of all ages: prompts of 1 … P tokens, responses of 0 … T−1."""
    observations = np.full((count, P + T), -1)
    for row in observations:
        row[P - rng.integers(1, P + 1) : P + rng.integers(0, T)] = 0
    is_token = observations == 0
    observations[is_token] = rng.integers(3, V, size=is_token.sum())
    return torch.as_tensor(observations)


def plain_log_probs(policy: LMActorCriticPolicy, observations: torch.Tensor) -> torch.Tensor:
    """(N, V) by transformers' own forward of each sequence alone, unpadded."""
    rows = []
    with torch.no_grad():
        for row in observations:
            logits = policy.actor(input_ids=row[row >= 0][None], use_cache=False).logits
            rows.append(torch.log_softmax(logits[0, -1] / policy.temperature, dim=-1))
    return torch.stack(rows)


# Caches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_rollout_equals_full_forwards_at_every_step(tiny_folder, tiny_task_kwargs, name):
    env = make_vec_env(n_envs=6, seed=1, **tiny_task_kwargs)
    policy = make_policy(save_actor(tiny_folder / name, name), temperature=0.8)
    observations, ages = env.reset(), []
    for step in range(4 * T):
        if step == 13:  # a reset in the middle of all episodes
            observations = env.reset()
        obs = torch.as_tensor(observations)
        actions, values, log_probs = policy(obs)
        ages.append((observations[:, P:] >= 0).sum(axis=1))
        with torch.no_grad():
            full_values, full_log_probs, _ = policy.evaluate_actions(obs, actions)
        plain = plain_log_probs(policy, obs).gather(1, actions[:, None]).squeeze(1)
        assert (log_probs - full_log_probs).abs().max() <= 1e-5, f"step {step}"
        assert (log_probs - plain).abs().max() <= 1e-5, f"step {step}"
        assert (values - full_values).abs().max() <= 1e-5, f"step {step}"
        observations, _, _, _ = env.step(actions.numpy())
    assert max(len(set(row)) for row in ages) >= 4, "episodes of different ages share the batch"
    assert full_values.std() > 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_packed_sequences_equal_single_observations(tiny_folder, name, rng):
    policy = make_policy(save_actor(tiny_folder / name, name), dtype="float64")
    prefixes = [rng.integers(3, V, size=n) for n in (1, 5, 3, 4)]
    actions = [rng.integers(3, V, size=n) for n in (T, 1, 3, 5)]
    rows = []
    for prefix, chosen in zip(prefixes, actions, strict=True):
        for age in range(len(chosen)):
            row = np.full(P + T, -1)
            row[P - len(prefix) : P] = prefix
            row[P : P + age] = chosen[:age]
            rows.append(row)
    flat = torch.as_tensor(np.concatenate(actions))
    packed = pack(prefixes, actions, "cpu")
    garbage = torch.as_tensor(rng.integers(3, V, size=(4, 3)))
    wider = PackedSequences(torch.cat([packed.tokens, garbage], dim=1), packed.rows, packed.columns)
    with torch.no_grad():
        single = policy.evaluate_actions(torch.as_tensor(np.stack(rows)), flat)
        for found in (policy.evaluate_actions(packed, flat), policy.evaluate_actions(wider, flat)):
            for ours, theirs in zip(found, single, strict=True):
                assert ours.shape == theirs.shape
                assert_close(ours, theirs)


def test_entropy_and_gradients_are_those_of_the_distribution(tiny_folder, rng):
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"), temperature=0.7)
    obs = states(rng, 7)
    distribution = policy.get_distribution(obs)
    actions = distribution.sample()
    _, log_probs, entropies = policy.evaluate_actions(obs, actions)
    assert (distribution.entropy() - entropies).abs().max() <= 1e-5
    assert (distribution.log_prob(actions) - log_probs).abs().max() <= 1e-5
    distribution.log_prob(actions).sum().backward()
    own = [p.grad.clone() for p in policy.actor.parameters()]
    policy.zero_grad()
    log_probs.sum().backward()
    for gradient, parameter in zip(own, policy.actor.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max() <= 1e-4
    assert max(float(gradient.abs().max()) for gradient in own) > 1e-2


@pytest.mark.parametrize(
    "event", ["training mode", "optimizer step", "state dict", "the actor's own state dict"]
)
def test_caches_are_dropped_where_weights_can_change(tiny_folder, event, rng):
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"))
    obs = states(rng, 4)
    policy(obs)
    policy.predict(obs.numpy())
    if event == "optimizer step":
        policy.evaluate_actions(obs, torch.tensor([3, 4, 5, 6]))[1].sum().backward()
        policy.optimizer.step()
    else:
        changed = {
            name: w + 0.05 * torch.randn_like(w) if w.is_floating_point() else w
            for name, w in weights(policy).items()
        }
        if event == "state dict":
            policy.load_state_dict(changed)
        elif event == "the actor's own state dict":
            own = {k.removeprefix("actor."): v for k, v in changed.items() if "actor." in k}
            policy.actor.load_state_dict(own)
        else:
            policy.set_training_mode(True)
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    parameter.copy_(changed[name])
            policy.set_training_mode(False)
    actions, values, log_probs = policy(obs)
    expected = plain_log_probs(policy, obs)
    assert (expected.gather(1, actions[:, None]).squeeze(1) - log_probs).abs().max() <= 1e-5
    with torch.no_grad():
        full_values = policy.evaluate_actions(obs, actions)[0]
    assert (values - full_values).abs().max() <= 1e-5
    assert np.array_equal(policy.predict(obs.numpy(), deterministic=True)[0], expected.argmax(1))


def test_a_copy_drops_its_own_caches(tiny_folder, rng):
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"))
    obs = states(rng, 3)
    policy(obs)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        twin(obs)
        twin.evaluate_actions(obs, torch.tensor([3, 4, 5]))[1].sum().backward()
        twin.optimizer.step()
        actions, _, log_probs = twin(obs)
        expected = plain_log_probs(twin, obs).gather(1, actions[:, None]).squeeze(1)
        assert (expected - log_probs).abs().max() <= 1e-5
    forwards = policy.decoders.by_purpose["rollout"][0].forwards
    policy(obs)
    assert policy.decoders.by_purpose["rollout"][0].forwards == forwards, (
        "the original kept its cache"
    )


def test_one_forward_per_token_and_predict_keeps_out_of_the_rollouts_cache(tiny_task_kwargs):
    env = make_vec_env(n_envs=5, seed=0, **tiny_task_kwargs)
    policy = make_policy(tiny_task_kwargs["reference"])
    observations = env.reset()
    for _ in range(3):
        policy(torch.as_tensor(observations))
        observations, _, _, _ = env.step(np.full(5, 3))  # no EOS: nothing is refilled
    decoder = policy.decoders.by_purpose["rollout"][0]
    assert decoder.forwards == 3
    policy.predict_values(torch.as_tensor(observations[:1]))
    policy.predict(observations[::-1].copy())
    policy.predict(observations[0])
    assert decoder.forwards == 3
    with torch.no_grad():
        values = policy.predict_values(torch.as_tensor(observations))
    assert decoder.forwards == 4, "the rollout's end follows on from its cache"
    policy(torch.as_tensor(observations))
    assert decoder.forwards == 4, "and so does the next rollout's start"
    with_gradient = policy.predict_values(torch.as_tensor(observations))
    assert with_gradient.requires_grad
    assert (with_gradient - values).abs().max() <= 1e-5


def test_deterministic_prediction_is_the_argmax_of_a_full_forward(tiny_folder, rng):
    policy = make_policy(save_actor(tiny_folder / "gpt2", "gpt2"))
    obs = states(rng, 9)
    best = plain_log_probs(policy, obs).argmax(dim=1).numpy()
    assert np.array_equal(policy.predict(obs.numpy(), deterministic=True)[0], best)
    assert policy.predict(obs[0].numpy(), deterministic=True)[0] == best[0]
    actions, _, log_probs = policy(obs, deterministic=True)
    assert np.array_equal(actions, best)
    expected = plain_log_probs(policy, obs).max(dim=1).values
    assert (log_probs - expected).abs().max() <= 1e-5


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_construction_leaves_the_checkpoint_bit_equal(tiny_folder, name):
    folder = save_actor(tiny_folder / name, name)
    policy = make_policy(folder)
    checkpoint = AutoModelForCausalLM.from_pretrained(folder)
    assert largest_difference(weights(policy.actor), weights(checkpoint)) == 0.0
    assert policy.optimizer.defaults["eps"] == 1e-5
    fresh = LMActorCriticPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-2, actor=folder)
    assert not fresh.value_net.weight.any() and not fresh.value_net.bias.any()


def test_actor_shares_no_storage_with_the_cached_reference(tiny_folder):
    for name in ("gpt2", "llama"):  # tied and untied embeddings
        folder = save_actor(tiny_folder / name, name)
        frozen = load_frozen(folder)
        policy = make_policy(folder)
        assert policy.actor is not frozen.model
        own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        assert own.isdisjoint(p.untyped_storage().data_ptr() for p in frozen.model.parameters())
        assert not any(p.requires_grad for p in frozen.model.parameters())
        assert all(p.requires_grad for p in policy.parameters())


def test_dropout_is_off_in_every_mode(tmp_path, rng):
    gpt2 = save_actor(tmp_path / "gpt2", "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    llama = save_actor(tmp_path / "llama", "llama", attention_dropout=0.1)
    for folder in (gpt2, llama):
        written = json.loads((tmp_path / folder / "config.json").read_text())
        assert 0.1 in written.values()
        for built in ({}, {"config": written}):
            policy = make_policy(folder, value_head="separate", **built)
            obs, actions = states(rng, 6), torch.tensor([3, 4, 5, 6, 7, 8])
            policy.set_training_mode(False)
            sampled = policy.evaluate_actions(obs, actions)
            policy.set_training_mode(True)
            for ours, theirs in zip(policy.evaluate_actions(obs, actions), sampled, strict=True):
                assert torch.equal(ours, theirs)


# Separate critics ---------------------------------------------------------------------------------


def test_a_critic_from_the_reward_model_starts_as_the_score_of_the_text_so_far(
    tiny_task_kwargs, rng
):
    source = tiny_task_kwargs["reward_model"]
    policy = make_policy(tiny_task_kwargs["reference"], value_head="separate", critic=source)
    obs = states(rng, 12)
    reward_model = load_reward_model(source)
    tokens = [row[row >= 0].numpy() for row in obs]
    expected = reward_model.normalize(reward_model.raw_rewards(tokens))
    with torch.no_grad():
        values = policy.predict_values(obs).flatten().numpy()
    assert np.abs(values - expected).max() <= 1e-5
    assert expected.std() > 0.1
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    assert own.isdisjoint(p.untyped_storage().data_ptr() for p in reward_model.model.parameters())


@pytest.mark.parametrize("critic", ["actor", "reward model", "causal LM"])
def test_a_separate_critic_trains_without_touching_the_actor(tiny_task_kwargs, critic, rng):
    source = {
        "actor": "actor",
        "reward model": tiny_task_kwargs["reward_model"],
        "causal LM": tiny_task_kwargs["reference"],
    }[critic]
    policy = make_policy(tiny_task_kwargs["reference"], value_head="separate", critic=source)
    obs, actions = states(rng, 6), torch.tensor([3, 4, 5, 6, 7, 8])
    values, _, _ = policy.evaluate_actions(obs, actions)
    if critic != "reward model":
        assert not values.any()
    before = weights(policy)
    loss_before = float((values - 1.0).square().mean().detach())
    for _ in range(10):
        policy.optimizer.zero_grad()
        (policy.evaluate_actions(obs, actions)[0] - 1.0).square().mean().backward()
        assert all(p.grad is None or not p.grad.any() for p in policy.actor.parameters())
        policy.optimizer.step()
    after = weights(policy)
    for name in before:
        if name.startswith("actor."):
            assert torch.equal(before[name], after[name])
    with torch.no_grad():
        loss = float((policy.evaluate_actions(obs, actions)[0] - 1.0).square().mean())
    assert loss < 0.5 * loss_before


def test_separate_critic_follows_a_rollout_with_its_own_cache(tiny_task_kwargs):
    policy_kwargs = {"value_head": "separate", "critic": tiny_task_kwargs["reward_model"]}
    model = make_agent(tiny_task_kwargs, PPO, policy_kwargs=policy_kwargs)  # needs values at once
    spy = Spy()
    collect(model, begin(model, spy))
    for seen in spy.steps:
        obs, actions = (torch.as_tensor(seen[key]) for key in ("observations", "actions"))
        with torch.no_grad():
            values = model.policy.evaluate_actions(obs, actions)[0]
        assert (values - seen["values"]).abs().max() <= 1e-5
    before = weights(model.policy)
    model.learn(model.n_steps * 6)
    after = weights(model.policy)
    for part in ("actor.", "critic.model.", "critic.head."):
        changes = [(before[k] - after[k]).abs().max() for k in before if k.startswith(part)]
        assert max(changes) > 1e-5, part


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_head", ["shared", "separate"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_saved_model_loads_without_its_first_checkpoint(tmp_path, value_head, trained, rng):
    kwargs = task_kwargs(tmp_path / "first", "gpt2")
    model = make_agent(kwargs, policy_kwargs={"value_head": value_head})
    if trained:
        model.learn(model.n_steps * 6)
    model.save(tmp_path / "model.zip")
    obs, actions = states(rng, 6), torch.tensor([3, 4, 5, 6, 7, 8])
    expected = model.policy.evaluate_actions(obs, actions)
    shutil.rmtree(tmp_path / "first")
    loaded = TokenPPO.load(tmp_path / "model.zip", device="cpu")
    for ours, theirs in zip(loaded.policy.evaluate_actions(obs, actions), expected, strict=True):
        assert torch.equal(ours, theirs)
    json.dumps(loaded.policy_kwargs)
    weight_bytes = sum(w.nbytes for w in model.policy.state_dict().values())
    adam_bytes = 2 * weight_bytes if trained else 0
    assert (tmp_path / "model.zip").stat().st_size < 1.1 * (weight_bytes + adam_bytes) + 100_000
    assert json_eos(loaded.policy) == EOS


def json_eos(policy: LMActorCriticPolicy) -> list[int]:
    return policy.actor.generation_config.eos_token_id


@pytest.mark.parametrize("agent", [PPO, TokenPPO])
def test_training_leaves_the_callers_policy_kwargs_alone(tiny_task_kwargs, agent):
    """With a config among them, the next policy made of them would be randomly initialised."""
    given = {"actor": tiny_task_kwargs["reference"]}
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    model = agent(LMActorCriticPolicy, env, n_steps=8, batch_size=16, policy_kwargs=given)
    model.learn(16, callback=RLHFCallback())
    assert "config" in model.policy_kwargs
    assert given == {"actor": tiny_task_kwargs["reference"]}


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_save_pretrained_loads_in_transformers_and_here(
    tiny_task_kwargs, tmp_path, value_head, rng
):
    model = make_agent(tiny_task_kwargs, policy_kwargs={"value_head": value_head})
    model.learn(model.n_steps * 6)
    policy = model.policy
    policy.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.as_tensor(rng.integers(3, V, size=(3, 9)))
    with torch.no_grad():
        own = policy.actor(input_ids=tokens, use_cache=False).logits
        assert torch.equal(plain(input_ids=tokens, use_cache=False).logits, own)
    generate = pipeline("text-generation", model=str(tmp_path), device="cpu")
    prompts = torch.arange(3, V)[:, None]
    best = policy.actor(input_ids=prompts, use_cache=False).logits[:, -1].argmax(dim=-1).tolist()
    going_on = [(a, b) for a, b in zip(range(3, V), best, strict=True) if b not in [0, 1, *EOS]]
    for first, second in going_on[:3]:
        text = generate(f"w{first}", max_new_tokens=1, do_sample=False)[0]["generated_text"]
        assert text.replace(" ", "") == f"w{first}{tokenizer().decode([second])}"
    restored = LMActorCriticPolicy.from_pretrained(tmp_path)
    obs, actions = states(rng, 6), torch.tensor([3, 4, 5, 6, 7, 8])
    expected = policy.evaluate_actions(obs, actions)
    for ours, theirs in zip(restored.evaluate_actions(obs, actions), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert expected[0].std() > 1e-4


def test_a_folder_without_a_policy_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match=r"policy\.json is missing"):
        LMActorCriticPolicy.from_pretrained(tiny_task_kwargs["reference"])


# Bad input ----------------------------------------------------------------------------------------


def test_spaces_that_are_no_token_ids_are_refused(tiny_task_kwargs):
    actor = tiny_task_kwargs["reference"]
    scaled = spaces.Box(-np.inf, np.inf, (P + T,), np.float32)  # NormalizeObservation's
    shifted = spaces.Box(0, V, (P + T,), np.int64)
    for observation_space in (scaled, shifted, spaces.Box(-1, V, (P + T,), np.int64)):
        with pytest.raises(ValueError, match="normalisers off"):
            LMActorCriticPolicy(observation_space, ACTIONS, lambda _: 0.0, actor=actor)
    with pytest.raises(ValueError, match="Discrete"):
        LMActorCriticPolicy(OBSERVATIONS, spaces.MultiDiscrete([V]), lambda _: 0.0, actor=actor)


def test_float_observations_are_refused(tiny_task_kwargs, rng):
    policy = make_policy(tiny_task_kwargs["reference"])
    floats = states(rng, 2).float()
    for call in (policy, policy.predict_values, policy.get_distribution):
        with pytest.raises(ValueError, match="VecNormalize"):
            call(floats)
    with pytest.raises(ValueError, match="VecNormalize"):
        policy.evaluate_actions(floats, torch.tensor([3, 4]))


def test_another_vocabulary_is_refused(tiny_task_kwargs):
    small = {**ARCHITECTURES["llama"], "vocab_size": V - 1}
    with pytest.raises(ValueError, match=f"{V - 1} tokens.*{V}"):
        make_policy(tiny_task_kwargs["reference"], config=small)
    with pytest.raises(ValueError, match=f"reads {V - 1} token ids"):
        make_policy(tiny_task_kwargs["reference"], value_head="separate", critic_config=small)


def test_a_critic_with_another_tokenizer_is_refused(tiny_task_kwargs, tmp_path):
    other = save_actor(tmp_path / "other", "llama", words="v")
    with pytest.raises(ValueError, match="different tokenizers"):
        make_policy(tiny_task_kwargs["reference"], value_head="separate", critic=other)


def test_a_context_that_is_too_short_is_refused(tiny_task_kwargs):
    short = {**ARCHITECTURES["llama"], "max_position_embeddings": P + T - 1}
    with pytest.raises(ValueError, match="positions of the actor"):
        make_policy(tiny_task_kwargs["reference"], config=short)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"net_arch": [64]}, "no use for net_arch"),
        ({"use_sde": True}, "no use for use_sde"),
        ({"value_head": "none"}, "choose one of"),
        ({"temperature": 0.0}, "positive"),
        ({"value_head": "separate", "critic": "/no/such/folder"}, "critic="),
        ({"dtype": "float8"}, "choose one of"),
    ],
)
def test_policy_kwargs_that_can_not_be_used(tiny_task_kwargs, kwargs, says):
    with pytest.raises(ValueError, match=says):
        make_policy(tiny_task_kwargs["reference"], **kwargs)


def test_one_transfer_to_the_host_changes_no_number():
    actions = torch.tensor([0, 50_256, 2**31])
    values = torch.tensor([[1 / 3], [-2.5e-30], [7.0]])
    log_probs = torch.tensor([-0.1, -20.0, -1e-8], dtype=torch.bfloat16)
    given = (actions, values, log_probs)
    for found, expected in zip(in_one_transfer(*given), given, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_observations_are_read_on_the_host_while_a_rollout_lasts(tiny_folder, rng):
    """So those on the device need not be fetched: here they could not be."""
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"))
    obs = states(rng, 4)
    torch.manual_seed(0)
    expected = policy(obs)
    policy.drop_caches()
    torch.manual_seed(0)
    with policy.reading(obs.numpy):
        found = policy(obs.to("meta"))
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)
    with pytest.raises(NotImplementedError):
        policy(obs.to("meta"))


def test_a_policy_that_is_cast_starts_its_caches_anew(tiny_folder, rng):
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"))
    obs = states(rng, 4)
    policy(obs)
    policy.double()
    actions, _, log_probs = policy(obs)
    expected = plain_log_probs(policy, obs)
    assert log_probs.dtype == torch.float64
    assert (expected.gather(1, actions[:, None]).squeeze(1) - log_probs).abs().max() <= 1e-10


def test_diverged_weights_are_named(tiny_folder, rng):
    policy = make_policy(save_actor(tiny_folder / "llama", "llama"))
    with torch.no_grad():
        policy.actor.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(ValueError, match="the logits of the actor are NaN"):
        policy(states(rng, 4))
