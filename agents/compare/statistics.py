"""An older import path of `agents.statistics`."""

from agents.statistics import *  # noqa: F403
