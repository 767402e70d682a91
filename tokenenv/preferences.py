"""The older path of `tokenenv.rewards.preferences`."""

from tokenenv.rewards.preferences import *  # noqa: F403
