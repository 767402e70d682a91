"""Whether all ranks see the same: files, settings, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from agents.scaling.ranks import AgreedError, Ranks

__all__ = ["digest_of_arrays", "digest_of_texts", "refuse_different"]


def digest_of_texts(texts: Iterable[Any]) -> str:
    """A digest of texts, or of other values by their `repr`, in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = (text if isinstance(text, str) else repr(text)).encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def digest_of_arrays(named: Iterable[tuple[str, Any]]) -> str:
    """A digest of the bits of named tensors, such as `module.state_dict().items()`."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in named:
        own = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {own.dtype} {tuple(tensor.shape)}:".encode())
        digest.update(np.ascontiguousarray(own.view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()[:16]


def refuse_different(ranks: Ranks, what: Mapping[str, Any], before: str = "") -> None:
    """Raise AgreedError, on all ranks, where a value is not the same on all of them.

    Args:
        ranks: those that compare.
        what: name → value, of the same names on every rank; small ones, or digests.
        before: the beginning of the message.
    """
    rows = ranks.gather(dict(what))
    first = rows[0]
    for rank, row in enumerate(rows):
        names = [name for name in [*first, *row] if first.get(name) != row.get(name)]
        if names:
            several = dict.fromkeys(names)
            said = "; ".join(
                f"{name} is {row.get(name)!r:.80} on rank {rank} and {first.get(name)!r:.80} on "
                "rank 0"
                for name in list(several)[:4]
            )
            raise AgreedError(
                f"{before or 'ranks see different things'}: {said}. Every rank needs the same "
                "command, the same files and the same versions of the libraries."
            )
