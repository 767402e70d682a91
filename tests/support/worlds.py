"""A made-up environment that fills a rollout buffer, and the advantages by the textbook."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium import spaces
from support.tiny_task import EOS, P, T, V

from agents import EpisodeRolloutBuffer
from agents.rollout.buffer import RewardBinding
from tokenenv.episodes import EpisodeBatch

__all__ = ["Step", "World", "new_buffer", "textbook_advantages"]


def new_buffer(
    n_steps: int, n_envs: int, cut: str = "bootstrap", p: int = P, t: int = T, **kwargs
) -> EpisodeRolloutBuffer:
    """A buffer that is bound to an environment whose `step` pays."""
    space = spaces.Box(-1, V - 1, (p + t,), np.int64)
    buffer = EpisodeRolloutBuffer(
        n_steps, space, spaces.Discrete(V), "cpu", n_envs=n_envs, cut=cut, **kwargs
    )
    buffer.bind(RewardBinding(None, "none", lambda: 0.0, p, t))
    return buffer


@dataclass
class Step:
    """What one environment did in one step; `mark` is unique and stands in for the log-prob."""

    reward: float
    value: float
    mark: float
    tokens: tuple[int, ...]
    action: int
    done: bool
    bootstrap: float = 0.0


@dataclass
class World:
    """A made-up environment and policy: every number random, every step remembered."""

    n_envs: int
    seed: int = 0
    p: int = P
    t: int = T
    end: float = 0.2
    steps: list[list[Step]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.episodes = EpisodeBatch(self.n_envs, self.p, self.t, V, EOS)
        self.steps = [[] for _ in range(self.n_envs)]
        for env in range(self.n_envs):
            self._start(env)
        self.starts = np.ones(self.n_envs, dtype=bool)

    def _start(self, env: int) -> None:
        length = self.rng.integers(1, self.p + 1)
        self.episodes.start(env, self.rng.integers(3, V, size=length))

    def rollout(self, buffer: EpisodeRolloutBuffer) -> None:
        """Fill `buffer` and close it."""
        buffer.reset()
        n = self.n_envs
        for _ in range(buffer.buffer_size):
            observations = self.episodes.observations.copy()
            actions = self.rng.choice([i for i in range(3, V) if i not in EOS], size=n)
            actions[self.rng.random(n) < self.end] = EOS[0]
            rewards, values, marks = (self.rng.normal(size=n).astype(np.float32) for _ in range(3))
            ended = self.episodes.append(actions, np.arange(n))
            for env in range(n):
                tokens = tuple(observations[env][observations[env] >= 0].tolist())
                self.steps[env].append(
                    Step(*(float(x[env]) for x in (rewards, values, marks)), tokens, actions[env],
                         bool(ended[env]))
                )  # fmt: skip
            buffer.add(
                observations,
                actions.reshape(-1, 1),
                rewards,
                self.starts,
                torch.as_tensor(values)[:, None],
                torch.as_tensor(marks),
            )
            self.starts = ended
            for env in np.flatnonzero(ended):
                self._start(env)
        last = self.rng.normal(size=n).astype(np.float32)
        for env in range(n):
            self.steps[env][-1].bootstrap = float(last[env])
        buffer.compute_returns_and_advantage(torch.as_tensor(last)[:, None], self.starts)

    def all_steps(self) -> dict[float, Step]:
        return {step.mark: step for own in self.steps for step in own}


def textbook_advantages(steps: list[Step], gamma: float, gae_lambda: float) -> dict[float, float]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, eq. 16 of the GAE paper, summed out step by step in float64.

    `bootstrap` is not 0 where a rollout ended; there the sum stops, with γ·V of the next state.
    """
    found = {}
    for start in range(len(steps)):
        total, weight = 0.0, 1.0
        for k in range(start, len(steps)):
            step = steps[k]
            cut = step.bootstrap != 0.0
            if step.done:
                following = 0.0
            else:
                following = step.bootstrap if cut else steps[k + 1].value
            total += weight * (step.reward + gamma * following - step.value)
            weight *= gamma * gae_lambda
            if step.done or cut:
                break
        found[steps[start].mark] = total
    return found
