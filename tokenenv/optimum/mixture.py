"""How far a policy is from the best: J, J_ref and a lower bound on J*, on a fixed set of prompts.

For every prompt J*(x) = β·log E_{y~q}[r·exp(R/β)] with r = π_ref(y|x)/q(y|x), for any proposal q,
and the log of the mean of samples lies below it in expectation. The mean of r is known to be 1, so
it is estimated as b + β·log(1 + mean r·(exp((R − b)/β) − 1)), b the least score: the sampling error
of mean r, which β would multiply, cancels where β is great, and so does rounding. With the actor
alone as proposal a collapsed policy would look optimal, so q is the balance mixture ½π + ½π_ref
(Veach & Guibas 1995): as many responses from the one as from the other, weighted by both.

Axes: `X` prompts, `n` responses from each of the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tokenenv.optimum.gains import gain_interval, objectives_of
from tokenenv.optimum.log_sums import log_expm1, log_mean_exp
from tokenenv.optimum.mixture_samples import MixtureSamples

__all__ = ["Comparison", "compare", "objective_fraction", "rescaled"]

LOW_EFFECTIVE_SAMPLE_SIZE = 0.05
"""Share of a prompt's samples under which the bound is called unreliable."""

MIN_REFERENCE_SAMPLES = 4096
"""Reference samples, over all prompts, under which the bound is called unreliable: a mode of one in
a thousand is hit among them with probability 0.98."""


def objective_fraction(objective: float, worst: float, best: float) -> float | None:
    """(J − J_ref)/(J* − J_ref); None where there is nothing to gain, up to rounding."""
    return (objective - worst) / (best - worst) if _is_gain(best - worst, best, worst) else None


def _is_gain(gain: float, best: float, worst: float) -> bool:
    return gain > 1e-12 * max(abs(best), abs(worst))


