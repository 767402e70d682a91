"""Which advantage estimator goes with which other settings of the rollout buffer.

Imports no torch: the command line checks its settings with it.
"""

from __future__ import annotations

from tokenenv.maths import ADVANTAGE_ESTIMATORS, CRITIC_FREE, GROUPED
from tokenenv.ranges import (
    COUNT,
    OPTIONAL_COUNT,
    OPTIONAL_FRACTION,
    OPTIONAL_POSITIVE_FINITE,
    check_ranges,
)

__all__ = ["DEFAULT_LAMBDA", "DEFAULT_VINE_SAMPLES", "check_estimator"]

DEFAULT_LAMBDA = 0.95
"""λ of generalised advantage estimation."""

DEFAULT_VINE_SAMPLES = 9
"""K, continuations of every state, of the estimator `"vine"`; as in the paper's experiments."""

_CARRY = "use rollout_buffer_kwargs={'cut': 'carry'}, on the command line --cut carry."


def check_estimator(
    estimator: str,
    group_size: int,
    cut: str,
    gamma: float,
    whiten_rewards: bool = False,
    gae_lambda_value: float | None = None,
    gae_lambda_alpha: float | None = None,
    vine_samples: int | None = None,
) -> None:
    """Check that an advantage estimator can be combined with the other settings.

    Args:
        estimator: its name.
        group_size: responses to the same prompt.
        cut: what happens to the episodes that the end of a rollout cuts.
        gamma: discount factor γ.
        whiten_rewards: whether rewards are scaled before anything is computed from them.
        gae_lambda_value: λ of the critic's targets.
        gae_lambda_alpha: α of the length-adaptive λ.
        vine_samples: continuations of every state.

    Raises:
        ValueError: there is no such estimator, or it can't be used with the others.
    """
    if estimator not in ADVANTAGE_ESTIMATORS:
        allowed = ", ".join(map(repr, ADVANTAGE_ESTIMATORS))
        raise ValueError(f"advantage_estimator={estimator!r} is unknown: choose one of {allowed}.")
    optional = {
        "gae_lambda_value": gae_lambda_value,
        "gae_lambda_alpha": gae_lambda_alpha,
        "vine_samples": vine_samples,
    }
    check_ranges({"group_size": group_size, **optional}, _RANGES)
    _check_lambdas(estimator, cut, gae_lambda_value, gae_lambda_alpha)
    if vine_samples is not None and estimator != "vine":
        raise ValueError(
            f"vine_samples={vine_samples!r} is without effect with advantage_estimator="
            f"{estimator!r}, which continues no state: leave it out, or use "
            "advantage_estimator='vine'."
        )
    if estimator == "vine":
        _check_vine(cut, gamma, whiten_rewards)
    elif estimator in CRITIC_FREE:
        _check_uniform(estimator, group_size, cut, gamma, whiten_rewards)


_RANGES = {
    "group_size": COUNT,
    "gae_lambda_value": OPTIONAL_FRACTION,
    "gae_lambda_alpha": OPTIONAL_POSITIVE_FINITE,
    "vine_samples": OPTIONAL_COUNT,
}


def _check_lambdas(
    estimator: str, cut: str, gae_lambda_value: float | None, gae_lambda_alpha: float | None
) -> None:
    """Refuse values of λ that nothing would use, or that are not known yet when they are used."""
    name = f"advantage_estimator={estimator!r}"
    if gae_lambda_value is not None and estimator in CRITIC_FREE:
        raise ValueError(
            f"gae_lambda_value={gae_lambda_value!r} is for the targets of a critic, but {name} "
            "needs none: leave gae_lambda_value out, or use an estimator with a critic."
        )
    if gae_lambda_alpha is None:
        return
    if estimator != "gae":
        raise ValueError(
            f"gae_lambda_alpha={gae_lambda_alpha!r} is without effect with {name}: leave it out, "
            "or use advantage_estimator='gae'."
        )
    if cut != "carry":
        raise ValueError(
            f"gae_lambda_alpha={gae_lambda_alpha!r} makes λ of the length of the whole response, "
            f"but cut={cut!r} uses the first part of a cut one before that is known: {_CARRY}"
        )


def _check_vine(cut: str, gamma: float, whiten_rewards: bool) -> None:
    """Refuse settings under which rewards and the returns of continuations do not fit together."""
    name = "advantage_estimator='vine'"
    if cut != "carry":
        raise ValueError(
            f"{name} continues every state of a finished response, with no critic's value for the "
            f"states where a rollout ends, but cut={cut!r} needs that: {_CARRY}"
        )
    if gamma != 1:
        raise ValueError(
            f"{name} values a state by the undiscounted returns of its continuations, but "
            f"gamma={gamma!r} discounts: use gamma=1, or an estimator with a critic."
        )
    if whiten_rewards:
        raise ValueError(
            f"{name} compares rewards with the returns of continuations, which whiten_rewards=True "
            "does not scale: leave whiten_rewards out; whiten_advantages sets the scale."
        )


def _check_uniform(
    estimator: str, group_size: int, cut: str, gamma: float, whiten_rewards: bool
) -> None:
    """Refuse settings under which a response has no one return to be compared by."""
    name = f"advantage_estimator={estimator!r}"
    if cut != "carry":
        raise ValueError(
            f"{name} pays every token of a response the return of the whole response, but "
            f"cut={cut!r} uses the first part of a cut one before the rest is known: {_CARRY}"
        )
    if gamma != 1:
        raise ValueError(
            f"{name} gives all tokens of a response the same, undiscounted return, but "
            f"gamma={gamma!r} discounts: use gamma=1, or an estimator with a critic."
        )
    if whiten_rewards:
        raise ValueError(
            f"{name} compares the sums of the rewards of whole responses, which whiten_rewards=True"
            " shifts by an amount for every token: leave whiten_rewards out; whiten_advantages sets"
            " the scale."
        )
    if estimator in GROUPED and group_size < 2:
        raise ValueError(
            f"{name} with one response per prompt (group_size={group_size}) has no others to "
            "compare it with: give the buffer and the environment a group_size of 2 or more, on "
            "the command line --group-size, or use 'reinforce'."
        )
