"""Token ids as text, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenenv.models import LanguageModel

__all__ = ["alternative_texts", "token_texts"]


def token_texts(language_model: LanguageModel, response: Sequence[int] | np.ndarray) -> list[str]:
    """What each token adds to the text of a response; special tokens by their names.

    Bytes that are no character yet show as U+FFFD, and the token that completes the character shows
    the whole of it.
    """
    tokenizer: Any = language_model.tokenizer
    special = set(tokenizer.all_special_ids) | set(language_model.eos_token_ids)
    texts, before, plain = [], "", []
    for token in map(int, response):
        if token in special:
            texts.append(_name(tokenizer, token))
            continue
        plain.append(token)
        text = tokenizer.decode(plain)
        common = 0
        while common < min(len(before), len(text)) and before[common] == text[common]:
            common += 1
        texts.append(text[common:])
        before = text
    return texts


def alternative_texts(language_model: LanguageModel, tokens: np.ndarray) -> list[list[str]]:
    """The texts of (n, k) token ids, each by itself."""
    tokenizer: Any = language_model.tokenizer
    special = set(tokenizer.all_special_ids) | set(language_model.eos_token_ids)
    texts = {
        token: _name(tokenizer, token) if token in special else tokenizer.decode([token])
        for token in np.unique(tokens).tolist()
    }
    return [[texts[token] for token in row] for row in tokens.tolist()]


def _name(tokenizer: Any, token: int) -> str:
    name = tokenizer.convert_ids_to_tokens(token)
    return str(name) if name else f"<{token}>"
