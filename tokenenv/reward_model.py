"""The older path of `tokenenv.rewards.reward_model`."""

from tokenenv.rewards.reward_model import *  # noqa: F403
