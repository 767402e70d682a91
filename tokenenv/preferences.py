"""The older path of what is in `tokenenv.rewards`."""

from tokenenv.rewards import *  # noqa: F403
