"""Many pairs that members disagree about are alike: labels of some of them say the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tokenenv.rewards import RewardModel, TokenPair, pooled_features

__all__ = ["choose", "most_disputed", "select_diverse"]

SHORTLIST = 10
"""Times as many pairs as are selected, those with the most disagreement, are looked at."""

FEWEST_LISTED = 200
"""Pairs that are looked at even where few are selected."""

NOTHING_NEW = 1e-9
"""Share of a pair's similarity to itself that the selected ones do not tell, below which it is a
combination of them."""


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
        max_per_prompt: pairs of one prompt at most: those with the most disagreement.

    Returns:
        `count` different indices, or fewer where the limit per prompt leaves no more.
    """
    size = max(SHORTLIST * count, FEWEST_LISTED) if is_diverse else count
    listed = most_disputed(disagreement, size, prompts, max_per_prompt)
    if not is_diverse:
        return listed
    a, _ = pooled_features(member, [pairs[i].chosen for i in listed])
    b, _ = pooled_features(member, [pairs[i].rejected for i in listed])
    return [listed[i] for i in select_diverse(a - b, disagreement[listed], count)]


def most_disputed(
    disagreement: np.ndarray,
    count: int,
    prompts: Sequence[str] | None = None,
    max_per_prompt: int | None = None,
) -> list[int]:
    """The pairs with the most disagreement, of equal ones the first.

    Args:
        disagreement: (B,).
        count: how many, at most.
        prompts: B names of prompts, for `max_per_prompt`.
        max_per_prompt: pairs of one prompt at most; None: as many as there are.
    """
    order = np.argsort(-np.asarray(disagreement), kind="stable").tolist()
    if prompts is None or max_per_prompt is None:
        return order[:count]
    taken: Counter[str] = Counter()
    listed: list[int] = []
    for index in order:
        if len(listed) < count and taken[prompts[index]] < max_per_prompt:
            taken[prompts[index]] += 1
            listed.append(index)
    return listed


def select_diverse(features: np.ndarray, disagreement: np.ndarray, count: int) -> list[int]:
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
        disagreement: (B,) q, 0 or more.
        count: how many to select.

    Returns:
        `count` different indices; all, where there are no more.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # (B, h)
    log_quality = np.log(np.maximum(np.asarray(disagreement, dtype=np.float64), 1e-12))
    count = min(count, len(unit))
    # The rows of the Cholesky factor, and what the selected pairs do not tell of each pair.
    factor, rows = np.zeros((count, len(unit))), 0
    left = np.ones(len(unit))
    is_open = np.ones(len(unit), dtype=bool)
    selected: list[int] = []
    for _ in range(count):
        is_new = is_open & (left > NOTHING_NEW)
        if is_new.any():  # log(q²·left): the growth of the determinant
            growth = np.where(is_new, 2 * log_quality + np.log(np.maximum(left, 1e-300)), -np.inf)
        else:
            growth = np.where(is_open, log_quality, -np.inf)
        best = int(np.argmax(growth))
        if is_new[best]:
            told = factor[:rows].T @ factor[:rows, best]
            row = ((unit @ unit[best]) ** 2 - told) / np.sqrt(left[best])
            factor[rows], rows = row, rows + 1
            left = np.maximum(left - row**2, 0.0)
        selected.append(best)
        is_open[best] = False
    return selected
