"""A prompt as the command line gives it."""

from __future__ import annotations

from typing import Any

from tokenenv.data import as_prompt
from tokenenv.json_files import parse_json

__all__ = ["prompt_of"]


def prompt_of(text: str, is_json: bool = False) -> Any:
    """The prompt that an argument stands for: the text as it is, or the `Prompt` that it describes.

    Args:
        text: of the argument.
        is_json: whether it is JSON of a list of messages, or of a row with a "prompt" and columns.

    Raises:
        ValueError: it is no JSON, or JSON of something else.
    """
    return as_prompt(parse_json(text, "--prompt"), "--prompt") if is_json else text
