"""KL estimators and controllers by hand, and what the estimators' gradients are, exactly.

Every expectation here is a sum over a small vocabulary in float64, never a sample.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from agents.ppo.losses import explained_variance, normalized, ppo_losses, whiten, whitening_divisor
from agents.rollout.numbers import advantage_magnitude
from agents.settings.kl import (
    DEFAULT_DUAL_RATE,
    DEFAULT_HORIZON,
    KLPenalty,
    check_controller,
    kl_controller,
)
from tokenenv.maths.kl import (
    KL_COEF_RANGE,
    KL_ESTIMATORS,
    AdaptiveKL,
    DualKL,
    FixedKL,
    full_kl,
    k1,
    k2,
    k3,
    kl_estimate,
)
from tokenenv.maths.rewards import kl_penalties
from tokenenv.rewards.scoring import EpisodeScorer
from tokenenv.rewards.sources import Episode, RawRewards

V = 7


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an actor, with gradient, and log-probabilities of a reference."""
    return random_logits(V).requires_grad_(), torch.log_softmax(random_logits(V, seed=1), -1)


def gradient(value: torch.Tensor, *of: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(value, of, retain_graph=True)
    return torch.cat([part.flatten() for part in found])


# Estimators ---------------------------------------------------------------------------------------


def test_estimators_by_hand():
    # π = ½, π_ref = ¼: ρ = ln 2; exp(−ρ) = ½. And the other way round: ρ = −ln 2; exp(−ρ) = 2.
    ln2 = 0.6931471805599453
    rho = np.array([ln2, -ln2, 0.0])
    assert np.abs(k1(rho) - [ln2, -ln2, 0]).max() <= 1e-15
    # ½·0.4804530139 = 0.2402265070, twice.
    assert np.abs(k2(rho) - [0.2402265069591007, 0.2402265069591007, 0]).max() <= 1e-15
    # ½ − 1 + 0.6931471806 = 0.1931471806; 2 − 1 − 0.6931471806 = 0.3068528194.
    assert np.abs(k3(rho) - [0.1931471805599453, 0.3068528194400547, 0]).max() <= 1e-15
    # π = (½, ¼, ¼), π_ref = (¼, ½, ¼): ½·ln 2 − ¼·ln 2 + 0 = ¼·ln 2 = 0.1732867951.
    pi, ref = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    assert abs(full_kl(pi, ref) - 0.17328679513998632) <= 1e-15
    rows = full_kl(np.stack([pi, ref, pi]), np.stack([ref, pi, pi]))
    assert np.abs(rows - [0.17328679513998632, 0.17328679513998632, 0]).max() <= 1e-15


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_one_formula_serves_arrays_and_tensors(name):
    rho = np.linspace(-3, 3, 13)
    assert np.abs(kl_estimate(name, torch.as_tensor(rho)).numpy() - kl_estimate(name, rho)).max() \
        <= 1e-15  # fmt: skip
    with pytest.raises(ValueError, match="'k1', 'k2', 'k3'"):
        kl_estimate("full", rho)


def test_k3_keeps_its_digits_where_actor_and_reference_hardly_differ():
    # exp(−ρ) − 1 + ρ = ½ρ² − ρ³/6 + …; written with exp, all of it would be rounding error.
    rho = np.array([1e-6, -1e-6])
    assert np.abs(k3(rho) / (0.5 * rho**2) - 1).max() <= 1e-3


def test_means_over_the_policy(pair):
    logits, ref = pair
    log_probs = torch.log_softmax(logits.detach(), -1)
    probs, rho = log_probs.exp(), log_probs - ref
    kl = full_kl(log_probs, ref)
    assert kl > 0.1
    assert abs((probs * k1(rho)).sum() - kl) <= 1e-12
    assert abs((probs * k3(rho)).sum() - kl) <= 1e-12
    bias = (probs * k2(rho)).sum() - kl
    assert abs(bias - (probs * (0.5 * rho**2 - rho)).sum()) <= 1e-12
    # In powers of ρ the bias is Σπρ³/6 − Σπρ⁴/24 + …, from Σ_a π·(exp(−ρ) − 1) = 0.
    series = sum((probs * (-rho) ** n).sum() / float(math.factorial(n)) for n in range(3, 60))
    assert abs(bias + series) <= 1e-12 and abs(bias) >= 0.01
    for values in (k2(rho), k3(rho)):
        assert values.min() >= 0
    for seed in range(20):
        other = torch.log_softmax(3 * random_logits(V, seed=seed), -1)
        assert full_kl(other, ref) >= 0


# Gradients, one state -----------------------------------------------------------------------------


def test_gradients_as_a_loss(pair):
    """E_π[∇k], the actions drawn from π and held."""
    logits, ref = pair
    log_probs = torch.log_softmax(logits, -1)
    probs = log_probs.exp().detach()
    forward = gradient(full_kl(log_probs, ref), logits)
    reverse = gradient(full_kl(ref, log_probs), logits)
    assert (forward - reverse).abs().max() >= 0.05
    found = {
        name: gradient((probs * kl_estimate(name, log_probs - ref)).sum(), logits)
        for name in ("k1", "k2", "k3")
    }
    assert found["k1"].abs().max() <= 1e-12, "k1 as a loss holds nothing"
    assert (found["k2"] - forward).abs().max() <= 1e-12
    assert (found["k3"] - reverse).abs().max() <= 1e-12


def test_gradients_as_a_reward(pair):
    """E_π[k·∇log π], the score-function gradient of a penalty on the sampled action."""
    logits, ref = pair
    log_probs = torch.log_softmax(logits, -1)
    forward = gradient(full_kl(log_probs, ref), logits)
    weights = {name: kl_estimate(name, log_probs - ref) for name in ("k1", "k2", "k3")}
    weights["full"] = full_kl(log_probs, ref).expand(V)
    found = {
        name: gradient((log_probs.exp() * weight).detach() @ log_probs, logits)
        for name, weight in weights.items()
    }
    assert (found["k1"] - forward).abs().max() <= 1e-12
    for name in ("k2", "k3"):
        assert (found[name] - forward).abs().max() >= 0.01
    assert found["full"].abs().max() <= 1e-12, "it does not depend on the action"


# Gradients, two steps -----------------------------------------------------------------------------


def test_gradients_of_the_kl_of_a_sequence():
    """Two tokens from tables: k1 in the reward is right, full needs its loss beside its reward."""
    first = random_logits(V, seed=2).requires_grad_()
    second = random_logits(V, V, seed=3).requires_grad_()  # row: the first token
    ref_first = torch.log_softmax(random_logits(V, seed=4), -1)
    ref_second = torch.log_softmax(random_logits(V, V, seed=5), -1)
    log_first, log_second = torch.log_softmax(first, -1), torch.log_softmax(second, -1)
    joint = log_first[:, None] + log_second  # (V, V) log π(a_1, a_2)
    parameters = (first, second)
    exact = gradient(full_kl(joint.flatten(), (ref_first[:, None] + ref_second).flatten()),
                     *parameters)  # fmt: skip

    # Σ over sequences of π·Σ_t (Σ_{t' ≥ t} penalty_t')·∇log π(a_t|s_t).
    def in_reward(penalty_first: torch.Tensor, penalty_second: torch.Tensor) -> torch.Tensor:
        to_go = penalty_first[:, None] + penalty_second
        surrogate = to_go.detach() * log_first[:, None] + penalty_second.detach() * log_second
        return gradient((joint.exp().detach() * surrogate).sum(), *parameters)

    rho = (log_first - ref_first, log_second - ref_second)
    assert (in_reward(*rho) - exact).abs().max() <= 1e-12

    kl_first = full_kl(log_first, ref_first)
    kl_second = full_kl(log_second, ref_second)  # (V,), of the states after the first token
    as_reward = in_reward(kl_first.expand(V), kl_second[:, None].expand(V, V))
    as_loss = gradient(kl_first + log_first.exp().detach() @ kl_second, *parameters)
    assert (as_reward + as_loss - exact).abs().max() <= 1e-12
    for half in (as_reward, as_loss, in_reward(k2(rho[0]), k2(rho[1]))):
        assert (half - exact).abs().max() >= 0.01
    assert as_reward[V:].abs().max() <= 1e-12, "no state follows the second token"


def test_k3_of_a_token_far_below_the_reference_is_finite_and_pulls_it_back():
    """exp(90) overflows float32; up to exp(20), all is as the formula has it, to the last bit."""
    for dtype in (torch.float32, torch.float64):
        rho = torch.tensor([-20.0, -19.3, -1.0, 0.0, 3.0, 20.0], dtype=dtype)
        assert torch.equal(k3(rho), torch.expm1(-rho) + rho)
        assert np.array_equal(k3(rho.numpy()), np.expm1(-rho.numpy()) + rho.numpy())
        far = torch.tensor([-90.0, -25.0, -1e4], dtype=dtype, requires_grad=True)
        k3(far).sum().backward()
        # The tangent at 20: slope −(exp(20) − 1).
        assert far.grad.tolist() == pytest.approx([1 - math.exp(20.0)] * 3, rel=1e-6)
        # exp(20)·(1 + 70) − 1 − 90.
        assert k3(far)[0].item() == pytest.approx(math.exp(20.0) * 71 - 91, rel=1e-6)
        paid = kl_penalties("k3", np.array([-95.0]), np.array([-5.0]), 0.1)
        assert np.isfinite(paid.astype(np.float32)).all() and paid[0] > 1e9


# Controllers --------------------------------------------------------------------------------------


def test_the_adaptive_controller_by_hand():
    control = AdaptiveKL(target=6.0, horizon=100.0)
    # e = (6.6 − 6)/6 = 0.1; 0.2·(1 + 0.1·50/100) = 0.21.
    assert control.update(0.2, 6.6, 50, 0.2) == pytest.approx(0.21, abs=1e-15)
    # e = (5.4 − 6)/6 = −0.1; 0.2·(1 − 0.1·20/100) = 0.196.
    assert control.update(0.2, 5.4, 20, 0.2) == pytest.approx(0.196, abs=1e-15)
    # Far off, e is clipped to ±0.2: 0.2·(1 ± 0.2·50/100) = 0.22 and 0.18.
    assert control.update(0.2, 60.0, 50, 0.2) == pytest.approx(0.22, abs=1e-15)
    assert control.update(0.2, -60.0, 50, 0.2) == pytest.approx(0.18, abs=1e-15)
    assert control.update(0.2, 6.0, 50, 0.2) == 0.2
    # More episodes than the horizon count as the horizon: 0.2·(1 ± 0.2).
    for episodes in (100, 500, 10**6):
        assert control.update(0.2, 60.0, episodes, 0.2) == pytest.approx(0.24, abs=1e-15)
        assert control.update(0.2, 0.0, episodes, 0.2) == pytest.approx(0.16, abs=1e-15)


def test_the_dual_controller_by_hand():
    control = DualKL(target=6.0, rate=0.1)
    # (6.6 − 6)/6 = 0.1: 0.05·exp(0.1·0.1). (0 − 6)/6 = −1: 0.05·exp(−0.1).
    assert control.update(0.05, 6.6, 7, 0.05) == pytest.approx(0.0505025083542084, abs=1e-15)
    assert control.update(0.05, 0.0, 7, 0.05) == pytest.approx(0.0452418709017980, abs=1e-15)
    assert control.update(0.05, 6.0, 7, 0.05) == 0.05
    # 0.1·(606 − 6)/6 = 10 is held at 1: 0.05·e.
    assert control.update(0.05, 606.0, 7, 0.05) == pytest.approx(0.05 * math.e, abs=1e-15)
    assert DualKL(6.0, 9.0).update(0.05, 0.0, 7, 0.05) == pytest.approx(0.05 / math.e, abs=1e-15)
    assert FixedKL().update(0.2, 80.0, 7, 0.2) == 0.2


def test_the_dual_controller_at_its_default_does_not_switch_the_penalty_off():
    control = kl_controller("dual", 6.0, DEFAULT_HORIZON, DEFAULT_DUAL_RATE)
    kl_coef = 0.05
    for _ in range(10):  # an untrained actor: no KL yet
        kl_coef = control.update(kl_coef, 0.0, 7, 0.05)
    assert kl_coef == pytest.approx(0.05 * math.exp(-1.0), rel=1e-12)
    for scale in (0.01, 100.0):
        scaled = DualKL(scale * 6.0, 0.1)
        assert scaled.update(1.0, scale * 9.0, 7, 1.0) == pytest.approx(
            control.update(1.0, 9.0, 7, 1.0)
        )


@pytest.mark.parametrize("start", [1e-6, 0.05, 50.0])
@pytest.mark.parametrize("control", [AdaptiveKL(6.0, 1.0), DualKL(6.0, 0.1), DualKL(6.0, 50.0)])
def test_a_target_that_is_never_met_moves_beta_to_the_end_of_its_range_and_back(control, start):
    for kl, end in ((0.0, start / KL_COEF_RANGE), (1e6, start * KL_COEF_RANGE)):
        kl_coef = start
        for _ in range(3_000):  # unbounded, both leave float64 in that many steps
            kl_coef = control.update(kl_coef, kl, 50, start)
        assert kl_coef == pytest.approx(end, rel=1e-12)
        kl_coef = control.update(kl_coef, 12.0 if kl == 0 else 3.0, 50, start)
        assert start / KL_COEF_RANGE < kl_coef < start * KL_COEF_RANGE


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("control", [AdaptiveKL(6.0, 100.0), DualKL(6.0, 0.1)])
def test_a_kl_that_is_not_finite_steers_nothing(control, kl):
    with pytest.raises(ValueError, match=rf"kl={kl} .*{type(control).__name__}"):
        control.update(0.2, kl, 50, 0.2)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("pid", None, 1e4, 0.1), "kl_controller='pid' .*'fixed', 'adaptive', 'dual'"),
        (("fixed", 6.0, 1e4, 0.1), "kl_target=6.0 with kl_controller='fixed'"),
        (("adaptive", None, 1.0, 0.1), "'adaptive' needs kl_target"),
        (("dual", None, 1e4, 1.0), "'dual' needs kl_target"),
        (("adaptive", 0.0, 1.0, 0.1), "kl_target=0.0 must be a positive"),
        (("adaptive", 6.0, -1.0, 0.1), "kl_horizon=-1.0 must be a positive"),
        (("dual", 6.0, 1e4, 0.0), "kl_dual_rate=0.0 must be a positive"),
        (("dual", math.nan, 1e4, 0.1), "kl_target=nan must be a positive"),
        (("fixed", None, 500.0, 0.1), "kl_horizon=500.0 is for kl_controller='adaptive'"),
        (("dual", 6.0, 500.0, 0.1), "kl_horizon=500.0 .* without effect with 'dual'"),
        (("fixed", None, 1e4, 0.2), "kl_dual_rate=0.2 is for kl_controller='dual'"),
        (("adaptive", 6.0, 500.0, 0.2), "kl_dual_rate=0.2 .* without effect with 'adaptive'"),
    ],
)
def test_controllers_that_can_not_steer_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        kl_controller(*given)


