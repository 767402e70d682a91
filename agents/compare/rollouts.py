"""Episodes of one environment: played, begun anew at a state, and judged by their plain return."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.compare.environments import token_mdp
from tokenenv.data import Prompt
from tokenenv.mdp import TokenMDP

__all__ = [
    "Choose",
    "Rollout",
    "Start",
    "plain_returns_of",
    "plain_returns_side_by_side",
    "play",
    "replay",
    "starts",
]

Choose = Callable[[np.ndarray], Any]
"""An observation → an action."""


@dataclass(frozen=True, slots=True)
class Start:
    """How an episode begins; the same start and the same actions lead to the same state.

    Attributes:
        seed: of the reset.
        prompt: what to continue, on text; None where there is none.
    """

    seed: int
    prompt: str | Prompt | None = None

    def reset(self, env: gym.Env) -> np.ndarray:
        """Begin the episode; gives its first observation."""
        options = None if self.prompt is None else {"prompt": self.prompt}
        return env.reset(seed=self.seed, options=options)[0]


def starts(env: gym.Env, count: int, seed: int = 0) -> Iterator[Start]:
    """`count` starts: seeds one after another, on text also prompts one after another."""
    mdp = token_mdp(env)
    for index in range(count):
        yield Start(seed + index, None if mdp is None else _prompt(mdp, index % len(mdp.prompts)))


def _prompt(mdp: TokenMDP, index: int) -> str | Prompt:
    """The text of a prompt, or with its columns where it has some."""
    origin = mdp.origins[index]
    return origin if origin.columns else mdp.prompts[index]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode.

    Attributes:
        observations: (T, …) of the states in which an action was taken.
        actions: (T,).
        rewards: (T,) float64.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        """T, its steps."""
        return len(self.rewards)

    @property
    def plain_return(self) -> float:
        """Σ r_t, undiscounted."""
        return float(self.rewards.sum())

    @property
    def returns_to_go(self) -> np.ndarray:
        """(T,) Σ of the rewards from each step on."""
        return np.cumsum(self.rewards[::-1])[::-1].copy()


def play(env: gym.Env, choose: Choose, start: Start) -> Rollout:
    """An episode from `start` to its end, terminated or truncated."""
    return _go_on(env, choose, start.reset(env))


def _go_on(env: gym.Env, choose: Choose, observation: np.ndarray) -> Rollout:
    observations, actions, rewards, ended = [], [], [], False
    while not ended:
        action = choose(observation)
        observations.append(np.array(observation))
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        ended = terminated or truncated
    return Rollout(np.array(observations), np.array(actions), np.array(rewards))


def replay(env: gym.Env, start: Start, actions: Iterable[Any]) -> np.ndarray:
    """Lead an environment to the state after `actions`, none of which ends the episode.

    Returns:
        The observation there.
    """
    observation = start.reset(env)
    for action in actions:
        observation = env.step(action)[0]
    return observation


def resume(env: gym.Env, choose: Choose, action: Any) -> np.ndarray:
    """(n,) rewards from here to the end, `action` first."""
    observation, reward, terminated, truncated, _ = env.step(action)
    first = np.array([float(reward)])
    if terminated or truncated:
        return first
    return np.concatenate([first, _go_on(env, choose, observation).rewards])


def plain_returns_of(env: gym.Env, choose: Choose, count: int, seed: int = 0) -> np.ndarray:
    """(n,) plain returns; on text each prompt is continued once, so n may be less than `count`."""
    mdp = token_mdp(env)
    count = count if mdp is None else min(count, len(mdp.prompts))
    return np.array([play(env, choose, s).plain_return for s in starts(env, count, seed)])


def plain_returns_side_by_side(
    envs: Sequence[gym.Env], choose: Choose, count: int, seed: int = 0
) -> np.ndarray:
    """(n,) the returns of `plain_returns_of`, several episodes at a time.

    Args:
        envs: the same environment several times; each episode is played in one of them.
        choose: (m, …) observations → (m,) actions.
        count: episodes; on text each prompt is continued once.
        seed: of the first.
    """
    mdp = token_mdp(envs[0])
    count = count if mdp is None else min(count, len(mdp.prompts))
    waiting, returns = enumerate(starts(envs[0], count, seed)), np.zeros(count)
    playing: dict[int, tuple[int, np.ndarray]] = {}  # environment → episode and observation

    def begin(place: int) -> None:
        playing.pop(place, None)
        for number, start in itertools.islice(waiting, 1):
            playing[place] = number, start.reset(envs[place])

    for place in range(len(envs)):
        begin(place)
    while playing:
        actions = choose(np.stack([observation for _, observation in playing.values()]))
        for place, action in zip(list(playing), actions, strict=True):
            number = playing[place][0]
            observation, reward, terminated, truncated, _ = envs[place].step(action)
            returns[number] += float(reward)
            playing[place] = number, observation
            if terminated or truncated:
                begin(place)
    return returns
