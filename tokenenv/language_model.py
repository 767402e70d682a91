"""The older path of `tokenenv.models.language_model`."""

from tokenenv.models.language_model import *  # noqa: F403
