"""The exact solver, on a small random token MDP: every number also by brute force.

The brute force lists the responses with itertools and asks the environment's own scorer for
log π_ref and R, in float64; it shares no code with the tree.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from support.tiny_task import EOS, PROMPTS, V, make_agent, perturb, task_kwargs

from agents import make_vec_env
from tokenenv.mdp.token_mdp import TokenMDP
from tokenenv.models.language_model import load_trainable
from tokenenv.optimum import (
    enumerate_task,
    evaluate_exactly,
    plain_return,
    plain_returns,
    policy_levels,
    sample_tree_mixture,
    solve,
    true_advantages,
)
from tokenenv.optimum.prefix_tree import count_responses
from tokenenv.rewards.sources import Episode
from tokenenv.settings import EnvSettings
from tokenenv.tasks import load_task

T, BETA = 2, 0.1
LIST = PROMPTS[:3]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    kwargs = task_kwargs(tmp_path_factory.mktemp("exact"), "llama")
    return {**kwargs, "prompts": LIST, "max_new_tokens": T, "dtype": "float64"}


@pytest.fixture(scope="module")
def tree(environment):
    return enumerate_task("reviews", **environment)


@pytest.fixture(scope="module")
def solution(tree):
    return solve(tree, BETA)


@pytest.fixture(scope="module")
def brute(environment):
    """(responses, (X, N) log π_ref, (X, N) R) by itertools and the environment's scorer."""
    mdp = TokenMDP(EnvSettings(**environment), 1)
    going_on = [a for a in range(V) if a not in EOS]
    responses = [(a,) for a in EOS]
    responses += [(*first, last) for first in itertools.product(going_on) for last in range(V)]
    episodes = [
        Episode(mdp.encode_prompt(p), np.array(r), r[-1] in EOS) for p in LIST for r in responses
    ]
    log_probs = np.array([found.sum() for found in mdp.scorer.ref_log_probs(episodes)])
    scores = mdp.scorer.score(episodes).score
    shape = (len(LIST), len(responses))
    return responses, log_probs.reshape(shape), scores.reshape(shape)


def order(tree, responses):
    """Where each of the brute force's responses stands among the tree's."""
    position = {tuple(r.tolist()): i for i, r in enumerate(tree.responses())}
    assert len(position) == len(responses)
    return [position[r] for r in responses]


def random_policy(tree, rng, scale=2.0):
    levels = [rng.normal(0.0, scale, tree.shape(t)) for t in range(tree.depth)]
    return [level - np.log(np.exp(level).sum(-1, keepdims=True)) for level in levels]


def always(tree, path):
    """The policy that gives one response, whatever the prompt."""
    levels = [np.full(tree.shape(t), -np.inf) for t in range(tree.depth)]
    for t, level in enumerate(levels):
        level[..., path[min(t, len(path) - 1)]] = 0.0
    return levels


# The tree ----------------------------------------------------------------------------------------


