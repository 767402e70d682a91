"""The settings of `tokenrlhf compare`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenenv.ranges import COUNT, FRACTION, OPTIONAL_COUNT, check_ranges, count

__all__ = ["AGENTS", "CompareConfig"]

Agent = Literal["ppo", "a2c", "dqn", "token-ppo"]

AGENTS: tuple[Agent, ...] = ("ppo", "a2c", "dqn", "token-ppo")
"""Stable-Baselines3's PPO, A2C and DQN, and our `TokenPPO`."""

_RANGES = {
    "seeds": count(high=10_000),
    "steps": OPTIONAL_COUNT,
    "evaluations": COUNT,
    "episodes": COUNT,
    "prompts": COUNT,
    "fingerprint_episodes": count(4),
    "workers": count(1, 1024, ", or None (leave it out)", is_optional=True),
    "reach": FRACTION,
}


@dataclass(frozen=True)
class CompareConfig:
    """Train agents on classic control and on text, and compare them on scales that are known.

    Every run is kept as soon as it is finished: the same command goes on where it was stopped, and
    more environments, agents or seeds can be added to the same folder.
    """

    out: Path = Path("runs/compare")
    """Folder of the comparison; what is in it already is not run again."""
    overwrite: bool = False
    """Remove a comparison with other settings from the folder, and begin anew."""

    envs: tuple[str, ...] = (
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "TokenRLHF-Exact-v0",
        "TokenRLHF-Features-TopK-v0",
        "TokenRLHF-v0",
    )
    """Environment ids: of this package, or of Gymnasium with a solved threshold."""
    agents: tuple[Agent, ...] = AGENTS
    """Stable-Baselines3's ppo, a2c and dqn, all with an MLP; and token-ppo, our TokenPPO: with a
    language model on raw token ids, with an MLP on classic control."""
    seeds: int = 5
    """Seeds per environment and agent: 0, 1, …"""
    steps: int | None = None
    """Environment steps per run; as the zoo has it for each environment unless given."""
    zoo: Path | None = None
    """Folder of settings of your own, ENVIRONMENT.yaml, which go before those of the zoo
    (docs/zoo.md)."""

    evaluations: int = 10
    """Evaluations during a run: the resolution of learning curves and of sample efficiency."""
    episodes: int = 100
    """Episodes of the last evaluation on classic control; a fifth of it during the run."""
    prompts: int = 64
    """Held-out prompts of the last evaluation on text, at most; a quarter of it during the run."""
    reach: float = 0.9
    """Sample efficiency is the steps to this score, of 0 … 1."""

    fingerprint_episodes: int = 100
    """Episodes that an environment's fingerprint is measured on."""
    workers: int | None = None
    """Processes; default: the number of cores."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_ranges(vars(self), _RANGES)
        for name in ("envs", "agents"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)!r} must be one or more, each of them once.")
        unknown = [agent for agent in self.agents if agent not in AGENTS]
        if unknown:
            raise ValueError(f"agents={unknown!r}: choose from {', '.join(map(repr, AGENTS))}.")
