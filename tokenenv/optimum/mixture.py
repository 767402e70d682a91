"""How far a policy is from the best: J, J_ref and a lower bound on J*, on a fixed set of prompts.

For every prompt J*(x) = β·log E_{y~q}[exp(R/β + log π_ref(y|x) − log q(y|x))] for any proposal q,
and the log of the mean of samples lies below it in expectation. With the actor alone as proposal a
collapsed policy would look optimal, so q is the balance mixture ½π + ½π_ref (Veach & Guibas 1995):
as many responses from the one as from the other, weighted by both.

Axes: `X` prompts, `n` responses from each of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenenv.log_probs import response_log_probs
from tokenenv.rewards import Episode
from tokenenv.sampling import SampledResponse, sample_responses
from tokenenv.scoring import EpisodeScorer

__all__ = [
    "Comparison",
    "MixtureSamples",
    "compare",
    "log_mean_exp",
    "objective_fraction",
    "rescaled",
    "sample_mixture",
]

LOW_EFFECTIVE_SAMPLE_SIZE = 0.05
"""Share of a prompt's samples under which the bound is called unreliable."""

MIN_REFERENCE_SAMPLES = 4096
"""Reference samples, over all prompts, under which the bound is called unreliable: a mode of one in
a thousand is hit among them with probability 0.98."""


def log_mean_exp(log_weights: np.ndarray) -> np.ndarray:
    """Log of the mean of exp over the last axis, without overflow."""
    return np.logaddexp.reduce(log_weights, axis=-1) - np.log(log_weights.shape[-1])


def objective_fraction(objective: float, worst: float, best: float) -> float | None:
    """(J − J_ref)/(J* − J_ref); None where there is nothing to gain, up to rounding."""
    return (objective - worst) / (best - worst) if best - worst > 1e-9 else None


