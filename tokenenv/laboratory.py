"""The older path of `tokenenv.optimum.bias_variance`."""

from tokenenv.optimum.bias_variance import *  # noqa: F403
