"""The state of a `TokenMDP` as JSON values and arrays, and going on from it.

Models and prompts are no part of it: they are the environment's arguments. Digests tell whether the
environment that is to go on has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tokenenv.data import prompt_of_state, prompt_state
from tokenenv.models import contents_digest
from tokenenv.rewards import learned_rewards

__all__ = ["load_state", "state_of"]


def state_of(mdp: Any) -> dict[str, Any]:
    """Episodes, β, group of prompts, and what the reference has seen; of a `TokenMDP`."""
    return {
        "episodes": mdp.episodes.state_dict(),
        "token_rewards": mdp.token_rewards.copy(),
        "kl_coef": mdp.kl_coef,
        "group": [mdp._group, mdp._group_index, mdp._group_left],
        "origins": [prompt_state(origin) for origin in mdp._origins],
        "reference_decoder": mdp.reference_decoder.state_dict(),
        "prompts_digest": mdp.book.digest,
        "reference_digest": _reference_digest(mdp),
        "reward_digests": _reward_digests(mdp),
    }


def load_state(mdp: Any, state: Mapping[str, Any]) -> None:
    """Let a `TokenMDP` go on from where `state_of` was called.

    Args:
        mdp: made with the same arguments.
        state: of the other.

    Raises:
        ValueError: its prompts, reference, reward models or sizes are others; nothing has changed
            then.
    """
    same = "make the environment with the arguments that it had, or restore its files"
    if state["prompts_digest"] != mdp.book.digest:
        raise ValueError(
            f"the prompts of this environment ({len(mdp.prompts):,}) are not those of the stored "
            f"one, which drew from them by number: {same}."
        )
    if state["reference_digest"] != _reference_digest(mdp):
        raise ValueError(
            f"the reference {mdp.settings.reference!r} has other weights than that of the stored "
            f"environment: {same}."
        )
    before = state.get("reward_digests", {})
    for name, digest in _reward_digests(mdp).items():
        if None not in (digest, before.get(name)) and digest != before[name]:
            raise ValueError(
                f"the reward model{f' {name!r}' if name else ''} of this environment has other "
                f"weights, mean or deviation than that of the stored one: {same}."
            )
    mdp.episodes.load_state_dict(state["episodes"])
    mdp.token_rewards[...] = np.asarray(state["token_rewards"])
    mdp.set_kl_coef(state["kl_coef"])
    mdp._group, mdp._group_index, mdp._group_left = state["group"]
    mdp._origins = [prompt_of_state(origin) for origin in state["origins"]]
    mdp.reference_decoder.load_state_dict(state["reference_decoder"])


def _reward_digests(mdp: Any) -> dict[str, str | None]:
    """Name → digest of each reward model; None of one that has learned since it was loaded."""
    found: dict[str, str | None] = {}
    for name, learned in learned_rewards(mdp.scorer.reward).items():
        model = learned.reward_model
        scale = torch.tensor([model.mean, model.std], dtype=torch.float64)
        weights = [*model.model.named_parameters(), ("mean and deviation", scale)]
        found[name] = None if model.version else contents_digest(weights)
    return found


def _reference_digest(mdp: Any) -> str:
    return contents_digest(mdp.language_model.model.named_parameters())
