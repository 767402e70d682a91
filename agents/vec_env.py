"""The Stable-Baselines3 `VecEnv` over `TokenVectorEnv`: N episodes in one batch, one process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnv,
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)

import tokenenv
from tokenenv.data import prompt_of_state, prompt_state
from tokenenv.env import TokenEnv
from tokenenv.mdp import check_options, rows_of
from tokenenv.ranges import SEED, check_ranges
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers.checks import layers

__all__ = ["TokenVecEnv", "make_vec_env"]


class TokenVecEnv(VecEnv):
    """SB3's vector interface (same-step autoreset) on one `TokenVectorEnv`.

    Args:
        env: a `TokenVectorEnv` with `AutoresetMode.SAME_STEP`, as it is or in vector wrappers:
            those of `tokenenv.wrappers.vector`, and Gymnasium's that change rewards or record
            statistics.

    Raises:
        ValueError: another environment, another autoreset mode, or a wrapper that gives no dict of
            infos.
    """

    def __init__(self, env: TokenVectorEnv | VectorWrapper) -> None:
        inner = env.unwrapped
        if not isinstance(inner, TokenVectorEnv):
            raise ValueError(
                f"TokenVecEnv got {env}, which is no TokenVectorEnv: make it with "
                "agents.make_vec_env, or use stable_baselines3.common.env_util.make_vec_env for "
                "other environments."
            )
        if inner.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the vector env has autoreset_mode={inner.autoreset_mode.value!r}; SB3 resets in "
                "the same step: make it with autoreset_mode='SameStep', or use agents.make_vec_env."
            )
        if any(isinstance(layer, DictInfoToList) for layer in layers(env)):
            raise ValueError("SB3 gets a list of infos in any case: leave DictInfoToList off.")
        self.env: Any = env
        self.inner = inner
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata["render_fps"] = inner.metadata["render_fps"]

    def reset(self) -> VecEnvObs:
        """Start episodes in all environments; honours `seed()` and `set_options()`.

        Raises:
            ValueError: an option is unknown, or there are not as many as environments.
        """
        if len(self._options) != self.num_envs:
            raise ValueError(
                f"set_options() got {len(self._options)} dicts for {self.num_envs} environments: "
                "give one for each, or one for all."
            )
        prompts = [check_options(options, ("prompt",)).get("prompt") for options in self._options]
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        self.inner.mdp.begin_group()  # the episodes under way are lost, and so is their group
        observations, infos = self.env.reset(seed=seeds, options={"prompt": prompts})
        self.reset_infos = rows_of(infos, range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        return observations

    def restart(self, rows: Sequence[int]) -> np.ndarray:
        """Start new episodes in some rows, of new groups; the observations of all rows."""
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[list(rows)] = True
        self.inner.mdp.begin_group()
        observations, infos = self.env.reset(options={"reset_mask": mask})
        for row, info in zip(rows, rows_of(infos, list(rows)), strict=True):
            self.reset_infos[row] = info
        return observations

    def state_dict(self) -> dict[str, Any]:
        """Everything that resets and steps change, as JSON values and arrays.

        Raises:
            ValueError: it is in a wrapper, which may hold a state that is not known.
        """
        self._refuse_wrappers()
        infos = [{**info, "origin": prompt_state(info.get("origin"))} for info in self.reset_infos]
        return {
            "inner": self.inner.state_dict(),
            "reset_infos": infos,
            "seeds": list(self._seeds),
            "options": [dict(options) for options in self._options],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called, in an environment of the same arguments.

        Raises:
            ValueError: it is in a wrapper, or the state is of other prompts or sizes.
        """
        self._refuse_wrappers()
        self.inner.load_state_dict(state["inner"])
        self.reset_infos = [_with_origin(info) for info in state["reset_infos"]]
        self._seeds, self._options = list(state["seeds"]), list(state["options"])

    def _refuse_wrappers(self) -> None:
        if self.env is not self.inner:
            raise ValueError(
                f"the environment is in the wrapper {type(self.env).__name__}, whose state no "
                "checkpoint holds: take it off, or save archives (model.save)."
            )

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments.

        Returns:
            (N, P+T) observations, (N,) float32 rewards, (N,) bool dones, N infos; where an episode
            ended, `infos[i]["terminal_observation"]` is its last state and the observation the
            first of the next.

        Raises:
            ValueError: a wrapper truncated an episode, which goes on below it.
        """
        observations, rewards, dones, truncations, infos = self.env.step(self._actions)
        if truncations.any():
            raise ValueError(
                "a wrapper truncated an episode, and the batch below it goes on with it: for "
                "shorter responses take the wrapper off and set max_new_tokens."
            )
        rows: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if "ref_logprob" in infos:
            kl_coef = self.inner.kl_coef
            for row, ref_log_prob in zip(rows, infos["ref_logprob"].tolist(), strict=True):
                row["ref_logprob"], row["kl_coef"] = ref_log_prob, kl_coef
        if dones.any():
            self._add_endings(rows, infos, np.flatnonzero(dones))
        self._add_others(rows, infos, dones)
        return observations, rewards.astype(np.float32), dones, rows

    def _add_endings(
        self, rows: list[dict[str, Any]], infos: dict[str, Any], ended: np.ndarray
    ) -> None:
        """Add the last infos and observations of the episodes that ended, (n,) rows of them."""
        next_infos = {key: infos[key] for key in _NEXT_EPISODE_KEYS if key in infos}
        finals, starts = rows_of(infos["final_info"], ended), rows_of(next_infos, ended, False)
        for row, final, start in zip(ended.tolist(), finals, starts, strict=True):
            rows[row].update(final)
            rows[row]["terminal_observation"] = infos["final_obs"][row]
            self.reset_infos[row] = start

    def _add_others(
        self, rows: list[dict[str, Any]], infos: dict[str, Any], dones: np.ndarray
    ) -> None:
        """Add the infos of wrappers, where an episode ended those of the next one's start.

        Only those of `RecordEpisodeStatistics` are about the episode that ended.
        """
        others = {key: infos[key] for key in infos.keys() - _ENV_INFOS}
        for row, info in enumerate(rows_of(others, range(self.num_envs)) if others else []):
            if dones[row]:
                if "episode" in info:
                    rows[row]["episode"] = info.pop("episode")
                self.reset_infos[row].update(info)
            else:
                rows[row].update(info)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Every environment's picture, (height, width, 3) uint8, for `render` and video recorders.

        Raises:
            ValueError: the environment was not made with `render_mode="rgb_array"`.
        """
        if self.render_mode != "rgb_array":
            raise ValueError(
                f"render_mode={self.render_mode!r} draws no pictures: make the environment with "
                "render_mode='rgb_array'."
            )
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the outermost layer that has it, once per index."""
        value = self._find(attr_name)
        return [value for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute where `get_attr` reads it from; for some rows only is impossible.

        Raises:
            ValueError: `indices` names some rows only.
        """
        self._require_all(indices, f"set_attr({attr_name!r})")
        owners = (layer for layer in layers(self.env) if _defines(layer, attr_name))
        setattr(next(owners, self.inner), attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of the outermost layer that has it, once.

        `action_masks` and `action_tokens` return one array per row, as `DummyVecEnv` does.

        Raises:
            ValueError: `indices` names some rows only, and the method concerns all.
        """
        if method_name == "action_masks" and not self.has_attr(method_name):
            raise ValueError(
                "this environment has no action masks: make it with agents.make_vec_env(…, "
                "wrapper_class=tokenenv.wrappers.vector.ActionMask)."
            )
        if method_name in _PER_ROW_METHODS:
            values = self._find(method_name)(*method_args, **method_kwargs)
            return [values[row] for row in self._indices(indices)]
        self._require_all(indices, f"env_method({method_name!r})")
        return [self._find(method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether the environment is in a vector wrapper of this class, once per index."""
        is_wrapped = any(isinstance(layer, wrapper_class) for layer in layers(self.env))
        return [is_wrapped for _ in self._indices(indices)]

    def _find(self, name: str) -> Any:
        """The attribute of the outermost layer that has it."""
        owner = next((layer for layer in layers(self.env) if hasattr(layer, name)), self.inner)
        return getattr(owner, name)

    def _indices(self, indices: VecEnvIndices) -> Iterable[int]:
        requested = [indices] if isinstance(indices, int | np.integer) else indices
        rows = list(self._get_indices(requested))
        outside = [index for index in rows if not -self.num_envs <= index < self.num_envs]
        if outside:
            raise ValueError(
                f"indices={indices!r}: there is no environment {outside[0]}, allowed are 0 … "
                f"{self.num_envs - 1}."
            )
        return rows

    def _require_all(self, indices: VecEnvIndices, what: str) -> None:
        rows = list(self._indices(indices))
        if len(rows) != self.num_envs:
            raise ValueError(
                f"{what} was asked for environments {rows} only, but all {self.num_envs} share "
                "one set of settings: call it for all."
            )


def _with_origin(info: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a reset as `TokenVecEnv.state_dict` stored it."""
    origin = prompt_of_state(info["origin"])
    rest = {name: value for name, value in info.items() if name != "origin"}
    return rest if origin is None else {**rest, "origin": origin}


_NEXT_EPISODE_KEYS = ("prompt", "group", "origin")
_ENV_INFOS = {
    key if is_value else f"_{key}"
    for key in ("ref_logprob", "kl_coef", "final_obs", "final_info", *_NEXT_EPISODE_KEYS)
    for is_value in (True, False)
}
"""Keys of the environment's infos, and their masks; `step_wait` adds them. Others come from
wrappers."""

_PER_ROW_METHODS = {"action_masks", "action_tokens"}
"""Methods that give an array with a row per environment."""


def _defines(layer: Any, name: str) -> bool:
    """Whether the layer defines the attribute, and it is not one of every vector wrapper."""
    return name in vars(layer) or (hasattr(type(layer), name) and not hasattr(VectorWrapper, name))


def _wrap(env: TokenVectorEnv, wrapper_class: Callable[..., VectorEnv], kwargs: Any) -> VectorEnv:
    try:
        wrapped = wrapper_class(env, **kwargs)
    except (AssertionError, ValueError) as error:
        if "autoreset_mode" not in str(error):
            raise
        raise ValueError(
            f"wrapper_class={wrapper_class!r} can't stand where an environment resets in the same "
            f"step, as SB3's do ({error}): use SB3's (VecNormalize, VecFrameStack, …) instead."
        ) from None
    if not isinstance(wrapped, VectorEnv):
        raise ValueError(
            f"wrapper_class={wrapper_class!r} made {wrapped!r}, which is no vector environment: "
            "the rows share one batch, so it takes a wrapper of vector environments "
            "(tokenenv.wrappers.vector, gymnasium.wrappers.vector)."
        )
    return wrapped


def _require_token_env(env_id: str) -> None:
    if not isinstance(env_id, str):
        raise ValueError(f"env_id={env_id!r} must be a registered id, as a string.")
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's: it may raise anything
            raise ValueError(
                f"env_id={env_id!r}: the module {module!r} can't be imported "
                f"({type(error).__name__}: {error})."
            ) from error
    spec = gym.spec(name)
    entry_point: Any = spec.vector_entry_point
    if entry_point is None and spec.entry_point is not None:
        single: Any = spec.entry_point
        made = load_env_creator(single) if isinstance(single, str) else single
        if isinstance(made, type) and issubclass(made, TokenEnv):
            raise ValueError(
                f"env_id={env_id!r} was registered without its vector environment: pass "
                "vector_entry_point='tokenenv.vector_env:TokenVectorEnv' to gym.register."
            )
    made = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if not (isinstance(made, type) and issubclass(made, TokenVectorEnv)):
        raise ValueError(
            f"env_id={env_id!r} is no token MDP: choose one of {', '.join(tokenenv.ENV_IDS)}, or "
            "use stable_baselines3.common.env_util.make_vec_env for other environments."
        )


def make_vec_env(
    env_id: str = "TokenRLHF-v0",
    n_envs: int = 1,
    seed: int | None = None,
    *,
    wrapper_class: Callable[..., VectorEnv] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> TokenVecEnv:
    """An SB3 vector environment of `n_envs` token MDPs that share every forward.

    Args:
        env_id: a registered id of this package.
        n_envs: N.
        seed: of the first reset: environment i gets `seed + i`.
        wrapper_class: a vector wrapper (of `tokenenv.wrappers.vector`, or one of Gymnasium's that
            changes rewards or records statistics), or a function that puts several around a vector
            environment.
        wrapper_kwargs: its arguments.
        **kwargs: the arguments of `TokenEnv`.

    Raises:
        ValueError: `env_id` names no token MDP, or an argument can't be used.
    """
    _require_token_env(env_id)
    if seed is not None:
        check_ranges({"seed": seed}, {"seed": SEED})
    env = gym.make_vec(
        env_id,
        num_envs=n_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP,
        **kwargs,
    )
    wrapped: Any = env.unwrapped
    if wrapper_class is not None:
        wrapped = _wrap(wrapped, wrapper_class, wrapper_kwargs or {})
    elif wrapper_kwargs:
        raise ValueError(f"wrapper_kwargs={wrapper_kwargs!r} belong to no wrapper: give its class.")
    vec_env = TokenVecEnv(wrapped)
    if seed is not None:
        vec_env.seed(seed)
    return vec_env