def test_the_right_controller_is_made():
    assert kl_controller("fixed", None, DEFAULT_HORIZON, DEFAULT_DUAL_RATE) == FixedKL()
    assert kl_controller("adaptive", 6.0, 1.0, DEFAULT_DUAL_RATE) == AdaptiveKL(6.0, 1.0)
    assert kl_controller("dual", 6.0, DEFAULT_HORIZON, 2.0) == DualKL(6.0, 2.0)
    for control in (AdaptiveKL(6.0, 1.0), DualKL(6.0, 1.0)):
        check_controller(control, 0.1)
        check_controller(control, None)
        with pytest.raises(ValueError, match="kl_coef=0 it would stay 0 forever"):
            check_controller(control, 0.0)
    check_controller(FixedKL(), 0.0)


def test_penalties_that_would_not_hold_or_be_paid_twice_are_refused():
    with pytest.raises(ValueError, match=r"gradient of k1 as a loss is E\[∇log π\] = 0"):
        KLPenalty("k1", as_loss=True)
    with pytest.raises(ValueError, match=r"kl_estimator='k4' is unknown.*'k1', 'k2', 'k3', 'full'"):
        KLPenalty("k4")
    for name in KL_ESTIMATORS[1:]:
        for as_loss in (False, True):
            penalty = KLPenalty(name, as_loss)
            penalty.check_kl_shaping("none")
            with pytest.raises(ValueError, match=r"counted twice.*kl_shaping='none'"):
                penalty.check_kl_shaping("k1")
    KLPenalty("k1").check_kl_shaping("k1", 0.1)
    KLPenalty("k1").check_kl_shaping("none", 0.0)  # the honest way to pay none
    with pytest.raises(ValueError, match=r"pays no KL at all.*kl_shaping='k1', or with kl_coef=0"):
        KLPenalty("k1").check_kl_shaping("none", 0.1)


