"""The zoo's settings for `tokenrlhf compare`: a file per environment, with all agents in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.zoo.learners import ALGORITHMS, check_learner
from agents.zoo.settings_files import near, read_mapping
from agents.zoo.train_settings import FOLDER
from tokenenv.ranges import COUNT

__all__ = ["ANY", "EnvironmentSettings", "environment_settings", "read_environment"]

ANY = "default"
"""What the file for environments without a file of their own calls them."""

_FIELDS = {"env", "steps", "agents"}


@dataclass(frozen=True)
class EnvironmentSettings:
    """What a file of the zoo says about an environment.

    Attributes:
        env: its id, or `ANY`.
        steps: the budget of a run, in environment steps; the same for all agents.
        agents: agent → its settings, as `learners.check_learner` gives them.
        path: the file.
    """

    env: str
    steps: int
    agents: dict[str, dict[str, Any]]
    path: Path

    def learner(self, agent: str) -> dict[str, Any]:
        """The settings of an agent.

        Raises:
            ValueError: the file has none.
        """
        if agent not in self.agents:
            raise ValueError(
                f"{str(self.path)!r} has no settings for {agent!r}: write them there, or leave it "
                "out of --agents."
            )
        return dict(self.agents[agent])


def environment_settings(env_id: str, folder: Path | None = None) -> EnvironmentSettings:
    """The settings for an environment: of its file, else those for any.

    Args:
        env_id: registered in Gymnasium.
        folder: of files of the user's, which go before those of the zoo.

    Raises:
        ValueError: a file can't be used, or the folder is none.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(
            f"zoo={str(folder)!r} is no folder: give one with files of settings, ENVIRONMENT.yaml, "
            "or leave it out."
        )
    name = env_id.rpartition(":")[2]
    file = f"{name.replace('/', '-')}.yaml"
    for place in (folder, FOLDER):
        if place is not None and (place / file).is_file():
            return read_environment(place / file, name)
    return read_environment(FOLDER / f"{ANY}.yaml", ANY)


def read_environment(path: Path, env: str) -> EnvironmentSettings:
    """The settings in a file.

    Args:
        path: YAML.
        env: the environment that they are for.

    Raises:
        ValueError: it is for another environment, lacks something, or names what does not exist.
    """
    content, place = read_mapping(path), repr(str(path))
    for name in map(str, content):
        if name not in _FIELDS:
            raise ValueError(f"{place}: there is no field {name!r}{near(name, _FIELDS)}")
    missing = ", ".join(sorted(_FIELDS - set(content)))
    if missing:
        raise ValueError(f"{place} lacks {missing}: see the files in {str(FOLDER)!r}.")
    if content["env"] != env:
        raise ValueError(
            f"{place} is for the environment {content['env']!r:.80}, and settings for {env!r} are "
            "asked for: name the file after its environment."
        )
    if not COUNT.holds(content["steps"]):
        raise ValueError(f"{place}: steps={content['steps']!r:.80} must be {COUNT.words}.")
    agents = content["agents"]
    if not isinstance(agents, dict) or not agents:
        raise ValueError(f"{place}: agents={agents!r:.80} must map agents to their settings.")
    for agent in map(str, agents):
        if agent not in ALGORITHMS:
            raise ValueError(
                f"{place}: there is no agent {agent!r}{near(agent, set(ALGORITHMS))} Choose from "
                f"{', '.join(ALGORITHMS)}."
            )
    settings = {
        agent: check_learner(agent, content, f"{place}, {agent}")
        for agent, content in agents.items()
    }
    return EnvironmentSettings(env, content["steps"], settings, path)
