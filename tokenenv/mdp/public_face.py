"""What the single environment and the batch offer of their token MDP in the same words."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from tokenenv.episodes import NO_TOKEN
from tokenenv.mdp.token_mdp import TokenMDP
from tokenenv.rewards import EpisodeScorer
from tokenenv.settings import ResolvedSettings

__all__ = ["TokenMDPMixin", "check_options", "settle_generators"]


Environment = TypeVar("Environment", bound="TokenMDPMixin")


def check_options(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """`reset`'s options, or ValueError for unknown ones."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(
            f"reset(options={options!r}) is a {type(options).__name__}; it must be a dict, such as "
            "{'prompt': 'text'}, or None."
        )
    unknown = [repr(key) for key in options if key not in known]
    if unknown:
        raise ValueError(
            f"reset() knows no option {', '.join(unknown)}: it takes "
            f"{', '.join(map(repr, known))}. Everything else is an argument of the environment."
        )
    return options


def settle_generators(env: Any) -> None:
    """Let an environment and its spaces have the random generators that they would make later.

    Each is made at its first use, from the system's entropy: a copy would make another one.
    """
    names = ("observation_space", "action_space", "single_observation_space", "single_action_space")
    for owner in (env, *(getattr(env, name, None) for name in names)):
        getattr(owner, "np_random", None)


class TokenMDPMixin:
    """The public attributes and methods of an environment over a `TokenMDP`.

    Attributes:
        mdp: the token MDP.
    """

    mdp: TokenMDP

    @property
    def settings(self) -> ResolvedSettings:
        """The resolved arguments, with the β that holds now."""
        return self.mdp.settings

    @property
    def scorer(self) -> EpisodeScorer:
        """The part that scores finished episodes."""
        return self.mdp.scorer

    @property
    def kl_coef(self) -> float:
        """β, owned by this environment; also in `info`."""
        return self.mdp.kl_coef

    def set_kl_coef(self, kl_coef: float) -> None:
        """Change β, between rollouts; ValueError where it is negative."""
        self.mdp.set_kl_coef(kl_coef)

    def begin_group(self) -> None:
        """Let the next start draw a prompt, whether or not the group before it is complete."""
        self.mdp.begin_group()

    # Copies --------------------------------------------------------------------------------------

    def fork(self: Environment) -> Environment:
        """A copy that continues identically, for looking ahead and for going back.

        The same actions bring the same observations, rewards, infos and next prompts in both,
        whatever happens to the other one: states, token rewards, β, the group of prompts, random
        generators (those of the spaces too) and the reference's cached keys and values are copied.
        Models and a reward function are shared and no weights are copied, which is cheap enough for
        a fork at every token. Wrappers around this environment are left behind:
        `tokenenv.wrappers.fork(env)` copies them as well.

        A fork of an environment with `scoring="deferred"` stands outside of the rollout that a
        buffer collects: to finish an episode in it, call its `leave_scoring_to_caller()`.
        """
        settle_generators(self)
        memo: dict[int, Any] = {id(self.mdp): self.mdp.fork()}
        spec = getattr(self, "spec", None)
        memo[id(spec)] = spec  # it never changes, and may hold a reward function
        return copy.deepcopy(self, memo)

    # Deferred scoring ----------------------------------------------------------------------------

    def leave_scoring_to_caller(self, is_left: bool = True) -> None:
        """Declare that you score finished episodes yourself, or no longer.

        Without it, an environment with `scoring="deferred"` raises where an episode ends, except in
        rollouts that `agents.EpisodeRolloutBuffer` collects.
        """
        self.mdp.is_scored_by_caller = is_left

    def leave_next_score_to_buffer(self) -> None:
        """Declare that a buffer collects the next step, and scores what ends with it."""
        self.mdp.is_next_scored_by_buffer = True

    # States --------------------------------------------------------------------------------------

    @property
    def states(self) -> np.ndarray:
        """(N, P+T) int64: the observations that hold now, all -1 where no episode is running."""
        episodes = self.mdp.episodes
        return np.where(episodes.running[:, None], episodes.observations, NO_TOKEN)

    def is_at(self, observations: np.ndarray) -> np.ndarray:
        """(N,) bool, whether the next action will be taken in these (N, P+T) observations."""
        episodes = self.mdp.episodes
        if episodes.running.all() and np.array_equal(episodes.observations, observations):
            return episodes.running.copy()
        return (self.states == observations).all(axis=1)
