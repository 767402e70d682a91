"""The older path of `agents.runs.training`."""

from agents.runs.training import *  # noqa: F403