@dataclass(frozen=True, slots=True)
class _Bound:
    """The bound as a function of which samples it takes.

    Attributes:
        kl_coef: β.
        least: (X,) b, the least score of each prompt.
        log_terms: (X, 2n) log r + log(exp((R − b)/β) − 1).
    """

    kl_coef: float
    least: np.ndarray
    log_terms: np.ndarray

    @classmethod
    def of(cls, samples: MixtureSamples, kl_coef: float) -> _Bound:
        scores = np.concatenate(list(samples.scores), axis=-1)
        least = scores.min(axis=-1)
        with np.errstate(over="ignore"):
            above = (scores - least[:, None]) / kl_coef
        return cls(kl_coef, least, samples.log_ratios + log_expm1(above))

    def mean(self, log_terms: np.ndarray) -> float:
        """Over prompts, with (X, m) of the terms."""
        gain = np.logaddexp(0.0, log_mean_exp(log_terms))  # log1p of the mean
        return float((self.least + self.kl_coef * gain).mean())


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of a policy beside the reference and the bound; means over prompts.

    Attributes:
        objective: J(π) = E[R] − β·KL.
        objective_reference: J_ref, the objective of the untrained actor.
        optimum_lower_bound: a lower bound on J* in expectation; None at β = 0, where J* has no such
            form.
        optimum_interval: 95 % bootstrap interval of the bound, which lies in it; None where the
            bound is the one known from elsewhere, which these samples have no interval for, and
            where there is one response of each policy, whose scatter is not seen.
        objective_fraction: (J − J_ref)/(J* − J_ref) with the bound for J*: at most this. None at
            β = 0, and where the samples show nothing to gain (a constant reward): the interval of
            J* − J_ref reaches 0.
        fraction_interval: 95 % bootstrap interval of the fraction; None likewise.
        effective_sample_size: of the weights, as a share of the samples, median over prompts.
        least_effective_sample_size: of the prompt where it is least.
        kl: E[log π − log π_ref] per response.
        score: E[R] under π.
        score_reference: E[R] under π_ref.
        gold_reward: E[gold] under π, or None.
        gold_reward_reference: E[gold] under π_ref, or None.
        response_length: mean tokens.
        eos_rate: share of π's responses that end with EOS.
        prompts: X.
        responses_per_prompt: 2n, of both kinds together.
        gain_interval: 95 % interval of J − J_ref, as `gain_interval` has it; None where one prompt
            has one response.
    """

    objective: float
    objective_reference: float
    optimum_lower_bound: float | None
    optimum_interval: tuple[float, float] | None
    objective_fraction: float | None
    fraction_interval: tuple[float, float] | None
    effective_sample_size: float | None
    least_effective_sample_size: float | None
    kl: float
    score: float
    score_reference: float
    gold_reward: float | None
    gold_reward_reference: float | None
    response_length: float
    eos_rate: float
    prompts: int
    responses_per_prompt: int
    gain_interval: tuple[float, float] | None = None

    @property
    def is_reliable(self) -> bool:
        """Whether the bound can be believed to lie near J*: enough samples, none dominant.

        Where the policy lacks a mode of the optimum, only the reference's samples can show it: the
        few that hit it carry nearly all the weight of their prompt. So the prompt with the least
        effective sample size shows it, if the reference was sampled often enough to hit the mode at
        some prompt. Modes rarer than about 1 in `MIN_REFERENCE_SAMPLES` everywhere stay invisible.
        """
        share = self.least_effective_sample_size
        return (
            share is not None
            and share >= LOW_EFFECTIVE_SAMPLE_SIZE
            and self.reference_samples >= MIN_REFERENCE_SAMPLES
        )

    @property
    def reference_samples(self) -> int:
        """Responses of the reference, over all prompts."""
        return self.prompts * self.responses_per_prompt // 2


def compare(
    samples: MixtureSamples,
    kl_coef: float,
    known_optimum: float | None = None,
    bootstrap: int = 400,
    seed: int = 0,
) -> Comparison:
    """J, J_ref and the bound on J* from one set of samples, with bootstrap intervals.

    Args:
        samples: of the actor and the reference.
        kl_coef: β.
        known_optimum: a bound known from elsewhere (a task's card, for the same prompts); the
            larger of the two is the one that the fraction is taken of.
        bootstrap: resamples of the responses within each prompt and kind.
        seed: of the bootstrap.
    """
    objectives = objectives_of(samples, kl_coef)
    reference_scores = samples.scores[1]
    objective, objective_reference = float(objectives.mean()), float(reference_scores.mean())
    optimum = interval = fraction = fraction_interval = share = least_share = None
    if kl_coef > 0:
        shares = _effective_share(samples.log_weights(kl_coef))
        share, least_share = float(np.median(shares)), float(shares.min())
        bound = _Bound.of(samples, kl_coef)
        optimum = bound.mean(bound.log_terms)
        draws = _bootstrap(objectives, reference_scores, bound, bootstrap, seed)
        draws[2] += optimum - np.median(draws[2])  # as `_interval` says
        is_known = samples.scores.shape[2] > 1  # of one response nothing is known of the scatter
        interval = _interval(optimum, draws[2]) if is_known else None
        if known_optimum is not None and known_optimum > optimum:
            optimum, interval = known_optimum, None
        best = draws[2] if known_optimum is None else np.maximum(draws[2], known_optimum)
        gain = optimum - objective_reference
        least_gain = _interval(gain, best - draws[1])[0]
        if _is_gain(least_gain, optimum, objective_reference):
            fraction = objective_fraction(objective, objective_reference, optimum)
            assert fraction is not None
            with np.errstate(divide="ignore", invalid="ignore"):
                shares_of_draws = (draws[0] - draws[1]) / (best - draws[1])
            fraction_interval = _interval(fraction, shares_of_draws) if is_known else None
    gold = samples.gold_rewards
    return Comparison(
        objective=objective,
        objective_reference=objective_reference,
        optimum_lower_bound=optimum,
        optimum_interval=interval,
        objective_fraction=fraction,
        fraction_interval=fraction_interval,
        effective_sample_size=share,
        least_effective_sample_size=least_share,
        kl=float((samples.log_probs[0] - samples.ref_log_probs[0]).mean()),
        score=float(samples.scores[0].mean()),
        score_reference=objective_reference,
        gold_reward=None if gold is None else float(gold[0].mean()),
        gold_reward_reference=None if gold is None else float(gold[1].mean()),
        response_length=float(samples.lengths[0].mean()),
        eos_rate=float(samples.stopped[0].mean()),
        prompts=samples.scores.shape[1],
        responses_per_prompt=2 * samples.scores.shape[2],
        gain_interval=gain_interval(objectives, reference_scores),
    )


def rescaled(
    comparison: Comparison, start: Comparison, interval: tuple[float, float] | None = None
) -> Comparison:
    """`comparison` between the J of another untrained actor and the larger of both bounds.

    Args:
        comparison: of the policy.
        start: of the untrained actor, on the same prompts at the same β.
        interval: `gain_interval` of the one over the other.

    Returns:
        With the interval that belongs to that bound, and none of the fraction.
    """
    best, fraction = comparison, None
    bound, start_bound = comparison.optimum_lower_bound, start.optimum_lower_bound
    if bound is not None and start_bound is not None:
        best = start if start_bound > bound else comparison
        fraction = objective_fraction(
            comparison.objective, start.objective, max(bound, start_bound)
        )
    return replace(
        comparison,
        objective_reference=start.objective,
        optimum_lower_bound=best.optimum_lower_bound,
        optimum_interval=best.optimum_interval,
        objective_fraction=fraction,
        fraction_interval=None,
        gain_interval=interval,
    )


def _effective_share(log_weights: np.ndarray) -> np.ndarray:
    """(X,) (Σw)²/(n·Σw²)."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    return weights.sum(-1) ** 2 / np.square(weights).sum(-1) / weights.shape[-1]


def _bootstrap(
    objectives: np.ndarray, reference_scores: np.ndarray, bound: _Bound, draws: int, seed: int
) -> np.ndarray:
    """(3, draws) of J, J_ref and the bound, responses resampled within each prompt and kind."""
    rng = np.random.default_rng(seed)
    prompts, n = objectives.shape
    row = np.arange(prompts)[:, None]
    results = np.empty((3, draws))
    for draw in range(draws):
        actor_columns, reference_columns = rng.integers(n, size=(2, prompts, n))
        picked = np.concatenate([actor_columns, n + reference_columns], axis=1)
        results[0, draw] = objectives[row, actor_columns].mean()
        results[1, draw] = reference_scores[row, reference_columns].mean()
        results[2, draw] = bound.mean(bound.log_terms[row, picked])
    return results


def _interval(value: float, draws: np.ndarray) -> tuple[float, float]:
    """95 % interval of `value`: the spread of the resampled values, laid around the value itself.

    The log of a mean is biased low, the more so the fewer samples carry it, and that of a resample
    is so once more: the plain percentiles lie below the value that they belong to, or do not even
    contain it. Laid with their median on the value they always do.
    """
    low, high = np.quantile(draws - np.median(draws), [0.025, 0.975])
    return value + float(low), value + float(high)
