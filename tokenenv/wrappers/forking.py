"""A copy of an environment and of the wrappers around it, which continues identically."""

from __future__ import annotations

import copy
from types import CellType, FunctionType
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium import wrappers as single_wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as vector_wrappers

from tokenenv.mdp import TokenMDP, TokenMDPMixin, settle_generators
from tokenenv.wrappers.checks import layers

__all__ = ["fork"]

Environment = TypeVar("Environment", gym.Env, VectorEnv)

_HAVE_A_WINDOW_OR_FILES = (
    single_wrappers.RecordVideo,
    single_wrappers.HumanRendering,
    vector_wrappers.RecordVideo,
    vector_wrappers.HumanRendering,
)


def fork(env: Environment) -> Environment:
    """A copy of an environment and of all wrappers around it, which continues identically.

    The same actions bring the same results in both, whatever happens to the other one. The token
    MDP at the bottom is copied by its `fork()`, so models are shared and no weights are copied; of
    the wrappers everything is copied that they hold. A function that a wrapper holds is shared, but
    where it refers to the environment, the copy's refers to the copy.

    Args:
        env: an environment over a token MDP, single or a batch, as `gym.make` or `gym.make_vec`
            gives it and with any wrappers.

    Raises:
        ValueError: there is no token MDP below, or a wrapper can't be copied; the message says
            which and what to do.
    """
    _check_has_token_mdp(env)
    stack = list(layers(env))
    base = stack.pop()
    twin = base.fork()
    memo: dict[int, Any] = {id(base): twin, **_shared(base.mdp, twin.mdp)}
    for wrapper in reversed(stack):
        twin = _copied(wrapper, memo)
    return twin


def _shared(mdp: TokenMDP, twin: TokenMDP) -> dict[int, Any]:
    """What a wrapper may hold of a token MDP → its place in the copy, for `copy.deepcopy`."""
    parts = {id(getattr(mdp, name)): getattr(twin, name) for name in ("episodes", "settings")}
    parts[id(mdp.reference_decoder)] = twin.reference_decoder
    for part in (mdp.scorer, mdp.language_model, mdp.language_model.model, mdp.task):
        parts[id(part)] = part
    return {id(mdp): twin, **parts}


def _copied(wrapper: Any, memo: dict[int, Any]) -> Any:
    """A copy of one wrapper around the copy of what is below it, as `memo` has it."""
    name = type(wrapper).__name__
    if isinstance(wrapper, _HAVE_A_WINDOW_OR_FILES):
        raise ValueError(
            f"{name} can't be forked: both copies would use the same window or write the same "
            f"files. Fork what is below it, fork(env.env), or put {name} around after forking."
        )
    settle_generators(wrapper)
    spec = getattr(wrapper, "_cached_spec", None)
    memo[id(spec)] = spec
    try:
        twin = copy.deepcopy(wrapper, memo)
    except Exception as error:  # of any kind: whatever its parts make of it
        raise ValueError(
            f"{name} can't be forked, it holds what can't be copied ({type(error).__name__}: "
            f"{error!s:.200}). Fork what is below it, fork(env.env), or give {name} a "
            "__deepcopy__ that says what its copy shares."
        ) from error
    for attribute, value in vars(twin).items():
        if isinstance(value, FunctionType):
            setattr(twin, attribute, _rebound(value, memo))
    return twin


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function in whose closure the copies of `memo` stand for their originals."""
    cells = function.__closure__ or ()
    copied = tuple(_rebound_cell(cell, memo) for cell in cells)
    if all(one is other for one, other in zip(copied, cells, strict=True)):
        return function
    rebound = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, copied
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    return rebound


def _rebound_cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # still empty
        return cell
    twin = memo.get(id(content), content)
    return cell if twin is content else CellType(twin)


def _check_has_token_mdp(env: Any) -> None:
    """Raise ValueError where there is nothing that can be forked."""
    if not isinstance(env, gym.Env | VectorEnv):
        inside = " Fork the environment in it, fork(env.env)." if hasattr(env, "env") else ""
        raise ValueError(
            f"a {type(env).__name__} is no environment of Gymnasium and can't be forked.{inside}"
        )
    base = env.unwrapped
    if isinstance(base, TokenMDPMixin):
        return
    name = type(base).__name__
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        rows = (
            "fork each of them, [fork(row) for row in env.unwrapped.envs]"
            if isinstance(base, SyncVectorEnv)
            else "they run in other processes"
        )
        raise ValueError(
            f"{name} has no token MDP, its rows are separate environments: {rows}, or make one "
            "batch of them with gym.make_vec('tokenenv:TokenRLHF-v0')."
        )
    raise ValueError(
        f"{name} is no token MDP, and only one can be forked: make the environment with "
        "gym.make('tokenenv:TokenRLHF-v0') or another of tokenenv.ENV_IDS."
    )
