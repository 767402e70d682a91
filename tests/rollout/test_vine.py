"""Values from continuations: by hand, and against the true values of the exact task."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.tiny_task import T, begin, collect, make_agent, perturb
from support.worlds import new_buffer

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.rollout import vine
from agents.rollout.segments import Segment
from agents.rollout.vine import VineValues
from agents.runs.agent import build_agent
from agents.settings import KLPenalty
from tokenenv.maths.advantages import token_advantages
from tokenenv.maths.rewards import token_rewards
from tokenenv.models import SampledResponse
from tokenenv.optimum import policy_levels, true_advantages
from tokenenv.optimum.bias_variance import advantage_moments
from tokenenv.optimum.exact import expectation
from tokenenv.rewards import build_scorer

VINE = {"cut": "carry", "advantage_estimator": "vine", "vine_samples": 2}


class TenAToken:
    """A score of 10 for every token of the response, and log π_ref = −1 − its position."""

    language_model = SimpleNamespace(eos_token_ids=(9,))
    reference = SimpleNamespace(temperature=1.0, language_model=language_model)
    reward, score_clip, missing_eos_penalty = None, None, 0.0

    def __init__(self, *_):
        pass

    def ref_log_probs(self, episodes):
        return [-1.0 - np.arange(len(e.response)) for e in episodes]

    def score(self, episodes):
        token_rewards = [np.zeros(len(e.response)) for e in episodes]
        for row, episode in zip(token_rewards, episodes, strict=True):
            assert episode.stopped == (episode.response[-1] == 9)
            row[-1] = 10.0 * len(episode.response)
        return SimpleNamespace(token_rewards=token_rewards)


def segment(prompt, actions) -> Segment:
    """A whole episode."""
    n = len(actions)
    zeros = np.zeros(n, dtype=np.float32)
    return Segment(
        0,
        np.array(prompt, dtype=np.int32),
        np.zeros(0, dtype=np.int32),
        np.array(actions, dtype=np.int32),
        rewards=zeros.copy(),
        values=zeros.copy(),
        log_probs=zeros.copy(),
        kl_coefs=np.zeros(n),
        ended=True,
    )


def sampled(tokens, log_probs) -> SampledResponse:
    return SampledResponse(np.array(tokens), np.array(log_probs), tokens[-1] == 9)


@pytest.mark.parametrize(
    ("penalty", "kl_coef", "of_kl"),
    [
        (KLPenalty(), 0.5, lambda rho: rho),
        (KLPenalty("k2"), 0.5, lambda rho: rho**2 / 2),
        (KLPenalty("full"), 0.5, lambda rho: rho),  # in the mean it is the same as k1
        (KLPenalty(), 0.0, lambda rho: 0.0),
        (KLPenalty("k3", as_loss=True), 0.5, lambda rho: 0.0),
    ],
)
def test_values_and_advantages_by_hand(monkeypatch, penalty, kl_coef, of_kl):
    """The response 3 9 to the prompt 1 2, T = 3, two continuations of each of its two states.

    From the start: 9 (log π = −2), and 4 5 6 (−1, −1, −4), whose log π_ref are −1, −2, −3.
    After the 3, where log π_ref begins at −2: 9 (−1), and 7 7 (−3, −2).
    """
    known = {
        (1, 2): [sampled([9], [-2.0]), sampled([4, 5, 6], [-1.0, -1.0, -4.0])],
        (1, 2, 3): [sampled([9], [-1.0]), sampled([7, 7], [-3.0, -2.0])],
    }
    limits = {}

    def sample(actor, eos, prompts, max_new_tokens, *, temperature, seed):
        assert actor == "actor" and tuple(eos) == (9,) and (temperature, seed) == (1.0, None)
        states = [tuple(prompt.tolist()) for prompt in prompts]
        limits.update(dict.fromkeys(states, max_new_tokens))
        return [known[state][i % 2] for i, state in enumerate(states)]

    monkeypatch.setattr(vine, "sample_responses", sample)
    monkeypatch.setattr(vine, "EpisodeScorer", TenAToken)
    values = VineValues("actor", TenAToken(), 3, penalty, samples=2)
    episode = segment([1, 2], [3, 9])
    assert values.store_values([episode], kl_coef) == 1 + 3 + 1 + 2, "tokens that were sampled"
    assert limits == {(1, 2): 3, (1, 2, 3): 2}, "what is left of T"
    # 10 for each token of a whole response; ρ = log π − log π_ref.
    start = (10 - kl_coef * of_kl(-1)) / 2
    start += (30 - kl_coef * (of_kl(0) + of_kl(1) + of_kl(-1))) / 2
    after_3 = (20 - kl_coef * of_kl(1)) / 2 + (30 - kl_coef * (of_kl(-1) + of_kl(1))) / 2
    assert episode.values.tolist() == pytest.approx([start, after_3], abs=1e-6)
    if penalty == KLPenalty() and kl_coef:
        assert episode.values.tolist() == [20.25, 24.75]
    advantages, _ = token_advantages(
        "vine", np.array([-0.5, 19.0]), episode.values, np.array([2]), np.zeros(1), 1.0, 1.0, 1
    )
    expected = [-0.5 + after_3 - start, 19.0 - after_3]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-5)


# Against the truth --------------------------------------------------------------------------------


def return_deviations(tree, log_policy) -> list[np.ndarray]:
    """T levels (X, C^t): standard deviation of the return from each state, exactly.

    By the recursion of the laboratory of bias and variance: with V = 0 and λ = γ = 1 GAE is the
    return. Var[G|s] = E_a[Var[G|s,a]] + Var_a[E[G|s,a]].
    """
    zeros = [np.zeros(tree.shape(t)[:2]) for t in range(tree.depth)]
    moments = advantage_moments(log_policy, zeros, tree, tree.kl_coef, 1.0, 1.0)
    levels = []
    for log_probs, means, variances in zip(log_policy, *moments, strict=True):
        mean = expectation(log_probs, means)[:, :, None]
        levels.append(np.sqrt(expectation(log_probs, variances + np.square(means - mean))))
    return levels


@pytest.fixture(scope="module")
def moved(exact_tree):
    """An actor apart from the reference, so that its KL is in the reward; its levels, its truth."""
    model = copy.deepcopy(exact_tree.language_model.model)
    perturb(model)
    levels = policy_levels(model, exact_tree)
    return model, levels, true_advantages(levels, exact_tree)


def test_values_are_unbiased_and_their_error_falls_as_one_over_the_root_of_k(exact_tree, moved):
    """(V̂ − V)·√K/σ, with the exact V and σ of every state, has mean 0 and deviation 1 at any K."""
    tree, (model, levels, truth) = exact_tree, moved
    deviations = return_deviations(tree, levels)
    rng = np.random.default_rng(0)
    states = [(rng.integers(5, size=40), rng.integers(5**t, size=40)) for t in range(tree.depth)]
    errors = {}
    for samples in (4, 32):
        torch.manual_seed(samples)
        values = VineValues(model, build_scorer(tree.settings), tree.depth, KLPenalty(), samples)
        scaled, squares = [], 0.0
        for t, (prompts, prefixes) in enumerate(states):
            given = [
                (tree.prompt_tokens[x], tree.prefixes(t)[prefix])
                for x, prefix in zip(prompts, prefixes, strict=True)
            ]
            found, tokens = values.of_states(given, tree.kl_coef)
            assert 40 * samples <= tokens <= 40 * samples * (tree.depth - t)
            error = found - truth.values[t][prompts, prefixes]
            scaled.append(error * math.sqrt(samples) / deviations[t][prompts, prefixes])
            squares += float(np.square(error).sum())
        z = np.concatenate(scaled)
        assert abs(z.mean()) <= 4 / math.sqrt(len(z)), "unbiased"
        assert 0.8 <= z.std() <= 1.25
        errors[samples] = math.sqrt(squares / len(z))
    assert errors[4] / errors[32] == pytest.approx(math.sqrt(8), rel=0.45)


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_advantages_of_a_rollout_are_the_true_ones_and_noise_of_known_size(
    exact_tree, moved, scoring
):
    """A_t − A^π(s_t, a_t) = (V̂ − V)(s_{t+1}) − (V̂ − V)(s_t)."""
    tree, (_, levels, truth) = exact_tree, moved
    deviations = return_deviations(tree, levels)
    env = make_vec_env("TokenRLHF-Exact-v0", n_envs=24, seed=0, scoring=scoring)
    model = TokenPPO(
        LMActorCriticPolicy,
        env,
        n_steps=tree.depth,
        rollout_buffer_kwargs={**VINE, "vine_samples": 8},
        seed=0,
        device="cpu",
    )
    perturb(model.policy.actor)
    model.policy.drop_caches()
    buffer = collect(model, begin(model))
    of_prompt = {prompt.tobytes(): x for x, prompt in enumerate(tree.prompt_tokens)}
    errors, values = [], []
    for i, start in enumerate(buffer.offsets[:-1]):
        prompt = of_prompt.get(buffer.prefix(i).astype(np.int64).tobytes())
        if prompt is None:  # the tree has the prompts of the other split
            continue
        response = buffer.actions[start : buffer.offsets[i + 1]]
        for t, action in enumerate(response):
            state = tree.locate_state(response[:t])
            variance = deviations[t][prompt, state] ** 2
            own = buffer.values[start + t] - truth.values[t][prompt, state]
            values.append(own / math.sqrt(variance / 8))
            if t + 1 < len(response):
                after = tree.locate_state(response[: t + 1])
                variance += deviations[t + 1][prompt, after] ** 2
            error = buffer.advantages[start + t] - truth.advantages[t][prompt, state, action]
            errors.append(error / math.sqrt(variance / 8))
    assert len(errors) >= 40
    for z in map(np.array, (errors, values)):
        assert abs(z.mean()) <= 4 / math.sqrt(len(z)) and 0.7 <= z.std() <= 1.4
    sums = np.add.reduceat(buffer.advantages, buffer.offsets[:-1])
    of_return = buffer.returns[buffer.offsets[:-1]] - buffer.values[buffer.offsets[:-1]]
    assert np.abs(sums - of_return).max() <= 1e-5, "they add up to the return less V̂ of the start"


# In training --------------------------------------------------------------------------------------


def test_tokens_are_counted_apart_from_those_of_the_environment(
    tiny_task_kwargs, tmp_path, monkeypatch
):
    sampled_tokens = []
    real = vine.sample_responses

    def counted(*args, **kwargs):
        responses = real(*args, **kwargs)
        sampled_tokens.append(sum(len(r.tokens) for r in responses))
        return responses

    monkeypatch.setattr(vine, "sample_responses", counted)
    model = make_agent(tiny_task_kwargs, n_steps=T, n_envs=4, rollout_buffer_kwargs=VINE)
    callback = begin(model)
    total = 0
    for rollout in range(2):
        sampled_tokens.clear()
        buffer = collect(model, callback)
        metrics = callback.callbacks[0].metrics
        total += sum(sampled_tokens)
        assert metrics["vine_tokens"] == buffer.vine_tokens == sum(sampled_tokens) > 0
        assert metrics["vine_tokens_total"] == model.num_vine_tokens == total
        assert model.logger.name_to_value["rlhf/vine_tokens_total"] == total
        assert model.num_timesteps == (rollout + 1) * T * 4
        assert buffer.vine_tokens >= 2 * buffer.num_tokens, "two for every state"
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.num_vine_tokens == total
    loaded.learn(1, reset_num_timesteps=False)
    assert loaded.num_vine_tokens > total
    plain = make_agent(tiny_task_kwargs)
    callback = begin(plain)
    collect(plain, callback)
    assert not {name for name in callback.callbacks[0].metrics if "vine" in name}


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
@pytest.mark.parametrize("use_kl_loss", [False, True])
def test_an_agent_trains_with_every_kl_penalty(tiny_task_kwargs, estimator, use_kl_loss):
    kwargs = {**tiny_task_kwargs, "scoring": "deferred", "kl_shaping": "none"}
    model = make_agent(
        kwargs,
        n_steps=T,
        n_envs=3,
        kl_estimator=estimator,
        use_kl_loss=use_kl_loss,
        rollout_buffer_kwargs={**VINE, "vine_samples": 1},
    )
    model.learn(1)
    assert math.isfinite(model.logger.name_to_value["train/loss"])


def test_the_last_token_of_a_response_is_worth_its_reward_less_the_value(tiny_task_kwargs):
    """And a reward function that pays per token pays continuations from their first token on."""

    def per_token(prompts, responses, response_tokens):
        return [[float(i + 1) for i in range(len(tokens))] for tokens in response_tokens]

    kwargs = {**tiny_task_kwargs, "reward_model": per_token, "kl_coef": 0.0}
    kwargs["scoring"] = "deferred"
    model = make_agent(kwargs, n_steps=T, n_envs=4, rollout_buffer_kwargs=VINE)
    buffer = collect(model, begin(model))
    last = buffer.offsets[1:] - 1
    assert np.abs(buffer.advantages[last] - (buffer.rewards - buffer.values)[last]).max() <= 1e-5
    # At the last place a response can be at, every continuation is one token and is paid T.
    full = last[buffer.lengths == T]
    assert len(full) and (buffer.values[full] == T).all()
    assert np.abs(buffer.rewards[full] - T).max() <= 1e-6
    paid = token_rewards(np.arange(1.0, 4.0), np.zeros(3), np.zeros(3), 0.0)
    assert paid.tolist() == [1.0, 2.0, 3.0]


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cut": "bootstrap"}, "no critic's value .* but cut='bootstrap' needs that.*--cut carry"),
        ({"gamma": 0.9}, r"undiscounted returns of its continuations, but gamma=0\.9 discounts"),
        ({"whiten_rewards": True}, "which whiten_rewards=True does not scale"),
        ({"vine_samples": 0}, "vine_samples=0 must be a whole number of at least 1"),
        ({"advantage_estimator": "gae"}, "vine_samples=2 is without effect with .*'gae'"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_task_kwargs, given, message):
    gamma = {name: value for name, value in given.items() if name == "gamma"}
    of_buffer = {**VINE, **{k: v for k, v in given.items() if k not in gamma}}
    with pytest.raises(ValueError, match=message):
        new_buffer(T, 2, **{**of_buffer, **gamma})
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs=of_buffer, **gamma)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**of_buffer, **gamma)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vf_coef": 0.1}, r"vf_coef=0\.1 trains a critic, but advantage_estimator='vine' needs"),
        ({"critic_warmup": 1}, "critic_warmup=1 with advantage_estimator='vine', which needs no"),
        ({"normalize_returns": True}, "normalize_returns=True is for a critic, but .*'vine'"),
        ({"gae_lambda": 0.5}, r"gae_lambda=0\.5 is without effect with .*'vine'"),
    ],
)
def test_a_critic_is_refused(tiny_task_kwargs, given, message):
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, rollout_buffer_kwargs=VINE, **given)
    with pytest.raises(ValueError, match=message):
        TrainConfig(advantage_estimator="vine", **given)


def test_the_command_line_passes_them_on(tiny_task_kwargs):
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    for given, samples in (({}, 9), ({"vine_samples": 3}, 3)):
        config = TrainConfig(n_envs=2, n_steps=12, advantage_estimator="vine", **own, **given)
        assert TrainConfig.from_json(config.as_json()) == config
        environment = {**config.environment(), "prompts": tiny_task_kwargs["prompts"]}
        model = build_agent(config, make_vec_env(n_envs=2, **environment))
        buffer = model.rollout_buffer
        assert (buffer.cut, buffer.vine_samples, model.vf_coef) == ("carry", samples, 0.0)
