"""The state of a `TokenMDP` as JSON values and arrays, and going on from it.

Models and prompts are no part of it: they are the environment's arguments. Digests tell whether the
environment that is to go on has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenenv.data import prompt_of_state, prompt_state
from tokenenv.models import contents_digest

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
    }


def load_state(mdp: Any, state: Mapping[str, Any]) -> None:
    """Let a `TokenMDP` go on from where `state_of` was called.

    Args:
        mdp: made with the same arguments.
        state: of the other.

    Raises:
        ValueError: its prompts, its reference or its sizes are others; nothing has changed then.
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
    mdp.episodes.load_state_dict(state["episodes"])
    mdp.token_rewards[...] = np.asarray(state["token_rewards"])
    mdp.set_kl_coef(state["kl_coef"])
    mdp._group, mdp._group_index, mdp._group_left = state["group"]
    mdp._origins = [prompt_of_state(origin) for origin in state["origins"]]
    mdp.reference_decoder.load_state_dict(state["reference_decoder"])


def _reference_digest(mdp: Any) -> str:
    return contents_digest(mdp.language_model.model.named_parameters())
