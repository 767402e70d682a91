"""Many pairs that members disagree about are alike: labels of some of them say the others'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenenv.rewards import RewardModel, TokenPair, pooled_features

__all__ = ["SHORTLIST", "choose", "most_disputed", "select_diverse"]

SHORTLIST = 10
"""Times as many pairs as are selected, those with the most disagreement, are looked at."""

_NOTHING_NEW = 1e-9
"""Share of a pair's quality that is not told by the selected ones, below which it is a repeat."""


def choose(
    disagreement: np.ndarray,
    member: RewardModel,
    pairs: Sequence[TokenPair],
    count: int,
    is_diverse: bool,
    prompts: Sequence[str] | None = None,
    max_per_prompt: int | None = None,
) -> list[int]:
    """The indices of the pairs to label, in the order of selection.

    Args:
        disagreement: (B,) of the pairs.
        member: the reward model whose features say which pairs are alike.
        pairs: B pairs, as it reads them.
        count: how many.
        is_diverse: whether pairs that are alike are avoided.
        prompts: B names of prompts.
        max_per_prompt: pairs of one prompt at most.
    """
    if not is_diverse:
        return most_disputed(disagreement, count, prompts, max_per_prompt)
    a, _ = pooled_features(member, [pair.chosen for pair in pairs])
    b, _ = pooled_features(member, [pair.rejected for pair in pairs])
    return select_diverse(a - b, disagreement, count, prompts, max_per_prompt)


def select_diverse(
    features: np.ndarray,
    disagreement: np.ndarray,
    count: int,
    prompts: Sequence[str] | None = None,
    max_per_prompt: int | None = None,
) -> list[int]:
    """Pairs with much disagreement that are not like each other, in the order of selection.

    Greedy maximisation of a determinantal point process' density (Kulesza and Taskar 2012,
    https://arxiv.org/abs/1207.6083; the incremental Cholesky factor: Chen et al. 2018,
    https://arxiv.org/abs/1709.05135): the determinant of L over the selected pairs, with
    L_ij = q_i·q_j·cos²(x_i, x_j). q is the disagreement and x = φ(a) − φ(b) the difference of the
    features of both responses: a linear head gives the reward difference w·x. The square makes
    the order of a and b irrelevant. A pair that is a combination of selected ones adds nothing;
    where only such are left, those with the most disagreement follow.

    Args:
        features: (B, h) differences x.
        disagreement: (B,) 0 or more.
        count: how many to select.
        prompts: B names of prompts, for `max_per_prompt`.
        max_per_prompt: pairs of one prompt at most.

    Returns:
        `count` different indices, or fewer where the limit per prompt leaves no more.
    """
    order = most_disputed(disagreement, len(disagreement))
    candidates = order[: max(SHORTLIST * count, 200)] if max_per_prompt is None else order
    norms = np.linalg.norm(features[candidates], axis=1, keepdims=True)
    unit = features[candidates] / np.maximum(norms, 1e-12)  # (C, h)
    quality = np.maximum(np.asarray(disagreement, dtype=np.float64)[candidates], 1e-12)
    names = None if prompts is None else [prompts[i] for i in candidates]
    limit = _Limit(names, max_per_prompt)

    # 1 − what the selected pairs tell of each candidate, and the rows of the Cholesky factor.
    left = np.ones(len(candidates))
    factor, rows = np.zeros((min(count, len(candidates)), len(candidates))), 0
    is_open = np.ones(len(candidates), dtype=bool)
    selected: list[int] = []
    while len(selected) < count and is_open.any():
        # log(q²·left): the growth of the determinant
        growth = np.where(is_open, np.log(quality) * 2 + np.log(np.maximum(left, 1e-300)), -np.inf)
        if not (is_open & (left > _NOTHING_NEW)).any():
            growth = np.where(is_open, np.log(quality), -np.inf)
        best = int(np.argmax(growth))
        if left[best] > _NOTHING_NEW:
            similarity = (unit @ unit[best]) ** 2
            told = factor[:rows].T @ factor[:rows, best]
            row = (similarity - told) / np.sqrt(left[best])
            factor[rows], rows = row, rows + 1
            left = np.maximum(left - row**2, 0.0)
        selected.append(best)
        is_open[best] = False
        is_open &= ~limit.full_after(best)
    return [int(candidates[i]) for i in selected]


def most_disputed(
    disagreement: np.ndarray,
    count: int,
    prompts: Sequence[str] | None = None,
    max_per_prompt: int | None = None,
) -> list[int]:
    """The pairs with the most disagreement, of equal ones the first, with a limit per prompt.

    Args:
        disagreement: (B,).
        count: how many.
        prompts: as for `select_diverse`.
        max_per_prompt: likewise.
    """
    limit = _Limit(prompts, max_per_prompt)
    is_full = np.zeros(len(disagreement), dtype=bool)
    selected: list[int] = []
    for index in np.argsort(-np.asarray(disagreement), kind="stable"):
        if len(selected) == count:
            break
        if not is_full[index]:
            selected.append(int(index))
            if max_per_prompt is not None:
                is_full |= limit.full_after(int(index))
    return selected


class _Limit:
    """Which pairs are of prompts that have been taken often enough."""

    def __init__(self, prompts: Sequence[str] | None, most: int | None) -> None:
        self.most = most
        self.of_pair = np.zeros(0, dtype=np.int64)
        if prompts is not None and most is not None:
            names = np.asarray(prompts, dtype=object).astype(str)
            self.of_pair = np.unique(names, return_inverse=True)[1]
        self._taken: dict[int, int] = {}

    def full_after(self, index: int) -> np.ndarray:
        """Count a pair; (B,) whether its prompt is the pairs' and is full now."""
        if self.most is None or not len(self.of_pair):
            return np.zeros(1, dtype=bool)
        prompt = int(self.of_pair[index])
        self._taken[prompt] = self._taken.get(prompt, 0) + 1
        return (self.of_pair == prompt) & (self._taken[prompt] >= self.most)
