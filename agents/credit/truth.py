"""The true advantage of every token, on tasks whose responses can all be enumerated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.policy import LMActorCriticPolicy
from tokenenv.optimum import Solution, true_advantages
from tokenenv.rewards import Episode

__all__ = ["true_token_advantages"]


def true_token_advantages(
    policy: LMActorCriticPolicy,
    solution: Solution,
    episodes: Sequence[Episode],
    kl_coef: float,
    gamma: float = 1.0,
) -> np.ndarray:
    """(n,) A^π(s, a) with the KL of π in the reward; NaN where it is not known.

    That is for γ below 1, for which the tree has no values, and for prompts it does not hold.

    Args:
        policy: π.
        solution: of the task.
        episodes: B responses, n tokens in all.
        kl_coef: β.
        gamma: γ.
    """
    lengths = [len(e.response) for e in episodes]
    truth = np.full(sum(lengths), np.nan)
    if gamma != 1.0:
        return truth
    tree = solution.tree
    advantages = true_advantages(policy.actor, tree, kl_coef).advantages
    prompts = {prompt.tobytes(): i for i, prompt in enumerate(tree.prompt_tokens)}
    start = 0
    for episode, length in zip(episodes, lengths, strict=True):
        prompt = prompts.get(np.asarray(episode.prompt).tobytes())
        if prompt is not None:
            for t, token in enumerate(episode.response.tolist()):
                state = tree.locate_state(episode.response[:t])
                truth[start + t] = advantages[t][prompt, state, token]
        start += length
    return truth
