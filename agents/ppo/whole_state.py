"""The whole state of a training with `TokenPPO`, between two rollouts, and going on from it.

Models and prompts are no part of it, they are arguments; everything that steps, updates and
callbacks change is. So a training that goes on from it gives what it would have given, to the bit
on a CPU.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.checkpoints import (
    Checkpoint,
    generators_state,
    load_generators,
    load_optimizer,
    load_weights,
    weights_state,
    write_checkpoint,
)
from agents.policy import LMActorCriticPolicy
from agents.ppo.many_ranks import seed_rank
from agents.ppo.states_of_ranks import RANKS, for_this_rank, optimizer_of_ranks, others_of
from agents.ppo.stored_settings import settings_state
from agents.rollout import EpisodeRolloutBuffer, RLHFCallback
from agents.vec_env import TokenVecEnv

__all__ = ["Resumption", "go_on_from", "help_checkpoint", "parts_of", "save_checkpoint"]

logger = logging.getLogger(__name__)

_COUNTERS = (
    *("num_skipped_updates", "skipped_in_a_row"),
    *("num_timesteps", "num_updates", "_n_updates", "_episode_num", "_total_timesteps"),
    *("_current_progress_remaining", "has_met_rounding", "update_precision"),
    *("has_measured_precision", "num_rollouts", "_num_timesteps_at_start"),
)
"""Attributes of a model that are numbers."""

OF_THE_MODEL = frozenset(
    ("model", "policy", "optimizer", "environment", "buffer", "generators", "log")
)
"""Names of the parts that are no callback's."""


# Taking it ----------------------------------------------------------------------------------------


def parts_of(model: Any) -> dict[str, Any]:
    """Name → state of every part of a training that is between two rollouts.

    Args:
        model: a `TokenPPO`; its callbacks that offer `state_dict` are parts as well.

    Raises:
        ValueError: a part has a state that can't be taken; the message names it.
    """
    _refuse_other_parts(model)
    if model._last_obs is None or not model.rollout_buffer.is_between_rollouts:
        raise ValueError(
            "a checkpoint is of a training between two rollouts, and this one "
            + ("has not begun" if model._last_obs is None else "is within one")
            + ": let agents.CheckpointCallback save it."
        )
    callbacks = named_callbacks(model.callback)
    return {
        "model": _model_state(model),
        "policy": weights_state(model.policy),
        "optimizer": optimizer_of_ranks(model),
        "environment": model.env.state_dict(),
        "buffer": model.rollout_buffer.state_dict(),
        "generators": generators_state(),
        "log": _log_state(model),
        **{name: callback.state_dict() for name, callback in callbacks.items()},
        **others_of(model, callbacks),
    }


def help_checkpoint(model: Any) -> None:
    """What another rank than the first does while that one saves a checkpoint."""
    optimizer_of_ranks(model)
    others_of(model, named_callbacks(model.callback))


def save_checkpoint(model: Any, folder: Path, parts: Mapping[str, Any]) -> None:
    """Write `parts_of` a training, and further parts, into a folder.

    Args:
        model: a `TokenPPO`.
        folder: it holds all of them, or is as it was.
        parts: name → state.

    Raises:
        ValueError: a state can't be taken, or a further part has the name of another.
        OSError: it can't be written.
    """
    whole = parts_of(model)
    if twice := whole.keys() & parts.keys():
        raise ValueError(f"the part {min(twice)!r} is there already: give it another name.")
    checkpoint = Checkpoint({**whole, **parts}, model.num_timesteps, model.num_updates)
    write_checkpoint(folder, checkpoint)


def _refuse_other_parts(model: Any) -> None:
    """Raise ValueError where policy, buffer or environment have states that are not known."""
    needed = (
        (model.policy, LMActorCriticPolicy),
        (model.rollout_buffer, EpisodeRolloutBuffer),
        (model.env, TokenVecEnv),
    )
    for part, kind in needed:
        if not isinstance(part, kind):
            raise ValueError(
                f"a checkpoint holds the state of {kind.__name__}, and this is "
                f"{type(part).__name__}: use {kind.__name__}, or archives (model.save)."
            )


def _model_state(model: Any) -> dict[str, Any]:
    return {
        "settings": settings_state(model),
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "num_vine_tokens": getattr(model, "num_vine_tokens", None),
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "ep_info_buffer": list(model.ep_info_buffer),
        "ep_success_buffer": [float(success) for success in model.ep_success_buffer],
        "last_obs": np.array(model._last_obs),
        "last_episode_starts": np.array(model._last_episode_starts, dtype=bool),
    }


def _log_state(model: Any) -> dict[str, Any]:
    """What was recorded since the last row of the log: numbers and texts."""
    log = model.logger
    values = {name: _plain(value) for name, value in log.name_to_value.items()}
    kinds = (bool, int, float, str)
    return {
        "values": {name: value for name, value in values.items() if isinstance(value, kinds)},
        "counts": dict(log.name_to_count),
        "excluded": {name: list(excluded) for name, excluded in log.name_to_excluded.items()},
    }


def _plain(value: Any) -> Any:
    is_number = getattr(value, "size", 0) == 1 and hasattr(value, "item")
    return value.item() if is_number else value