# The parts of PPO's loss and of the score, by hand ------------------------------------------------


class Batch:
    """What `ppo_losses` reads of a minibatch."""

    def __init__(self, old_log_prob, old_values, returns) -> None:
        self.old_log_prob, self.old_values, self.returns = (
            torch.tensor(values, dtype=torch.float64)
            for values in (old_log_prob, old_values, returns)
        )


def test_ppo_losses_by_hand():
    ratio = torch.tensor([1.5, 0.5, 1.1], dtype=torch.float64)
    batch = Batch([-1.0, -2.0, -3.0], [0.0, 1.0, 2.0], [1.0, 0.5, 2.5])
    log_probs = (batch.old_log_prob + ratio.log()).requires_grad_()
    advantages = torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64)
    values = torch.tensor([1.0, 0.5, 2.1], dtype=torch.float64)
    entropies = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64).requires_grad_()
    given = (values, log_probs, entropies, batch, advantages, 0.2)
    losses = ppo_losses(*given, clip_range_vf=0.2)
    # min(2·1.5, 2·1.2) = 2.4; min(−0.5, −0.8) = −0.8; min(−1.1, −1.1) = −1.1; −(0.5)/3.
    assert losses.policy.item() == pytest.approx(-0.5 / 3, abs=1e-12)
    # Changes +1, −0.5, +0.1 become +0.2, −0.2, +0.1: errors 0.8, −0.3, 0.4 of the returns.
    assert losses.value.item() == pytest.approx((0.64 + 0.09 + 0.16) / 3, abs=1e-12)
    # Without the clip the errors are 0, 0 and 0.4.
    # In units of 2, the clip is 0.4 wide: errors 0.6, −0.1, 0.4 are halved.
    halved = ppo_losses(*given, clip_range_vf=0.2, return_deviation=2.0)
    assert halved.value.item() == pytest.approx((0.36 + 0.01 + 0.16) / 3 / 4, abs=1e-12)
    assert halved.policy.item() == losses.policy.item()
    unclipped = ppo_losses(*given, clip_range_vf=None)
    assert unclipped.value.item() == pytest.approx(0.16 / 3, abs=1e-12)
    assert losses.entropy.item() == pytest.approx(-1.0, abs=1e-12)
    assert float(losses.clip_fraction) == pytest.approx(2 / 3, abs=1e-7)
    expected = -0.5 / 3 + 0.01 * -1.0 + 0.5 * 0.89 / 3
    assert losses.total(0.01, 0.5).item() == pytest.approx(expected, abs=1e-12)
    losses.total(0.01, 0.5).backward()
    # The bonus: every token's entropy pushes up by 0.01/3. Clipped ratios push nothing.
    assert torch.allclose(entropies.grad, torch.full((3,), -0.01 / 3, dtype=torch.float64))
    assert log_probs.grad.tolist() == pytest.approx([0.0, 0.0, 1.1 / 3], abs=1e-12)


