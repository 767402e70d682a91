"""Prompts and pairs that are too long: what is cut, on token ids.

A prompt loses its beginning, for its end is what the response answers; BOS stays at the front. A
response loses its end only where it does not fit by itself: then it is broken off, and no EOS
stands behind it, as behind a response that ran out of room in an episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["TRUNCATIONS", "CutPair", "truncate_pair", "truncate_prompt"]

TRUNCATIONS = ("keep-end", "drop", "error")
"""What is done with what is too long: its beginning is cut off, it is left out, it is refused."""


def truncate_prompt(ids: np.ndarray, limit: int, bos_token_id: int | None = None) -> np.ndarray:
    """The last of (n,) token ids, at most `limit` in all; a BOS at the front is one of them.

    Args:
        ids: the prompt.
        limit: 0 or more.
        bos_token_id: what stays at the front where it stands there.
    """
    if len(ids) <= limit:
        return ids
    head = ids[:1] if limit and ids[0] == bos_token_id else ids[:0]
    return np.concatenate([head, ids[len(ids) - limit + len(head) :]])


@dataclass(frozen=True, slots=True)
class CutPair:
    """A pair that fits.

    Attributes:
        prompt: (p,) token ids, the same before both responses.
        chosen: (c,) token ids.
        rejected: (r,) token ids.
        lost_of_prompt: tokens that the prompt has lost.
        lost_of_responses: tokens that the responses have lost together.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    lost_of_prompt: int
    lost_of_responses: int


def truncate_pair(
    prompt: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    limit: int,
    bos_token_id: int | None = None,
) -> CutPair:
    """A prompt and two responses of which each fits behind it in `limit` tokens.

    Both responses keep the same prompt: what the longer one needs is cut off from it. Where that
    is all but its BOS and the longer response still has no room, the response loses its end.

    Args:
        prompt: (p,) token ids.
        chosen: (c,) token ids, with the EOS that ends it.
        rejected: (r,) likewise.
        limit: 1 or more.
        bos_token_id: what stays at the front of the prompt where it stands there.
    """
    has_bos = bool(len(prompt)) and prompt[0] == bos_token_id
    room = max(int(has_bos), limit - max(len(chosen), len(rejected)))
    cut = truncate_prompt(prompt, min(room, len(prompt)), bos_token_id)
    left = limit - len(cut)
    return CutPair(
        cut,
        chosen[:left],
        rejected[:left],
        len(prompt) - len(cut),
        max(0, len(chosen) - left) + max(0, len(rejected) - left),
    )
