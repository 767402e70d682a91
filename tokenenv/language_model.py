"""The older path of what is in `tokenenv.models`."""

from tokenenv.models import *  # noqa: F403