def named_callbacks(callback: BaseCallback | None) -> dict[str, Any]:
    """The callbacks with a state, by the names of their classes; further ones are numbered."""
    named: dict[str, Any] = {}
    for one in _flat(callback):
        if hasattr(one, "state_dict") and hasattr(one, "load_state_dict"):
            name, number = type(one).__name__, 1
            while name in named:
                number += 1
                name = f"{type(one).__name__}-{number}"
            named[name] = one
    return named


def _flat(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    if isinstance(callback, CallbackList):
        for inner in callback.callbacks:
            yield from _flat(inner)
    elif callback is not None:
        yield callback


# Going on from it ---------------------------------------------------------------------------------


def go_on_from(model: Any, checkpoint: Checkpoint) -> None:
    """Let a model of the same settings go on from a checkpoint, with its environment.

    What belongs to callbacks, the log and the global generators follows in
    `learn(reset_num_timesteps=False)`, when its callbacks have begun.

    Args:
        model: a `TokenPPO`, as its constructor leaves it.
        checkpoint: of another.

    Raises:
        ValueError: policy, optimiser, environment or buffer are others than those of the
            checkpoint.
    """
    _refuse_other_parts(model)
    missing = sorted(OF_THE_MODEL - checkpoint.parts.keys())
    if missing:
        raise ValueError(f"{str(checkpoint.folder)!r} lacks the part {missing[0]!r}.")
    checkpoint, goes_on = for_this_rank(model, checkpoint)
    parts = checkpoint.parts
    load_weights(model.policy, parts["policy"], "the policy")
    _load_optimizer(model, parts["optimizer"])
    model.policy.kl_coef_is_in_the_environment = True
    state = parts["model"]
    for name, value in state["counters"].items():
        setattr(model, name, value)
    if state["num_vine_tokens"] is not None:
        model.num_vine_tokens = state["num_vine_tokens"]
    size = model._stats_window_size
    model.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=size)
    model.ep_success_buffer = deque(state["ep_success_buffer"], maxlen=size)
    if goes_on:
        model.env.load_state_dict(parts["environment"])
        model._last_obs = np.array(state["last_obs"])
        model._last_episode_starts = np.array(state["last_episode_starts"])
        model.rollout_buffer.load_state_dict(parts["buffer"], model._last_episode_starts)
    else:
        _begin_rollouts_afresh(model, checkpoint)
    model.rollouts_go_on = goes_on
    model.pending = checkpoint


def _load_optimizer(model: Any, state: Mapping[str, Any]) -> None:
    """Load what `optimizer_of_ranks` gave: whole where ranks have whole weights, else its shard."""
    trained = model.trained
    weights = dict(trained.module.named_parameters())
    known = {name: trained.part(own, weights[name]) for name, own in state["weights"].items()}
    load_optimizer(trained.optimizer, trained.module, {**state, "weights": known})


def _begin_rollouts_afresh(model: Any, checkpoint: Checkpoint) -> None:
    """β as it was, and episodes that begin with other seeds than those of the training before."""
    model.env.env_method("set_kl_coef", checkpoint.parts["environment"]["inner"]["mdp"]["kl_coef"])
    model._last_obs = None
    first = _seed_after(model, checkpoint) + model.ranks.rank * model.env.num_envs
    model.env.seed(first)


def _seed_after(model: Any, checkpoint: Checkpoint) -> int:
    """A seed that depends on that of the training and on how long it was."""
    numbers = [model.seed or 0, checkpoint.tokens, model.ranks.count]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % 2**31


class Resumption(BaseCallback):
    """The last of the callbacks: when all have begun, they go on from a checkpoint.

    Args:
        checkpoint: that the model was loaded from.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        model: Any = self.model
        parts = self.checkpoint.parts
        if model.pending is not self.checkpoint:
            return
        callbacks = named_callbacks(model.callback)
        for name, callback in callbacks.items():
            if name not in parts:
                continue
            state = parts[name]
            if isinstance(callback, RLHFCallback) and not model.rollouts_go_on:
                state = {**state, **{k: callback.state_dict()[k] for k in RLHFCallback.ROWS}}
            callback.load_state_dict(state)
        known = OF_THE_MODEL | callbacks.keys() | model.other_parts | {RANKS}
        if left := sorted(parts.keys() - known):
            logger.warning(
                "the checkpoint %s holds the state of %s, and there is none in this training: "
                "what it did is not gone on with.",
                self.checkpoint.folder,
                ", ".join(left),
            )
        self._go_on(model, parts)
        model.pending = None

    def _go_on(self, model: Any, parts: Mapping[str, Any]) -> None:
        """Clock, log and generators: what the start of training has moved."""
        state, log = parts["model"], parts["log"]
        model.start_time = time.time_ns() - int(state["seconds"] * 1e9)
        for name in ("_num_timesteps_at_start", "num_rollouts"):
            setattr(model, name, state["counters"][name])
        model.logger.name_to_value.update(log["values"])
        model.logger.name_to_count.update(log["counts"])
        excluded = {name: tuple(outputs) for name, outputs in log["excluded"].items()}
        model.logger.name_to_excluded.update(excluded)
        if model.rollouts_go_on:
            load_generators(parts["generators"])
        else:
            seed_rank(model.ranks, _seed_after(model, self.checkpoint))
