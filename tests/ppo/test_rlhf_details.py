"""Details that decide whether PPO on language models works, where no other file holds them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from support.models import save_classifier
from support.tiny_task import EOS, PROMPTS, P, T, V, begin, collect, perturb, randomize_value_head

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.evaluation.held_out import HeldOut
from agents.evaluation.measuring import respond
from agents.runs.agent import build_agent
from tokenenv.mdp.token_mdp import TokenMDP
from tokenenv.models.language_model import load_frozen, load_trainable
from tokenenv.models.sampling import sample_responses
from tokenenv.optimum import sample_mixture
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model, sequence_rewards
from tokenenv.settings import EnvSettings


@torch.no_grad()
def next_log_probs(model, tokens, temperature: float = 1.0) -> np.ndarray:
    """(V,) log-probabilities after `tokens`, by transformers' own forward."""
    logits = model(input_ids=torch.as_tensor(tokens)[None], use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.double() / temperature, -1).numpy()


def kl_by_hand(actor, reference, prompt, response, temperature: float = 1.0) -> float:
    """Of a whole response: log π(y|x) − log π_ref(y|x), one plain forward per token."""
    total = 0.0
    for t, token in enumerate(response):
        tokens = np.concatenate([prompt, response[:t]]).astype(np.int64)
        own, ref = (next_log_probs(m, tokens, temperature) for m in (actor, reference))
        total += own[token] - ref[token]
    return float(total)


# Defaults -----------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_rlhf_and_not_sb3s(tiny_task_kwargs):
    """As they arrive where they are used; SB3 has γ = 0.99, 10 epochs, vf_coef 0.5, no decay."""
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    model = TokenPPO(LMActorCriticPolicy, env, policy_kwargs={"actor": env.env.settings.reference})
    assert (model.gamma, model.gae_lambda) == (1.0, 0.95)
    assert (model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda) == (1.0, 0.95)
    assert model.rollout_buffer.whiten_rewards is False
    assert model.clip_range(1.0) == model.clip_range_vf(1.0) == 0.2
    assert (model.n_epochs, model.vf_coef, model.ent_coef) == (4, 0.1, 0.0)
    assert model.whiten_advantages and not model.normalize_advantage
    assert (model.lr_schedule(1.0), model.lr_schedule(0.0)) == (1e-4, 0.0)
    assert {group["eps"] for group in model.policy.optimizer.param_groups} == {1e-5}
    assert (model.kl_estimator, model.use_kl_loss, model.kl_controller) == ("k1", False, "fixed")
    config, own = TrainConfig(), inspect.signature(TokenPPO).parameters
    differing = {"n_steps", "batch_size", "learning_rate", "seed", "device"}  # sizes of `reviews`
    differing.add("max_skipped_updates")  # a script sees the error at once
    same = (own.keys() & vars(config).keys()) - differing
    assert {"gamma", "gae_lambda", "clip_range", "clip_range_vf", "vf_coef", "n_epochs"} <= same
    for name in same:
        assert getattr(config, name) == own[name].default, name


# Sampling -----------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Σ (found − expected)²/expected over the tokens of which 5 or more are expected."""
    expected = counts.sum() * probabilities
    usual = expected >= 5
    return float((np.square(counts - expected) / np.maximum(expected, 1e-9))[usual].sum())


@pytest.mark.parametrize("way", ["rollout", "predict", "evaluation"])
def test_tokens_are_drawn_from_the_whole_distribution_that_scores_them(tiny_task_kwargs, way):
    """One temperature, no top-k and no top-p, in all three places that sample."""
    count, temperature = 6000, 0.7
    prompt = np.array([1, 7, 12])
    policy = LMActorCriticPolicy(
        *(
            getattr(make_vec_env(**tiny_task_kwargs), f"{k}_space")
            for k in ("observation", "action")
        ),
        lambda _: 0.0,
        actor=tiny_task_kwargs["reference"],
        temperature=temperature,
    )
    row = np.full(P + T, -1)
    row[P - len(prompt) : P] = prompt
    observations = np.tile(row, (count, 1))
    torch.manual_seed(0)
    log_probs = None
    if way == "rollout":
        actions, _, log_probs = policy(torch.as_tensor(observations))
    elif way == "predict":
        actions, _ = policy.predict(observations)
    else:
        found = sample_responses(
            policy.actor, EOS, [prompt] * count, 1, temperature=temperature, seed=0
        )
        actions = np.array([response.tokens[0] for response in found])
        log_probs = np.array([response.log_probs[0] for response in found])
    counts = np.bincount(np.asarray(actions), minlength=V)
    own, warm = (np.exp(next_log_probs(policy.actor, prompt, t)) for t in (temperature, 1.0))
    # The sum has a mean of at most 39 and a deviation of at most √78 = 8.8.
    assert chi_square(counts, own) <= 39 + 5 * 8.8
    assert chi_square(counts, warm) >= 200, "another temperature would be seen"
    assert (counts > 0).sum() >= 35, "and so would a cut tail"
    if log_probs is not None:
        assert np.abs(np.asarray(log_probs) - np.log(own)[actions]).max() <= 1e-5


def test_greedy_responses_are_the_argmax_of_plain_forwards(tiny_task_kwargs):
    model = load_frozen(tiny_task_kwargs["reference"])
    prompts = [model.encode(text) for text in PROMPTS]
    found = sample_responses(model.model, EOS, prompts, T, greedy=True, num_slots=4)
    assert len({tuple(response.tokens.tolist()) for response in found}) > 1
    for prompt, response in zip(prompts, found, strict=True):
        for t, token in enumerate(response.tokens):
            state = np.concatenate([prompt, response.tokens[:t]])
            assert token == next_log_probs(model.model, state).argmax()
        assert response.stopped == (response.tokens[-1] in EOS)
        assert response.stopped or len(response.tokens) == T


