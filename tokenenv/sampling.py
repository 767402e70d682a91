"""The older path of `tokenenv.models.sampling`."""

from tokenenv.models.sampling import *  # noqa: F403
