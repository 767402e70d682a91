"""Where best-of-n, the tilted optimum of equal KL and a trained policy stand on the same prompts.

In closed form everything is a sum over all responses. By samples, E[R] and gold reward are unbiased
(`tokenenv.optimum.best_of_n_samples`), with bootstrap intervals over prompts; the KL of best-of-n
is not measured but bounded by log n − (n − 1)/n, so that J is *at least* what is said.

The tilted optimum is that of the samples in the reference's place. With the KL k it has the E[R]

    min_λ (k + mean_x log mean_i exp(λ·R_i))/λ,    λ = 1/β′,

and both the least of random numbers and the log of a mean lie below those of their expectations: a
lower bound in expectation on what the true one has. It is a loose one where few samples carry the
weight.

Axes: `X` prompts, `m` samples to each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.evaluation import HeldOut, respond
from tokenenv.optimum import PrefixTree, policy_levels
from tokenenv.optimum.best_of_n import (
    PolicyPoint,
    ScoredResponses,
    best_of_n,
    kl_coef_of_equal_kl,
    kl_upper_bound,
    optimum,
    tilted_optimum,
)
from tokenenv.optimum.best_of_n_samples import check_size, chosen_shares, interval_over_prompts
from tokenenv.optimum.exact_evaluation import evaluate_levels
from tokenenv.optimum.mixture import objective_fraction

__all__ = ["BestOfNReport", "Standing", "Tilted", "in_closed_form", "sampled"]

CHUNK = 1024
"""Responses that are sampled and scored at once, about."""

FRONTIER_POINTS = 40
"""Tilted optima that a figure draws a curve through."""


@dataclass(frozen=True, slots=True)
class Tilted:
    """A tilted optimum π*_β′; means over prompts.

    Attributes:
        kl_coef: β′; ∞ for the reference, 0 for the limit of all weight on the highest score.
        kl: KL(π*_β′ ‖ π_ref) per response, in nats.
        score: E[R].
        gold_reward: E[gold], or None.
        objective: E[R] − β·KL at the β of the report.
    """

    kl_coef: float
    kl: float
    score: float
    gold_reward: float | None
    objective: float

    @classmethod
    def at(cls, responses: ScoredResponses, tilt: float, kl_coef: float) -> Tilted:
        """That of β′ = `tilt`, with its J at β = `kl_coef`."""
        point = tilted_optimum(responses, tilt)
        return cls(tilt, point.kl, point.score, point.gold_reward, point.objective(kl_coef))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where best-of-n or a trained policy stands; means over prompts.

    Attributes:
        n: of best-of-n; None for a policy.
        kl: KL to the reference per response, in nats; None where it is only bounded.
        kl_upper_bound: log n − (n − 1)/n; None for a policy.
        score: E[R].
        gold_reward: E[gold], or None.
        objective: J = E[R] − β·KL, with the bound in place of a KL that is not known: J is at
            least this then.
        objective_fraction: (J − J_ref)/(J* − J_ref), or None where J* is not known.
        tilted: the tilted optimum of equal KL, that of the bound where only it is known. From
            samples, lower bounds in expectation.
        intervals: 95 % bootstrap intervals over prompts by the names of the above; none in closed
            form.
    """

    n: int | None
    kl: float | None
    kl_upper_bound: float | None
    score: float
    gold_reward: float | None
    objective: float
    objective_fraction: float | None
    tilted: Tilted
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)

    @property
    def shown_kl(self) -> float:
        """The KL, or its upper bound."""
        kl = self.kl_upper_bound if self.kl is None else self.kl
        assert kl is not None
        return kl


