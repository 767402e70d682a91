"""The older path of `agents.rollout.buffer`."""

from agents.rollout.buffer import *  # noqa: F403