@dataclass(frozen=True)
class MixtureSamples:
    """Responses of the actor (index 0 of the first axis) and of the reference (index 1).

    Attributes:
        log_probs: (2, X, n) log π(y|x).
        ref_log_probs: (2, X, n) log π_ref(y|x).
        scores: (2, X, n) R(x, y).
        gold_rewards: (2, X, n), or None.
        lengths: (2, X, n) tokens.
        stopped: (2, X, n) whether the response ended with EOS.
    """

    log_probs: np.ndarray
    ref_log_probs: np.ndarray
    scores: np.ndarray
    gold_rewards: np.ndarray | None
    lengths: np.ndarray
    stopped: np.ndarray

    def log_weights(self, kl_coef: float) -> np.ndarray:
        """(X, 2n) R/β + log π_ref − log q with q = ½π + ½π_ref."""
        log_mixture = np.logaddexp(self.log_probs, self.ref_log_probs) - np.log(2.0)
        weights = self.scores / kl_coef + self.ref_log_probs - log_mixture
        return np.concatenate(list(weights), axis=-1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a policy reaches beside the reference and the bound; means over prompts.

    Attributes:
        objective: J(π) = E[R] − β·KL.
        objective_reference: J_ref, the objective of the untrained actor.
        optimum_lower_bound: a lower bound on J* in expectation; None at β = 0, where J* has no such
            form.
        optimum_interval: 95 % bootstrap interval of the bound, or None.
        objective_fraction: (J − J_ref)/(J* − J_ref) with the bound for J*: at most this. None at
            β = 0, and where the samples show nothing to gain (a constant reward): the interval of
            J* − J_ref reaches 0.
        fraction_interval: 95 % bootstrap interval of the fraction.
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

    @property
    def is_reliable(self) -> bool:
        """Whether the bound can be believed to lie near J*: enough samples, and none that rules.

        Where the policy lacks a mode of the optimum, only the reference's samples can show it: the
        few that hit it carry nearly all the weight of their prompt. So the prompt with the least
        effective sample size tells, provided that the reference was sampled often enough to hit
        the mode at some prompt. What is rarer than about 1 in `MIN_REFERENCE_SAMPLES` everywhere
        stays invisible.
        """
        found = self.least_effective_sample_size
        return (
            found is not None
            and found >= LOW_EFFECTIVE_SAMPLE_SIZE
            and self.reference_samples >= MIN_REFERENCE_SAMPLES
        )

    @property
    def reference_samples(self) -> int:
        """Responses of the reference, over all prompts."""
        return self.prompts * self.responses_per_prompt // 2


def sample_mixture(
    actor: Any,
    scorer: EpisodeScorer,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    responses_per_prompt: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> MixtureSamples:
    """Sample half of the responses from `actor` and half from the reference, and score them all.

    Args:
        actor: a causal LM over the reference's vocabulary.
        scorer: of the environment; its temperature is used throughout.
        prompts: X arrays of token ids.
        max_new_tokens: T.
        responses_per_prompt: of both kinds together.
        seed: of the sampling.
        on_progress: called with (responses done, all).
    """
    reference = scorer.reference
    models = (actor, reference.language_model.model)
    n = responses_per_prompt // 2
    repeated = [prompt for prompt in prompts for _ in range(n)]
    total = len(models) * len(repeated)
    shape = (len(models), len(prompts), n)

    sampled: list[SampledResponse] = []
    for index, model in enumerate(models):
        done = index * len(repeated)
        sampled += sample_responses(
            model,
            reference.language_model.eos_token_ids,
            repeated,
            max_new_tokens,
            temperature=reference.temperature,
            seed=seed + index,
            on_finished=None
            if on_progress is None
            else lambda k, d=done: on_progress(d + k, total),  # type: ignore[misc]
        )
    episodes = [
        Episode(prompt, response.tokens, response.stopped)
        for prompt, response in zip(repeated * len(models), sampled, strict=True)
    ]
    scores = scorer.score(episodes)
    responses = [e.response for e in episodes]
    log_probs = response_log_probs(actor, repeated * 2, responses, reference.temperature)
    ref_log_probs = scorer.ref_log_probs(episodes)

    def stack(values: Any) -> np.ndarray:
        return np.array(values).reshape(shape)

    return MixtureSamples(
        stack([found.sum() for found in log_probs]),
        stack([found.sum() for found in ref_log_probs]),
        stack(scores.score),
        None if scores.gold_reward is None else stack(scores.gold_reward),
        stack([len(response) for response in responses]),
        stack([e.stopped for e in episodes]),
    )


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
    objectives = samples.scores[0] - kl_coef * (samples.log_probs[0] - samples.ref_log_probs[0])
    reference_scores = samples.scores[1]
    objective, objective_reference = float(objectives.mean()), float(reference_scores.mean())
    optimum = interval = fraction = fraction_interval = share = least_share = None
    if kl_coef > 0:
        log_weights = samples.log_weights(kl_coef)
        optimum = float(kl_coef * log_mean_exp(log_weights).mean())
        shares = _effective_share(log_weights)
        share, least_share = float(np.median(shares)), float(shares.min())
        draws = _bootstrap(objectives, reference_scores, log_weights, kl_coef, bootstrap, seed)
        interval = _interval(draws[2])
        best = optimum if known_optimum is None else max(optimum, known_optimum)
        best_draws = draws[2] if known_optimum is None else np.maximum(draws[2], known_optimum)
        if _interval(best_draws - draws[1])[0] > 1e-9:
            fraction = objective_fraction(objective, objective_reference, best)
            with np.errstate(divide="ignore", invalid="ignore"):
                fractions = (draws[0] - draws[1]) / (best_draws - draws[1])
            fraction_interval = _interval(fractions)
        optimum = best
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
    )


def rescaled(
    found: Comparison, objective_reference: float, optimum_lower_bound: float | None
) -> Comparison:
    """`found` between another untrained actor's J and another bound, without an interval."""
    fraction = None
    if optimum_lower_bound is not None:
        fraction = objective_fraction(found.objective, objective_reference, optimum_lower_bound)
    return replace(
        found,
        objective_reference=objective_reference,
        optimum_lower_bound=optimum_lower_bound,
        objective_fraction=fraction,
        fraction_interval=None,
    )


def _effective_share(log_weights: np.ndarray) -> np.ndarray:
    """(X,) (Σw)²/(n·Σw²)."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    return weights.sum(-1) ** 2 / np.square(weights).sum(-1) / weights.shape[-1]


def _bootstrap(
    objectives: np.ndarray,
    reference_scores: np.ndarray,
    log_weights: np.ndarray,
    kl_coef: float,
    draws: int,
    seed: int,
) -> np.ndarray:
    """(3, draws) of J, J_ref and the bound, responses resampled within each prompt and kind."""
    rng = np.random.default_rng(seed)
    prompts, n = objectives.shape
    row = np.arange(prompts)[:, None]
    results = np.empty((3, draws))
    for draw in range(draws):
        own, other = rng.integers(n, size=(2, prompts, n))
        picked = np.concatenate([own, n + other], axis=1)
        results[0, draw] = objectives[row, own].mean()
        results[1, draw] = reference_scores[row, other].mean()
        results[2, draw] = kl_coef * log_mean_exp(log_weights[row, picked]).mean()
    return results


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
