"""Values from continuations for responses that no update has used, as the estimator has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.credit.settings import UpdateSettings
from agents.policy import LMActorCriticPolicy
from agents.rollout import VineValues
from tokenenv.rewards import Episode, EpisodeScorer

__all__ = ["vine_values"]

SEED = 0
"""Of the continuations: a table draws nothing from the generators that training draws from."""


def vine_values(
    policy: LMActorCriticPolicy,
    scorer: EpisodeScorer,
    episodes: Sequence[Episode],
    settings: UpdateSettings,
) -> np.ndarray | None:
    """(n,) V̂ of the states of finished responses; None unless the estimator is `"vine"`.

    Args:
        policy: whose actor samples the continuations.
        scorer: of the environment.
        episodes: B finished responses of n tokens in all.
        settings: of the agent, with β.

    Raises:
        ValueError: T is not known.
    """
    if settings.advantage_estimator != "vine":
        return None
    if settings.max_new_tokens is None:
        raise ValueError(
            "max_new_tokens=None with advantage_estimator='vine': give T, how long a response may "
            "be, which continuations need to know."
        )
    assert settings.kl_coef is not None
    values = VineValues(
        policy.actor,
        scorer,
        settings.max_new_tokens,
        settings.penalty,
        settings.vine_samples,
        SEED,
    )
    responses = [(episode.prompt, episode.response) for episode in episodes]
    origins = [episode.origin for episode in episodes]
    return np.concatenate(values.of_responses(responses, settings.kl_coef, origins)[0])
