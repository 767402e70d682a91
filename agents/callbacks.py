"""The older path of `agents.rollout.callback`."""

from agents.rollout.callback import *  # noqa: F403