@dataclass(frozen=True, slots=True)
class BestOfNReport:
    """Everything that is shown.

    Attributes:
        method: `"closed form"` or `"samples"`.
        kl_coef: β that J is measured at.
        prompts: X.
        responses_per_prompt: all there are, or m samples.
        optimum: J*, or None where it is not known.
        rows: of best-of-n, by n.
        policy: a trained policy, or None.
        frontier: tilted optima from the reference on, up to the largest KL of the above.
    """

    method: str
    kl_coef: float
    prompts: int
    responses_per_prompt: int
    optimum: float | None
    rows: tuple[Standing, ...]
    policy: Standing | None
    frontier: tuple[Tilted, ...]

    @property
    def is_exact(self) -> bool:
        """Whether nothing is sampled."""
        return self.method == "closed form"

    @property
    def best(self) -> Standing:
        """Of best-of-n, the row with the greatest J, or the greatest bound on it."""
        return max(self.rows, key=lambda row: row.objective)


# Closed form -------------------------------------------------------------------------------------


def in_closed_form(
    tree: PrefixTree, sizes: Sequence[int], kl_coef: float, policy: Any = None
) -> BestOfNReport:
    """Best-of-n, tilted optima and a policy by summation over all responses.

    Args:
        tree: of the task.
        sizes: values of n, in order.
        kl_coef: β ≥ 0 of J.
        policy: see `tokenenv.optimum.policy_levels`; or None.

    Raises:
        ValueError: an n or the policy can't be used.
    """
    responses = ScoredResponses.of_tree(tree)
    worst, best = best_of_n(responses, 1).score, optimum(responses, kl_coef)

    def standing(n: int | None, point: PolicyPoint) -> Standing:
        objective = point.objective(kl_coef)
        return Standing(
            n,
            point.kl,
            None if n is None else kl_upper_bound(n),
            point.score,
            point.gold_reward,
            objective,
            objective_fraction(objective, worst, best),
            _tilted_of_equal_kl(responses, point.kl, kl_coef),
        )

    rows = tuple(standing(n, best_of_n(responses, n)) for n in sizes)
    trained = None if policy is None else standing(None, _exact_point(tree, policy))
    return BestOfNReport(
        "closed form",
        kl_coef,
        responses.scores.shape[0],
        responses.scores.shape[1],
        best,
        rows,
        trained,
        _frontier(responses, [*rows, *([] if trained is None else [trained])], kl_coef),
    )


def _exact_point(tree: PrefixTree, policy: Any) -> PolicyPoint:
    found = evaluate_levels(tree, policy_levels(policy, tree), 0.0)
    gold = None if found.gold_reward is None else float(found.gold_reward.mean())
    return PolicyPoint(float(found.kl.mean()), float(found.score.mean()), gold)


# Samples -----------------------------------------------------------------------------------------


