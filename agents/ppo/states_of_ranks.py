"""What of a training each rank has for itself, and a checkpoint of it for other ranks.

The first rank writes its checkpoint as it would alone, and beside it, as the part `ranks`, what the
others have for themselves: environments, episodes under way, generators. As many ranks go on with
it to the bit; another number begins its rollouts afresh, with everything that was learned.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from agents.checkpoints import Checkpoint, generators_state, optimizer_state
from agents.rollout import RLHFCallback
from agents.scaling import Ranks

__all__ = ["RANKS", "for_this_rank", "number_of_ranks", "optimizer_of_ranks", "others_of"]

logger = logging.getLogger(__name__)

RANKS = "ranks"
"""The name of the part."""


def number_of_ranks(checkpoint: Checkpoint) -> int:
    """How many ranks trained what a checkpoint holds."""
    return int(checkpoint.parts.get(RANKS, {"count": 1})["count"])


# Taking it ----------------------------------------------------------------------------------------


def optimizer_of_ranks(model: Any) -> dict[str, Any]:
    """The optimiser's state, whole; every rank has to ask for it where it is sharded."""
    trained = model.trained
    state = optimizer_state(trained.optimizer, trained.module)
    return {**state, "weights": trained.whole(state["weights"])}


def others_of(model: Any, callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """The part `ranks` of a checkpoint, as an item of its parts; empty for one process.

    Every rank has to ask for it.

    Args:
        model: a `TokenPPO` between two rollouts.
        callbacks: those with a state, by name.
    """
    ranks: Ranks = model.ranks
    if ranks.count == 1:
        return {}
    rows = {
        name: {key: callback.state_dict()[key] for key in RLHFCallback.ROWS}
        for name, callback in callbacks.items()
        if isinstance(callback, RLHFCallback)
    }
    own = {
        "environment": model.env.state_dict(),
        "buffer": model.rollout_buffer.state_dict(),
        "generators": generators_state(),
        "last_obs": np.array(model._last_obs),
        "last_episode_starts": np.array(model._last_episode_starts, dtype=bool),
        "callbacks": rows,
    }
    states = ranks.gather(own)
    return {RANKS: {"count": ranks.count, "others": states[1:]}}


# Going on from it ---------------------------------------------------------------------------------


def for_this_rank(model: Any, checkpoint: Checkpoint) -> tuple[Checkpoint, bool]:
    """A checkpoint as this rank goes on from it.

    Args:
        model: of this rank.
        checkpoint: of any number of ranks.

    Returns:
        The checkpoint, and whether rollouts go on: with another number of ranks they begin afresh.
    """
    ranks: Ranks = model.ranks
    parts, count = checkpoint.parts, number_of_ranks(checkpoint)
    if count != ranks.count:
        if ranks.is_first:
            logger.warning(
                "the checkpoint %s is of %d rank(s), and goes on with %d: weights, optimiser, "
                "schedules, β and counters go on; episodes under way are left, and rollouts begin "
                "with other seeds.",
                checkpoint.folder,
                count,
                ranks.count,
            )
        return checkpoint, False
    if ranks.is_first:
        return checkpoint, True
    own = parts[RANKS]["others"][ranks.rank - 1]
    at = {name: own[name] for name in ("last_obs", "last_episode_starts")}
    mine = {
        **parts,
        **{name: own[name] for name in ("environment", "buffer", "generators")},
        "model": {**parts["model"], **at},
        **{
            name: {**parts[name], **rows}
            for name, rows in own["callbacks"].items()
            if name in parts
        },
    }
    return replace(checkpoint, parts=mine), True
