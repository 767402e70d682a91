"""The older path of `tokenenv.rewards.scoring`."""

from tokenenv.rewards.scoring import *  # noqa: F403
