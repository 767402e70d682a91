"""Texts in the place of episodes: every character is a token, so that nothing is changed."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from tokenenv.models import LanguageModel

__all__ = ["characters", "characters_as_model"]


class _Characters:
    """Stands for a language model of which every character is a token, so that texts stay whole."""

    @property
    def tokenizer(self) -> _Characters:
        return self

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(map(chr, ids))


def characters(text: str) -> np.ndarray:
    """(n,) int64: the characters of a text as the ids that `characters_as_model` decodes."""
    return np.array([ord(character) for character in text], dtype=np.int64)


def characters_as_model() -> LanguageModel:
    """What a `FunctionReward` takes for the language model of episodes of `characters`.

    It decodes, and does nothing else that a language model does.
    """
    return cast(LanguageModel, _Characters())