def sampled(
    held_out: HeldOut,
    sizes: Sequence[int],
    samples: int,
    kl_coef: float,
    seed: int,
    policy: Any = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BestOfNReport:
    """Best-of-n, tilted optima and a policy by samples.

    Args:
        held_out: the prompts, the reference and the scorer.
        sizes: values of n, in order, none above `samples`.
        samples: m responses of the reference to each prompt, and as many of the policy.
        kl_coef: β ≥ 0 of J.
        seed: of the sampling and the intervals.
        policy: a causal LM, or None.
        on_progress: called with (responses done, all).

    Raises:
        ValueError: an n is more than the samples, or the reward fails.
    """
    for n in sizes:
        check_size(n, samples)  # before the work
    models = [held_out.scorer.reference.language_model.model]
    models += [] if policy is None else [policy]
    total = len(models) * samples * len(held_out.prompts)
    draws = []
    for stream, model in enumerate(models):
        done = stream * samples * len(held_out.prompts)

        def report(new: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(before + new, total)

        draws.append(_draw(model, held_out, samples, (seed, stream), report))
    scores, gold, _ = draws[0]
    responses = ScoredResponses.of_samples(scores, gold)
    rows = tuple(_estimated(responses, n, kl_coef, seed) for n in sizes)
    trained = None
    if policy is not None:
        scores, gold, kls = draws[1]
        trained = _standing_of_samples(None, scores, gold, kls, responses, kl_coef, seed)
    everything = [*rows, *([] if trained is None else [trained])]
    return BestOfNReport(
        "samples",
        kl_coef,
        responses.scores.shape[0],
        responses.scores.shape[1],
        None,
        rows,
        trained,
        _frontier(responses, everything, kl_coef),
    )


def _draw(
    model: Any,
    held_out: HeldOut,
    samples: int,
    seed: tuple[int, int],
    on_done: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(X, m) scores, gold rewards if known, and log π − log π_ref of a model's responses."""
    size = max(1, CHUNK // samples)
    reports = []
    for start in range(0, len(held_out.prompts), size):
        rows = [
            row
            for row in range(start, min(start + size, len(held_out.prompts)))
            for _ in range(samples)
        ]
        reports += respond(
            model,
            held_out.scorer,
            [held_out.texts[row] for row in rows],
            [held_out.prompts[row] for row in rows],
            held_out.max_new_tokens,
            int(np.random.SeedSequence((*seed, start)).generate_state(1)[0]),
            origins=[held_out.origins[row] for row in rows],
        )
        on_done(len(reports))

    def table(name: str) -> np.ndarray:
        return np.array([getattr(r, name) for r in reports], dtype=float).reshape(-1, samples)

    gold = None if reports[0].gold_reward is None else table("gold_reward")
    return table("score"), gold, table("kl")


def _estimated(responses: ScoredResponses, n: int, kl_coef: float, seed: int) -> Standing:
    """Best-of-n over all n-subsets of the samples."""
    shares = responses.scores.shape[1] * chosen_shares(responses.scores, n)
    gold = responses.gold_rewards
    return _standing_of_samples(
        n,
        shares * responses.scores,
        None if gold is None else shares * gold,
        np.full(shares.shape, kl_upper_bound(n)),
        responses,
        kl_coef,
        seed,
    )


def _standing_of_samples(
    n: int | None,
    scores: np.ndarray,
    gold: np.ndarray | None,
    kls: np.ndarray,
    responses: ScoredResponses,
    kl_coef: float,
    seed: int,
) -> Standing:
    """Means and intervals of (X, m) tables; of best-of-n the KL is its bound."""
    by_prompt = {"score": scores.mean(1), "objective": (scores - kl_coef * kls).mean(1)}
    if gold is not None:
        by_prompt["gold_reward"] = gold.mean(1)
    if n is None:
        by_prompt["kl"] = kls.mean(1)
    kl, gold_reward = float(kls.mean()), None if gold is None else float(gold.mean())
    return Standing(
        n,
        kl if n is None else None,
        None if n is None else kl_upper_bound(n),
        float(scores.mean()),
        gold_reward,
        float(by_prompt["objective"].mean()),
        None,
        _tilted_of_equal_kl(responses, kl, kl_coef),
        {name: interval_over_prompts(values, seed) for name, values in by_prompt.items()},
    )


# Tilted optima -----------------------------------------------------------------------------------


def _tilted_of_equal_kl(responses: ScoredResponses, kl: float, kl_coef: float) -> Tilted:
    """The tilted optimum of that KL; an estimate of a KL may be below 0."""
    return Tilted.at(responses, kl_coef_of_equal_kl(responses, max(0.0, kl)), kl_coef)


def _frontier(
    responses: ScoredResponses, standings: Sequence[Standing], kl_coef: float
) -> tuple[Tilted, ...]:
    """Tilted optima from the reference to the largest KL of some standings."""
    largest = max((row.shown_kl for row in standings), default=0.0)
    # The limit itself is reached at no β′ > 0.
    largest = min(largest, 0.999 * tilted_optimum(responses, 0.0).kl)
    if largest <= 0:
        return ()
    coarse = kl_coef_of_equal_kl(responses, largest) * np.geomspace(1e5, 1.0, FRONTIER_POINTS)
    roots = [math.sqrt(tilted_optimum(responses, tilt).kl) for tilt in coarse]
    # Even steps of √KL, about: between the coarse points log β′ is taken to be straight.
    evenly = np.linspace(0.0, math.sqrt(largest), FRONTIER_POINTS)[1:]
    tilts = [math.inf, *np.exp(np.interp(evenly, roots, np.log(coarse))).tolist()]
    return tuple(Tilted.at(responses, tilt, kl_coef) for tilt in tilts)