def test_one_temperature_holds_in_sampling_reference_and_evaluation(tiny_task_kwargs):
    """Given once, on the command line's side; then KL = 0 and ratio = 1 to begin with."""
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    config = TrainConfig(n_envs=6, n_steps=20, batch_size=64, temperature=0.6, **own)
    environment = {**config.environment(), "prompts": PROMPTS}
    env = make_vec_env(n_envs=6, seed=0, **environment)
    model = build_agent(config, env)
    held_out = HeldOut.from_env_kwargs(environment, 2)
    assert model.policy.temperature == env.env.settings.temperature == 0.6
    assert held_out.scorer.reference.temperature == held_out.settings.temperature == 0.6
    callback = begin(model)
    buffer = collect(model, callback)
    assert abs(callback.callbacks[0].metrics["kl"]) <= 1e-4
    (batch,) = buffer.get(None)
    with torch.no_grad():
        _, log_probs, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
    assert (torch.exp(log_probs - batch.old_log_prob) - 1).abs().max() <= 1e-5


# Padding ------------------------------------------------------------------------------------------


def test_room_to_spare_changes_nothing_for_responses_that_end_by_themselves(tiny_task_kwargs, rng):
    """P and T larger by some: more −1 on both sides, the same rewards, log-probs and values."""
    responses = [rng.integers(12, 17, size=n).tolist() for n in (0, 1, 3, 5, T - 1, 2)]
    for number, response in enumerate(responses):
        response.append(EOS[number])
    found = []
    for more_prompt, more_response in ((0, 0), (4, 9)):
        limits = {"max_prompt_tokens": P + more_prompt, "max_new_tokens": T + more_response}
        env = make_vec_env(n_envs=len(PROMPTS), **{**tiny_task_kwargs, **limits})
        model = TokenPPO(
            LMActorCriticPolicy, env, policy_kwargs={"actor": tiny_task_kwargs["reference"]}
        )
        randomize_value_head(model.policy)
        env.set_options([{"prompt": prompt} for prompt in PROMPTS])
        observations, numbers = env.reset(), []
        for t in range(T):
            actions = np.array([r[t] if t < len(r) else 3 for r in responses])
            with torch.no_grad():
                values, log_probs, entropies = model.policy.evaluate_actions(
                    torch.as_tensor(observations), torch.as_tensor(actions)
                )
            observations, rewards, dones, _ = env.step(actions)
            own = np.array([t < len(response) for response in responses])
            assert dones[own].tolist() == [t == len(r) - 1 for r in responses if t < len(r)]
            columns = (rewards, values.flatten().numpy(), log_probs.numpy(), entropies.numpy())
            numbers.append(np.stack(columns)[:, own])
        found.append(np.concatenate(numbers, axis=1))
    assert found[0].shape == (4, sum(map(len, responses))) and found[0].std(axis=1).min() > 1e-3
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


# KL per response ----------------------------------------------------------------------------------


def test_the_kl_of_an_evaluation_is_summed_over_the_response(tiny_task_kwargs):
    """As training logs it: not the mean of its tokens."""
    mdp = TokenMDP(EnvSettings(**tiny_task_kwargs, temperature=0.8), num_envs=1)
    reference = mdp.language_model.model
    actor = load_trainable(tiny_task_kwargs["reference"]).model
    perturb(actor, 0.1)
    prompts = [mdp.encode_prompt(text) for text in PROMPTS]
    sampled = sample_responses(
        actor, mdp.language_model.eos_token_ids, prompts, T, temperature=0.8, seed=3
    )
    reports = respond(actor, mdp.scorer, PROMPTS, prompts, T, seed=3)
    assert max(len(response.tokens) for response in sampled) >= 4
    for prompt, response, report in zip(prompts, sampled, reports, strict=True):
        assert report.response == mdp.language_model.decode(response.tokens)
        expected = kl_by_hand(actor, reference, prompt, response.tokens, 0.8)
        assert report.kl == pytest.approx(expected, abs=1e-4)
    # Both halves of the samples for J*: sums of whole responses, under both models.
    samples = sample_mixture(actor, mdp.scorer, prompts, T, responses_per_prompt=2, seed=3)
    own = np.array([response.log_probs.sum() for response in sampled])
    np.testing.assert_allclose(samples.log_probs[0, :, 0], own, rtol=0, atol=1e-4)
    kls = samples.log_probs[0, :, 0] - samples.ref_log_probs[0, :, 0]
    np.testing.assert_allclose(kls, [report.kl for report in reports], rtol=0, atol=1e-4)
    assert np.abs(kls).max() > 0.1


# Dropout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_reward_model, new_reward_model])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_dropout_of_a_reward_model_is_off_in_training_mode_too(tmp_path, name, load, rng):
    rates = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "llama": ("attention_dropout",)}
    folder = save_classifier(tmp_path, name, **dict.fromkeys(rates[name], 0.5))
    sequences = [rng.integers(3, V, size=n) for n in (3, 9, 6)]
    model = load(folder).model
    with torch.no_grad():
        before = sequence_rewards(model.eval(), sequences)
        during = sequence_rewards(model.train(), sequences)
    model.eval()  # the loaded one is shared
    assert torch.equal(before, during)