def test_whitening_by_hand():
    # Mean 2, squares 1 + 0 + 1 over n − 1 = 2: standard deviation 1.
    assert np.abs(whiten(np.array([1.0, 2.0, 3.0])) - [-1, 0, 1]).max() <= 1e-15


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-7, 1e30, 0.7e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 100, 100_003])
def test_equal_advantages_are_whitened_to_exactly_0(value, dtype, n):
    advantages = np.full(n, value, dtype=dtype)
    assert not whiten(advantages).any() and whiten(advantages).dtype == dtype
    # What else is divided by it is not multiplied by the inverse of a rounding error.
    assert whitening_divisor(advantages) == (abs(float(dtype(value))) or 1.0)


def test_advantages_that_differ_by_rounding_only_are_whitened_to_0(rng):
    noise = rng.normal(size=1000).astype(np.float32)
    for size in (1e-8, 1.0, 1e8):
        assert not whiten((size * (1 + 1e-7 * noise)).astype(np.float32)).any()
        assert np.abs(whiten((size * (1 + 1e-4 * noise)).astype(np.float32))).max() > 2
        # They are small, but what they were computed from is larger still.
        assert not whiten(size * noise, magnitude=1e7 * size).any()
        assert whitening_divisor(size * noise, magnitude=1e7 * size) == 1e7 * size


