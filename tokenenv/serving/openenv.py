"""The environment as one of OpenEnv: its server serves it, its clients drive it.

```
from tokenenv.serving.openenv import create_openenv_app
app = create_openenv_app("TokenRLHF-v0", task="exact")     # uvicorn module:app
```

OpenEnv has the shape of Gymnasium with models of pydantic in place of spaces, over a WebSocket. An
action is `{"action": 7}`; an observation has the array as nested lists, `terminated`, `truncated`
and `info`; the state names the spaces. `ClientEnv` turns that back into a Gymnasium environment,
for agents such as those of Stable-Baselines3.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from openenv.core.env_server import Environment, create_app
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from openenv.core.generic_client import GenericEnvClient
from pydantic import Field

import tokenenv

__all__ = [
    "ClientEnv",
    "TokenAction",
    "TokenEnvironment",
    "TokenObservation",
    "TokenState",
    "create_openenv_app",
]

SESSIONS = 64
"""Clients that may be connected at the same time, each with an environment of its own."""


class TokenAction(Action):
    """An action: a token id, or the rank of one, as the environment's action space has it."""

    action: int = Field(description="An element of the action space Discrete(n).")


class TokenObservation(Observation):
    """What `reset` and `step` return, all of it."""

    observation: list[Any] = Field(description="The array as nested lists.")
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = Field(default_factory=dict, description="Gymnasium's info.")


class TokenState(State):
    """Which environment it is, and its spaces."""

    env_id: str = ""
    shape: list[int] = Field(default_factory=list, description="Of observations.")
    dtype: str = Field("int64", description="Of observations.")
    low: float | None = Field(None, description="The least number in an observation, if there is.")
    high: float | None = Field(None, description="The greatest one, if there is.")
    actions: int = Field(0, description="n of the action space Discrete(n).")


class TokenEnvironment(Environment[TokenAction, TokenObservation, TokenState]):
    """An environment of this package for one session of OpenEnv.

    Args:
        env_id: one of `tokenenv.ENV_IDS`.
        **kwargs: of `gym.make`.

    Raises:
        ValueError: the arguments can't be used, or rewards are not paid at every step.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True  # models are frozen and shared, all else is a session's own

    def __init__(self, env_id: str = "TokenRLHF-v0", **kwargs: Any) -> None:
        super().__init__()
        if env_id not in tokenenv.ENV_IDS:
            raise ValueError(
                f"env_id={env_id!r:.100} is none of {', '.join(map(repr, tokenenv.ENV_IDS))}."
            )
        if kwargs.get("scoring", "step") != "step":
            raise ValueError(
                f"scoring={kwargs['scoring']!r:.60}: a client gets its rewards from step; leave it "
                "out."
            )
        self._id, self._env = env_id, gym.make(env_id, **kwargs)
        self._episode: str | None = None
        self._steps = 0

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TokenObservation:
        """Start an episode.

        Args:
            seed: Gymnasium's.
            episode_id: what the state calls the episode; drawn unless given.
            options: of the environment, such as `{"prompt": "text"}`.
            **kwargs: none is known.
        """
        if kwargs:
            raise ValueError(f"reset takes seed, episode_id and options, not {sorted(kwargs)}.")
        observation, info = self._env.reset(seed=seed, options=options)
        self._episode, self._steps = episode_id or uuid.uuid4().hex, 0
        return TokenObservation(observation=observation.tolist(), info=_as_json(info))

    def step(
        self, action: TokenAction, timeout_s: float | None = None, **kwargs: Any
    ) -> TokenObservation:
        """Take an action; one beyond the action space is refused."""
        taken = self._env.step(np.int64(action.action))
        observation, reward, terminated, truncated, info = taken
        self._steps += 1
        return TokenObservation(
            observation=observation.tolist(),
            reward=float(reward),
            done=terminated or truncated,
            terminated=terminated,
            truncated=truncated,
            info=_as_json(info),
        )

    @property
    def state(self) -> TokenState:
        """Episode, step and spaces."""
        seen, taken = self._env.observation_space, self._env.action_space
        assert isinstance(seen, spaces.Box) and isinstance(taken, spaces.Discrete)
        low, high = float(seen.low.min()), float(seen.high.max())
        return TokenState(
            episode_id=self._episode,
            step_count=self._steps,
            env_id=self._id,
            shape=list(seen.shape),
            dtype=str(seen.dtype),
            low=low if np.isfinite(low) else None,
            high=high if np.isfinite(high) else None,
            actions=int(taken.n),
        )

    def get_metadata(self) -> EnvironmentMetadata:
        """Name and description, for OpenEnv's pages."""
        return EnvironmentMetadata(
            name=self._id,
            description="RLHF as a reinforcement-learning environment: one step is one token.",
            version=self._id.rpartition("-v")[2],
        )

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def create_openenv_app(
    env_id: str = "TokenRLHF-v0", sessions: int = SESSIONS, **kwargs: Any
) -> Any:
    """OpenEnv's own web application (FastAPI) of an environment.

    Args:
        env_id: one of `tokenenv.ENV_IDS`.
        sessions: clients that may be connected at the same time.
        **kwargs: of `gym.make`.

    Raises:
        ValueError: as `TokenEnvironment`, at once and not at the first client.
    """
    TokenEnvironment(env_id, **kwargs).close()

    def session() -> TokenEnvironment:
        return TokenEnvironment(env_id, **kwargs)

    return create_app(
        session,
        TokenAction,
        TokenObservation,
        env_name=env_id,
        max_concurrent_envs=sessions,
    )


class ClientEnv(gym.Env[np.ndarray, np.int64]):
    """A Gymnasium environment behind a client of OpenEnv.

    Args:
        url: of a server of `create_openenv_app`.

    Attributes:
        client: OpenEnv's, connected.
    """

    def __init__(self, url: str) -> None:
        self.client = GenericEnvClient(base_url=url).sync()
        self.client.connect()
        try:
            state = self.client.state()
            shape, dtype = tuple(state["shape"]), np.dtype(state["dtype"]).type
            low = -np.inf if state["low"] is None else state["low"]
            high = np.inf if state["high"] is None else state["high"]
            self.observation_space = spaces.Box(low, high, shape, dtype)
            self.action_space = spaces.Discrete(int(state["actions"]))
        except BaseException:
            self.client.close()
            raise
        self._dtype = dtype

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode on the server."""
        super().reset(seed=seed)
        given = {"seed": seed, "options": options}
        result = self.client.reset(**{n: value for n, value in given.items() if value is not None})
        return self._array(result.observation), result.observation["info"]

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action on the server."""
        result = self.client.step({"action": int(action)})
        seen = result.observation
        ends = bool(seen["terminated"]), bool(seen["truncated"])
        return self._array(seen), float(result.reward), *ends, seen["info"]

    def _array(self, seen: Mapping[str, Any]) -> np.ndarray:
        return np.array(seen["observation"], dtype=self._dtype)

    def close(self) -> None:
        """End the session."""
        self.client.close()


def _as_json(value: Any) -> Any:
    """An info as JSON holds it: arrays as lists, NumPy's numbers as Python's, prompts as objects.

    Args:
        value: the info, or a part of it.
    """
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value
