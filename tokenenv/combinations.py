"""How several rewards become one: the choices, what each can be used with, folders of ensembles.

Importing this loads no torch: settings are checked with it before anything is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from tokenenv.addresses import check_addresses
from tokenenv.ranges import OPTIONAL_WEIGHT, check_reward_weights
from tokenenv.tasks import names_code

__all__ = [
    "COMBINATIONS",
    "Combination",
    "check_combination",
    "ensemble_members",
    "named_rewards",
]

COMBINATIONS = ("sum", "mean", "min", "uncertainty")
"""The weighted sum of any rewards; of reward models also their mean, the worst of them, and their
mean less a multiple of their standard deviation."""

UNCERTAINTY_COEF = 1.0
"""c of mean − c·deviation unless it is given."""

_MEMBER = re.compile(r"member-(\d+)")


@dataclass(frozen=True, slots=True)
class Combination:
    """How several rewards become one.

    Attributes:
        name: one of `COMBINATIONS`.
        uncertainty_coef: c of `"uncertainty"`, mean − c·deviation; None: 1.
    """

    name: str = "sum"
    uncertainty_coef: float | None = None

    @property
    def coefficient(self) -> float:
        """The number c of mean − c·deviation."""
        given = self.uncertainty_coef
        return UNCERTAINTY_COEF if given is None else float(given)


def ensemble_members(name: Any) -> list[str]:
    """The folders of an ensemble that `tokenrlhf reward-model --members` wrote to `name`.

    Returns:
        `NAME/member-1`, `NAME/member-2`, … by their numbers; none where `name` is a model itself,
        or anything else.
    """
    if not isinstance(name, str) or not os.path.isdir(name):
        return []
    if os.path.lexists(os.path.join(name, "config.json")):
        return []
    try:
        entries = os.listdir(name)
    except OSError:  # loading says that it can't be read
        return []
    numbers = {
        int(found[1]): entry
        for entry in entries
        if (found := _MEMBER.fullmatch(entry))
        and os.path.isfile(os.path.join(name, entry, "config.json"))
    }
    return [os.path.join(name, numbers[number]) for number in sorted(numbers)]


def check_combination(
    reward_model: Any, weights: Any, combine: Any, uncertainty_coef: Any = None
) -> None:
    """Check how rewards are combined, as far as their names alone say it; no folder is read.

    Args:
        reward_model: a reward, a list of them, or None.
        weights: one for each, or None.
        combine: one of `COMBINATIONS`, or None.
        uncertainty_coef: c, or None.

    Raises:
        ValueError: the choice is unknown, or can't be used with these rewards.
    """
    check_addresses(reward_model)
    check_reward_weights(reward_model, weights)
    if combine is not None and (not isinstance(combine, str) or combine not in COMBINATIONS):
        raise ValueError(
            f"reward_combine={combine!r:.60} (--combine) is unknown: choose one of "
            f"{', '.join(map(repr, COMBINATIONS))}."
        )
    if not OPTIONAL_WEIGHT.holds(uncertainty_coef):
        raise ValueError(
            f"uncertainty_coef={uncertainty_coef!r:.60} must be {OPTIONAL_WEIGHT.words}."
        )
    if uncertainty_coef is not None and combine != "uncertainty":
        raise ValueError(
            f"uncertainty_coef={uncertainty_coef!r} is of reward_combine='uncertainty' "
            f"(--combine), and that is {combine!r}: leave out either."
        )
    if combine in (None, "sum"):
        return
    rewards = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    functions = [one for one in rewards if callable(one) or names_code(one)]
    if functions:
        names = ", ".join(repr(getattr(one, "__name__", one)) for one in functions)
        raise ValueError(
            f"reward_combine={combine!r} (--combine) is for reward models, whose disagreement says "
            f"how little they know, and {names} is a function, which nothing is estimated by: "
            "combine by 'sum', with weights."
        )
    if weights is None:
        return
    if combine != "mean":
        raise ValueError(
            f"reward_weights={list(weights)!r:.80}: reward_combine={combine!r} (--combine) takes "
            "all reward models alike. Leave the weights out, or combine by 'mean' or 'sum'."
        )
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(
            f"reward_weights={list(weights)!r:.80}: for reward_combine='mean' (--combine) they "
            "must be 0 or greater, and not all of them 0; 'sum' takes any."
        )


def named_rewards(reward_model: Any, combine: str | None) -> tuple[Any, str]:
    """The rewards that are meant, with an ensemble's folder replaced by those of its members.

    Args:
        reward_model: a reward or a list of them.
        combine: one of `COMBINATIONS`; None: the mean of an ensemble's members, else the sum.

    Returns:
        The reward or the list, and one of `COMBINATIONS`.

    Raises:
        ValueError: there are not two rewards to combine, or an ensemble is one of several rewards.
    """
    is_list = isinstance(reward_model, list | tuple)
    rewards = list(reward_model) if is_list else [reward_model]
    if len(rewards) == 1 and (members := ensemble_members(rewards[0])):
        return (members, combine or "mean") if len(members) > 1 else (members[0], combine or "sum")
    for one in rewards:
        if members := ensemble_members(one):
            raise ValueError(
                f"reward_model names {one!r} among {len(rewards)} rewards, and it holds the "
                f"{len(members)} members of an ensemble: name it alone, or name its members "
                f"({', '.join(members[:2])}, …)."
            )
    if combine not in (None, "sum") and len(rewards) < 2:
        raise ValueError(
            f"reward_combine={combine!r} (--combine) makes one reward of several, and "
            f"reward_model={rewards[0]!r:.80} is one: name several reward models, or the folder of "
            "an ensemble (tokenrlhf reward-model --members 3)."
        )
    return reward_model, combine or "sum"
