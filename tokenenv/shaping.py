"""The older path of `tokenenv.maths.kl`."""

from tokenenv.maths.kl import *  # noqa: F403
