"""The older path of `tokenenv.maths.advantages`."""

from tokenenv.maths.advantages import *  # noqa: F403