class Rollout:
    """The numbers of a rollout: two sequences, of 255 steps and of one."""

    lengths = np.array([255, 1])
    values = log_probs = returns = np.zeros(256, dtype=np.float32)

    def __init__(self, rewards):
        self.rewards = np.asarray(rewards, dtype=np.float32)


def test_a_large_score_among_small_terms_is_rounded_once():
    scores = np.zeros(256)
    scores[254] = 1e5
    assert advantage_magnitude(Rollout(scores), 0.1) == 1e5
    # Spread by 1 in 100,000, of which float32 keeps 128 steps: those are advantages.
    advantages = np.where(np.arange(256) < 128, -1.0, 1.0).astype(np.float32)
    assert np.abs(whiten(advantages, 1e5)).min() > 0.9
    # The errors of many terms of one size add up as their squares do.
    assert advantage_magnitude(Rollout(np.full(256, 2.0)), 0.1) == pytest.approx(2 * 255**0.5)


def test_the_magnitude_is_that_of_the_largest_sequence_with_beta_times_log_pi_in_it(rng):
    rollout = Rollout(rng.normal(size=256))
    rollout.values, rollout.log_probs = rng.normal(size=(2, 256)).astype(np.float32)
    squares = rollout.rewards**2 + rollout.values**2 + (3.0 * rollout.log_probs) ** 2
    expected = np.sqrt(max(float(squares[:255].sum()), float(squares[255])))
    assert advantage_magnitude(rollout, 3.0) == pytest.approx(expected, rel=1e-6)


