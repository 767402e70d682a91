"""The older path of `agents.evaluation.held_out`."""

from agents.evaluation.held_out import *  # noqa: F403