def test_the_tree_holds_every_response_once_with_the_environments_numbers(tree, brute):
    responses, log_probs, scores = brute
    columns = order(tree, responses)
    assert tree.num_responses == len(LIST) * len(responses) == count_responses(3, V, len(EOS), T)
    found = tree.response_log_probs(tree.ref_log_probs)
    np.testing.assert_allclose(found[:, columns], log_probs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(tree.finished(tree.scores)[:, columns], scores, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("v", "eos", "t"), [(3, 1, 1), (3, 1, 3), (5, 2, 4), (8, 1, 6)])
def test_responses_are_counted_as_they_can_be_listed(v, eos, t):
    @cache
    def listed(left):
        return eos + (v - eos) * (1 if left == 1 else listed(left - 1))

    assert count_responses(7, v, eos, t) == 7 * listed(t)


def test_observations_are_the_environments(tree, environment):
    mdp = TokenMDP(EnvSettings(**environment), len(LIST))
    rng = np.random.default_rng(0)
    for row, prompt in enumerate(LIST):
        mdp.start(row, rng, prompt)
    np.testing.assert_array_equal(tree.observations(0), mdp.episodes.observations)
    mdp.step(np.full(len(LIST), 7), np.arange(len(LIST)))
    state = int(np.flatnonzero(tree.continuing == 7)[0])
    found = tree.observations(1).reshape(len(LIST), -1, mdp.episodes.observations.shape[1])
    np.testing.assert_array_equal(found[:, state], mdp.episodes.observations)


# The optimum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_coef", [0.03, 0.1, 1.0, 10.0])
def test_the_optimum_is_the_brute_force_sum(tree, brute, kl_coef):
    responses, log_probs, scores = brute
    found = solve(tree, kl_coef)
    tilted = log_probs + scores / kl_coef
    peak = tilted.max(axis=1)
    log_partition = np.log(np.exp(tilted - peak[:, None]).sum(axis=1)) + peak
    np.testing.assert_allclose(found.optimum_by_prompt, kl_coef * log_partition, rtol=0, atol=1e-10)
    assert found.optimum == pytest.approx(np.mean(kl_coef * log_partition), abs=1e-10)
    assert found.objective_reference == pytest.approx(
        (np.exp(log_probs) * scores).sum(axis=1).mean(), abs=1e-10
    )
    np.testing.assert_allclose(
        tree.response_log_probs(found.log_policy)[:, order(tree, responses)],
        tilted - log_partition[:, None],
        rtol=0,
        atol=1e-9,
    )


def test_soft_values_satisfy_their_definition(solution, tree):
    """V* = β·log Σ π_ref·exp(Q*/β), Q* = R or V*(s'), π* = π_ref·exp((Q* − V*)/β)."""
    for t in range(T):
        q, v = solution.q_values[t], solution.values[t]
        soft = BETA * np.log((np.exp(tree.ref_log_probs[t] + q / BETA)).sum(-1))
        np.testing.assert_allclose(v, soft, rtol=0, atol=1e-10)
        expected = tree.ref_log_probs[t] + (q - v[:, :, None]) / BETA
        np.testing.assert_allclose(solution.log_policy[t], expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(
        tree.next_states(solution.q_values[0]), solution.values[1].reshape(len(LIST), -1)
    )


def test_a_great_kl_coef_gives_the_reference_and_a_small_one_the_best_reward(tree):
    wide = solve(tree, 1e7)
    for found, reference in zip(wide.log_policy, tree.ref_log_probs, strict=True):
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6)
    assert wide.optimum == pytest.approx(wide.objective_reference, abs=1e-6)
    best = tree.finished(tree.scores).max(axis=1)
    narrow = solve(tree, 1e-5)
    np.testing.assert_allclose(narrow.optimum_by_prompt, best, rtol=0, atol=1e-3)
    assert narrow.most_likely(0, 1)[0].probability == pytest.approx(1.0, abs=1e-6)
    chosen = tree.finished(tree.scores)[0][np.argmax(tree.response_log_probs(narrow.log_policy)[0])]
    assert chosen == best[0]


def test_the_most_likely_responses_come_in_order(solution, tree):
    found = solution.most_likely(1, 6)
    probabilities = np.exp(tree.response_log_probs(solution.log_policy)[1])
    assert [r.probability for r in found] == sorted(probabilities, reverse=True)[:6]
    for ranked in found:
        index = [r.tolist() for r in tree.responses()].index(ranked.tokens.tolist())
        assert probabilities[index] == ranked.probability
        assert ranked.text == tree.language_model.decode(ranked.tokens)


# Policies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_coef", [0.03, 0.1, 2.0])
@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_the_gap_is_beta_times_the_divergence_from_the_optimum(tree, rng, kl_coef, scale):
    found = evaluate_exactly(random_policy(tree, rng, scale), tree, kl_coef)
    gap = found.optimum - found.objective
    assert gap == pytest.approx(kl_coef * found.kl_to_optimum, abs=1e-8)
    assert gap > 0 and found.objective_fraction < 1
    assert found.objective == pytest.approx(found.score - kl_coef * found.kl, abs=1e-12)


def test_an_evaluation_is_the_brute_force_sum(tree, brute, rng):
    responses, ref_log_probs, scores = brute
    policy = random_policy(tree, rng)
    log_probs = tree.response_log_probs(policy)[:, order(tree, responses)]
    found = evaluate_exactly(policy, tree, BETA)
    weights = np.exp(log_probs)
    lengths = np.array([len(r) for r in responses])
    stopped = np.array([r[-1] in EOS for r in responses])
    expected = {
        "score": (weights * scores).sum(1),
        "kl": (weights * (log_probs - ref_log_probs)).sum(1),
        "response_length": (weights * lengths).sum(1),
        "eos_rate": (weights * stopped).sum(1),
        "score_reference": (np.exp(ref_log_probs) * scores).sum(1),
    }
    for name, by_prompt in expected.items():
        assert getattr(found, name) == pytest.approx(by_prompt.mean(), abs=1e-10), name


def test_the_reference_is_0_the_optimum_is_1_and_one_response_is_what_it_scores(tree, solution):
    reference = evaluate_exactly(tree.ref_log_probs, solution)
    assert reference.objective_fraction == pytest.approx(0.0, abs=1e-12)
    best = evaluate_exactly(solution.log_policy, solution)
    assert best.objective_fraction == pytest.approx(1.0, abs=1e-10)
    assert best.kl_to_optimum == pytest.approx(0.0, abs=1e-10)
    first = solution.most_likely(0, 1)[0].tokens
    found = evaluate_exactly(always(tree, first), solution)
    index = [r.tolist() for r in tree.responses()].index(first.tolist())
    ref_log_prob = tree.response_log_probs(tree.ref_log_probs)[:, index]
    assert found.kl == pytest.approx(-ref_log_prob.mean(), abs=1e-10)
    assert found.score == pytest.approx(tree.finished(tree.scores)[:, index].mean(), abs=1e-10)
    assert found.optimum - found.objective == pytest.approx(BETA * found.kl_to_optimum, abs=1e-8)


def test_models_policies_levels_and_functions_are_the_same_policy(tree, environment):
    agent = make_agent(environment, n_envs=2)
    perturb(agent.policy)
    levels = policy_levels(agent.policy, tree)
    np.testing.assert_allclose(
        levels[1], policy_levels(agent.policy.actor, tree)[1], rtol=0, atol=1e-12
    )

    def function(observations):
        import torch

        with torch.no_grad():
            found = agent.policy.get_distribution(torch.as_tensor(observations))
        return found.distribution.logits.numpy()

    for ours, theirs in zip(levels, policy_levels(function, tree), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    reference = load_trainable(environment["reference"], dtype="float64")
    for ours, theirs in zip(tree.ref_log_probs, policy_levels(reference.model, tree), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_the_temperature_is_the_environments(environment):
    warm = enumerate_task("reviews", **{**environment, "temperature": 2.0})
    cold = enumerate_task("reviews", **environment)
    expected = cold.ref_log_probs[1] / 2
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(warm.ref_log_probs[1], expected, rtol=0, atol=1e-12)


# True advantages ---------------------------------------------------------------------------------


def test_true_values_are_expectations_over_what_can_follow(tree, brute, rng):
    """V^π at the start is J(π); Q^π(s, a) by listing all responses that begin with a."""
    responses, ref_log_probs, scores = brute
    policy = random_policy(tree, rng)
    found = true_advantages(policy, tree, BETA)
    log_probs = tree.response_log_probs(policy)[:, order(tree, responses)]
    paid = scores - BETA * (log_probs - ref_log_probs)
    assert found.values[0].mean() == pytest.approx(
        evaluate_exactly(policy, tree, BETA).objective, abs=1e-10
    )
    for action in (2, 7, 39):
        begins = np.array([r[0] == action for r in responses])
        weights = np.exp(log_probs[:, begins] - policy[0][:, 0, action, None])
        expected = (weights * paid[:, begins]).sum(axis=1)
        np.testing.assert_allclose(found.q_values[0][:, 0, action], expected, rtol=0, atol=1e-10)


def test_advantages_have_mean_0_under_the_policy_and_are_0_at_the_optimum(tree, rng, solution):
    policy = random_policy(tree, rng)
    for log_probs, advantages in zip(
        policy, true_advantages(policy, tree, BETA).advantages, strict=True
    ):
        mean = (np.exp(log_probs) * advantages).sum(-1)
        np.testing.assert_allclose(mean, 0.0, rtol=0, atol=1e-12)
    # At π* every action is as good as any other: Q − β·log(π/π_ref) = V*.
    best = true_advantages(solution.log_policy, tree, BETA)
    np.testing.assert_allclose(best.advantages[0], 0.0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(best.values[0], solution.values[0], rtol=0, atol=1e-9)


def test_an_action_that_is_never_taken_spoils_no_value(tree):
    found = true_advantages(always(tree, (7, 9)), tree, BETA)
    assert np.isfinite(found.values[0]).all()
    assert found.q_values[0][0, 0, 8] == np.inf


# The plain return --------------------------------------------------------------------------------


def test_the_plain_optimum_is_the_best_response(tree, brute):
    """Deterministic transitions: the best policy is the response of the greatest sum of rewards."""
    _, log_probs, scores = brute
    plain = scores + BETA * log_probs
    found = plain_returns(tree, BETA)
    assert found.optimum == pytest.approx(plain.max(axis=1).mean(), abs=1e-10)
    assert found.reference == pytest.approx((np.exp(log_probs) * plain).sum(1).mean(), abs=1e-10)
    assert found.fraction(found.reference) == 0.0 and found.fraction(found.optimum) == 1.0


def test_constant_and_uniform_policies_on_the_plain_scale(tree, brute):
    responses, log_probs, scores = brute
    plain = scores + BETA * log_probs
    found = plain_returns(tree, BETA)
    constant = {a: plain[:, responses.index((a,) if a in EOS else (a, a))].mean() for a in range(V)}
    assert found.constant_action == pytest.approx(max(constant.values()), abs=1e-10)
    assert constant[found.constant_token] == max(constant.values())
    uniform = np.array([V ** -float(len(r)) for r in responses])
    assert found.uniform == pytest.approx((uniform * plain).sum(1).mean(), abs=1e-10)


def test_the_optimum_of_j_is_not_the_plain_optimum(tree, solution):
    found = plain_returns(solution)
    assert found.rlhf_optimum == pytest.approx(plain_return(solution.log_policy, tree, BETA))
    assert found.rlhf_optimum < found.optimum - 0.01
    greedy = [np.full(tree.shape(t), -np.inf) for t in range(T)]
    for level, best in zip(greedy, found.best_actions, strict=True):
        np.put_along_axis(level, best[:, :, None], 0.0, axis=2)
    assert plain_return(greedy, tree, BETA) == pytest.approx(found.optimum, abs=1e-10)
    # and on the scale of J that policy is no optimum either
    assert evaluate_exactly(greedy, solution).objective < solution.optimum - 0.01


def test_without_shaping_the_plain_return_is_the_score(environment):
    unshaped = enumerate_task("reviews", **{**environment, "kl_shaping": "none"})
    found = plain_returns(unshaped, BETA)
    assert found.optimum == pytest.approx(unshaped.finished(unshaped.scores).max(1).mean())
    assert found.reference == pytest.approx(solve(unshaped, BETA).objective_reference)


# Other settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 1},
        {"score_clip": 0.5, "missing_eos_penalty": 0.7},
        {"temperature": 1.7},
        {"prompts": LIST[:1]},
        {"prompts": [LIST[0], LIST[1], LIST[0]]},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_tree_says_what_the_scorer_says_whatever_the_settings(environment, changes):
    """J, J*, length and EOS rate by listing the responses and asking the environment's scorer."""
    settings = {**environment, **changes}
    own = enumerate_task("reviews", **settings)
    mdp = TokenMDP(EnvSettings(**settings), 1)
    responses = [r for r in own.responses()]
    episodes = [
        Episode(mdp.encode_prompt(p), r, int(r[-1]) in EOS) for p in own.prompts for r in responses
    ]
    shape = (len(own.prompts), len(responses))
    log_probs = np.array([f.sum() for f in mdp.scorer.ref_log_probs(episodes)]).reshape(shape)
    scores = mdp.scorer.score(episodes).score.reshape(shape)
    weights = np.exp(log_probs)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=0, atol=1e-10)
    found = evaluate_exactly(own.ref_log_probs, own, BETA)
    optimum = BETA * np.logaddexp.reduce(log_probs + scores / BETA, axis=1)
    stopped = np.array([int(r[-1]) in EOS for r in responses])
    assert found.optimum == pytest.approx(optimum.mean(), abs=1e-10)
    assert found.objective == pytest.approx((weights * scores).sum(1).mean(), abs=1e-10)
    assert found.eos_rate == pytest.approx((weights * stopped).sum(1).mean(), abs=1e-10)
    assert found.response_length == pytest.approx(
        (weights * [len(r) for r in responses]).sum(1).mean(), abs=1e-10
    )
    samples = sample_tree_mixture(own.ref_log_probs, own, 200, seed=0)
    assert samples.lengths.max() <= own.depth
    share = samples.stopped[1].mean()
    assert abs(share - found.eos_rate) <= 5 * np.sqrt(0.25 / samples.stopped[1].size)


def test_rewards_per_token_count_as_their_sum(environment):
    def per_token(prompts, responses, response_tokens):
        return [[0.1 * (i + 1) for i in range(len(tokens))] for tokens in response_tokens]

    own = enumerate_task("reviews", **{**environment, "reward_model": per_token})
    found = evaluate_exactly(own.ref_log_probs, own, BETA)
    weights = np.exp(own.response_log_probs(own.ref_log_probs))
    paid = np.array([0.1 if len(r) == 1 else 0.1 + 0.2 for r in own.responses()])
    assert found.score == pytest.approx((weights * paid).sum(axis=1).mean(), abs=1e-10)


def test_trees_and_solutions_serve_alike(tree, solution, rng):
    policy = random_policy(tree, rng)
    assert solve(solution).optimum == solution.optimum
    one, other = (true_advantages(policy, task, BETA) for task in (tree, solution))
    np.testing.assert_array_equal(one.values[0], other.values[0])
    assert plain_return(policy, solution) == plain_return(policy, tree, BETA)
    for wrong in (None, 3, object()):
        with pytest.raises(ValueError, match="is no task: give its name, its tree"):
            solve(wrong)


def test_what_is_in_the_tree_is_found_and_nothing_else(tree):
    for number, response in enumerate(tree.responses()):
        depth, state, last = tree.locate(response)
        assert [*tree.prefixes(depth)[state].tolist(), last] == response.tolist(), number
    for wrong in ([], [7], [2, 2], [7, 7, 7], [7, -1], [7, 99], [-3, 2]):
        with pytest.raises(ValueError, match=r"is no (un)?finished response"):
            tree.locate(np.array(wrong, dtype=int))


# Mistakes ----------------------------------------------------------------------------------------


def test_a_task_too_large_says_how_large_and_names_the_estimator():
    with pytest.raises(ValueError, match=r"about 10\^\d+ finished responses.*sample_mixture"):
        solve("reviews")


@pytest.mark.parametrize("kl_coef", [0, 0.0])
def test_a_limit_that_is_needed_is_refused(tree, kl_coef):
    with pytest.raises(ValueError, match=r"kl_coef=0 has no soft optimum.*plain_returns"):
        solve(tree, kl_coef)
    with pytest.raises(ValueError, match="no soft optimum"):
        evaluate_exactly(tree.ref_log_probs, tree, kl_coef)
    best = tree.finished(tree.scores).max(axis=1).mean()
    assert plain_returns(tree, kl_coef).optimum == pytest.approx(best)


@pytest.mark.parametrize("kl_coef", [-1.0, float("nan"), float("inf"), "a"])
def test_other_coefficients_are_refused(tree, kl_coef):
    with pytest.raises(ValueError, match="must be 0 or a positive number"):
        solve(tree, kl_coef)


def test_what_is_no_policy_is_refused(tree):
    with pytest.raises(ValueError, match="no policy on this tree"):
        evaluate_exactly("reviews", tree, BETA)
    with pytest.raises(ValueError, match="no policy on this tree"):
        evaluate_exactly(tree.ref_log_probs[:1], tree, BETA)
    with pytest.raises(ValueError, match="depth 0 sum to 1"):
        evaluate_exactly([level + 0.1 for level in tree.ref_log_probs], tree, BETA)


def test_models_of_another_task_and_wrong_functions_are_refused(tree, environment):
    other = load_trainable(load_task("reviews").reference).model
    with pytest.raises(ValueError, match="a vocabulary of 486 tokens, the task one of 40"):
        evaluate_exactly(other, tree, BETA)
    for wrong in (lambda obs: np.zeros((3, 3)), lambda obs: None, lambda obs: obs[:, 0]):
        with pytest.raises(ValueError, match="gave an array of shape"):
            evaluate_exactly(wrong, tree, BETA)
    with pytest.raises(ValueError, match="a Linear is no policy on this tree"):
        evaluate_exactly(torch.nn.Linear(3, 40), tree, BETA)


def test_an_agent_its_policy_and_an_mlp_are_policies_too(tree, environment):
    agent = make_agent(environment, n_envs=2)
    for ours in (policy_levels(agent, tree), policy_levels(agent.policy, tree)):
        np.testing.assert_allclose(ours[0], policy_levels(agent.policy.actor, tree)[0], atol=1e-12)
    env = make_vec_env(n_envs=1, **environment)
    mlp = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    levels = policy_levels(mlp, tree)
    observations = torch.as_tensor(tree.observations(1)[:5])
    expected = mlp.policy.get_distribution(observations.float()).distribution.logits
    np.testing.assert_allclose(levels[1][0, :5], expected.detach().numpy(), rtol=0, atol=1e-5)


def test_a_model_in_training_mode_is_evaluated_without_dropout_and_left_in_it(tree, environment):
    model = load_trainable(environment["reference"], dtype="float64").model.train()
    one, other = (policy_levels(model, tree)[1] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert model.training


def test_a_kl_coef_that_overflows_is_refused(tree):
    with pytest.raises(ValueError, match="too small: R/β overflows"):
        solve(tree, 1e-310)


def test_odd_numbers_of_samples_are_refused(tree):
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match="must be an even number"):
            sample_tree_mixture(tree.ref_log_probs, tree, count, seed=0)


def test_another_kl_coef_solves_again(tree, solution):
    found = evaluate_exactly(tree.ref_log_probs, solution, 1.0)
    assert found.optimum == solve(tree, 1.0).optimum != solution.optimum
    assert dataclasses.replace(solution).kl_coef == BETA