def test_whitening_is_that_of_float64_far_from_0_and_does_not_see_the_scale(rng):
    drawn = rng.normal(size=500)
    near = (drawn - drawn.mean()) / drawn.std(ddof=1)
    far = (1e4 + drawn).astype(np.float32)
    exact = [Fraction(float(x)) for x in far]
    mean = sum(exact) / len(exact)
    variance = sum((x - mean) ** 2 for x in exact) / (len(exact) - 1)
    by_fractions = [float(x - mean) / math.sqrt(variance) for x in exact]
    assert np.abs(whiten(far) - by_fractions).max() <= 1e-6
    for power in (-20, 3, 40):
        assert np.array_equal(whiten(2.0**power * drawn), whiten(drawn))
    assert np.abs(whiten(drawn) - near).max() <= 1e-13
    assert np.array_equal(whiten(np.float32([3.0])), [3.0]) and whitening_divisor(np.ones(1)) == 1


def test_sb3s_normalisation_holds_where_a_minibatch_has_spread_and_gives_0_elsewhere():
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(64, generator=generator)
    found, divisor = normalized(advantages, 0.0)
    by_sb3 = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # PPO.train
    assert torch.equal(found, by_sb3) and torch.equal(divisor, advantages.std() + 1e-8)
    for value in (0.1, -7.0, 1e-20):
        flat = torch.full((64,), value)
        found, divisor = normalized(flat, 0.0)
        assert not found.any() and float(divisor) == abs(float(flat[0]))
    found, divisor = normalized(1e-8 * advantages, 2.0)
    assert not found.any() and float(divisor) == 2.0
    found, divisor = normalized(torch.zeros(5), 0.0)
    assert not found.any() and float(divisor) == 1.0
    assert normalized(torch.tensor([1.0, math.nan]), 0.0)[0].isnan().all(), "nothing is hidden"


def test_explained_variance_by_hand():
    # Errors −1, 0, 1: variance 1, beside one of 4: 1 − 1/4.
    returns = np.array([2.0, 4.0, 6.0])
    assert explained_variance(np.array([3.0, 4.0, 5.0]), returns) == pytest.approx(0.75, abs=1e-15)
    assert explained_variance(returns + 100, returns) == 1.0, "a constant error explains nothing"
    far = (1e4 + returns).astype(np.float32)
    assert explained_variance(np.zeros(3, np.float32), far) == pytest.approx(0.0, abs=1e-15)
    for value in (0.0, 0.1, 1e6):
        assert math.isnan(explained_variance(np.zeros(9), np.full(9, value, np.float32)))


def test_score_clipping_and_the_missing_eos_penalty_by_hand():
    normalized = np.array([3.0, -0.25, -4.0, 1.0])
    episodes = [
        Episode(np.array([4]), np.arange(5, 5 + n), stopped)
        for n, stopped in ((1, True), (3, True), (2, False), (2, False))
    ]
    scorer = EpisodeScorer(
        None, lambda _: RawRewards(10 * normalized, normalized, None),
        score_clip=1.5, missing_eos_penalty=0.5,
    )  # fmt: skip
    scores = scorer.score(episodes)
    # Clipped to ±1.5 first; then 0.5 less for the two that did not stop: −1.5 − 0.5, 1 − 0.5.
    assert scores.score.tolist() == [1.5, -0.25, -2.0, 0.5]
    assert scores.rm_score.tolist() == [30.0, -2.5, -40.0, 10.0]
    paid = [rewards.tolist() for rewards in scores.token_rewards]
    assert paid == [[1.5], [0.0, 0.0, -0.25], [0.0, -2.0], [0.0, 0.5]], "on the last token"
