"""Samples drawn from the tree itself: the sampled estimate of J* for policies that are no models.

So the estimate can be held against the exact optimum for any policy that can be written down: one
that has collapsed to a single response, say, or knows one branch only.
"""

from __future__ import annotations

import numpy as np

from tokenenv.optimum.mixture_samples import MixtureSamples
from tokenenv.optimum.policies import Policy, policy_levels
from tokenenv.optimum.prefix_tree import PrefixTree
from tokenenv.ranges import RESPONSES, check_ranges

__all__ = ["sample_tree_mixture"]


def sample_tree_mixture(
    policy: Policy, tree: PrefixTree, responses_per_prompt: int, seed: int
) -> MixtureSamples:
    """As `sample_mixture`: half of the responses from `policy`, half from π_ref.

    Args:
        policy: see `policy_levels`.
        tree: of the token MDP.
        responses_per_prompt: of both kinds together; even, at least 2.
        seed: of the sampling.

    Raises:
        ValueError: `policy` is none, or `responses_per_prompt` can't be halved.
    """
    check_ranges(
        {"responses_per_prompt": responses_per_prompt}, {"responses_per_prompt": RESPONSES}
    )
    rng = np.random.default_rng(seed)
    n = responses_per_prompt // 2
    log_probs = tree.response_log_probs(policy_levels(policy, tree))
    ref_log_probs = tree.response_log_probs(tree.ref_log_probs)
    drawn = np.stack([_draw(rng, table, n) for table in (log_probs, ref_log_probs)])
    rows = np.arange(len(tree.prompts))[None, :, None]
    gold = tree.gold_rewards
    return MixtureSamples(
        log_probs[rows, drawn],
        ref_log_probs[rows, drawn],
        tree.finished(tree.scores)[rows, drawn],
        None if gold is None else tree.finished(gold)[rows, drawn],
        tree.response_lengths[drawn],
        tree.response_stopped[drawn],
    )


def _draw(rng: np.random.Generator, log_probs: np.ndarray, count: int) -> np.ndarray:
    """(X, count) indices into each row of an (X, N) table of log-probabilities."""
    weights = np.exp(log_probs)
    return np.stack([rng.choice(len(row), count, p=row / row.sum()) for row in weights])
