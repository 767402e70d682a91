"""Something computed anew for every step of the last rollout, by full forwards, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from agents.packing import PackedSequences, pack
from agents.segments import Segment
from tokenenv.log_probs import MICRO_BATCH_TOKENS, micro_batches

__all__ = ["per_new_step"]


def per_new_step(
    segments: Sequence[Segment],
    device: torch.device | str,
    compute: Callable[[PackedSequences, torch.Tensor], torch.Tensor],
) -> list[np.ndarray]:
    """One number for each of the segments' steps of the last rollout.

    Args:
        segments: of the last rollout; what an earlier one left in them is context.
        device: where to compute.
        compute: (states, (n,) actions) → (n,) numbers; called without gradient.

    Returns:
        Per segment a (`new_steps`,) float32 array.
    """
    counts = [segment.new_steps for segment in segments]
    contexts = [
        np.concatenate([segment.prefix, segment.actions[: len(segment.actions) - count]])
        for segment, count in zip(segments, counts, strict=True)
    ]
    actions = [s.actions[-n:].astype(np.int64) for s, n in zip(segments, counts, strict=True)]
    lengths = np.array([len(c) + n for c, n in zip(contexts, counts, strict=True)])
    results = [np.zeros(0, dtype=np.float32)] * len(segments)
    for chosen in micro_batches(lengths, MICRO_BATCH_TOKENS):
        own = [actions[i] for i in chosen]
        packed = pack([contexts[i].astype(np.int64) for i in chosen], own, device)
        with torch.no_grad():
            found = compute(packed, torch.as_tensor(np.concatenate(own), device=device))
        bounds = np.cumsum([counts[i] for i in chosen])[:-1]
        parts = np.split(found.float().cpu().numpy(), bounds)
        for i, numbers in zip(chosen, parts, strict=True):
            results[i] = numbers
    return results
