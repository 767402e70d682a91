"""Where a response has other tokens when it is tokenised together with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenenv.data import Turns

__all__ = ["Seams"]

MOST_COUNTED = 10_000
"""Prompts that are looked at: a share is known well enough from them."""


class Seams:
    """Counts responses whose ids are others together with their prompt, as `reward-model` does.

    Conversations are written by the tokenizer's chat template; where it has none, or does not take
    them, they are left out.

    Args:
        tokenizer: a transformers tokenizer.
        name: of the model that it belongs to.

    Attributes:
        number: responses looked at.
        differences: those that have other ids.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        from tokenenv.models import ChatTemplate, end_of_turn_id  # torch

        self.tokenizer, self.chat = tokenizer, ChatTemplate(tokenizer, name)
        ends = (getattr(tokenizer, "eos_token_id", None), end_of_turn_id(tokenizer))
        self._ends = [end for end in ends if end is not None]
        self._prompts = self.number = self.differences = 0

    def look(self, prompt: Turns, responses: Sequence[Turns]) -> None:
        """Look at the responses to a prompt."""
        from tokenenv.models import seam_differences, texts_at_the_seam

        if self._prompts == MOST_COUNTED:
            return
        self._prompts += 1
        try:
            texts = texts_at_the_seam(self.chat, prompt, responses)
        except ValueError:  # no template, or one that refuses these messages
            return
        self.number += len(texts)
        self.differences += seam_differences(self.tokenizer, texts, self._ends)

    def facts(self) -> dict[str, int]:
        """What was counted, for JSON."""
        return {"differences": self.differences, "responses": self.number}
