"""The true advantage of every token, on tasks whose responses can all be enumerated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.credit.settings import UpdateSettings
from agents.policy import LMActorCriticPolicy
from tokenenv.optimum import ActionValues, PrefixTree, Solution, true_advantages
from tokenenv.rewards import Episode

__all__ = ["Truth", "has_truth"]


def has_truth(settings: UpdateSettings) -> bool:
    """Whether the exact values are those of the rewards that the agent is paid.

    They have k1 in the reward and no discount; with a KL loss, or another estimator, the agent's
    advantages are of other rewards.
    """
    is_k1 = settings.kl_estimator == "k1" and not settings.use_kl_loss
    return is_k1 and settings.gamma == 1.0


@dataclass(frozen=True)
class Truth:
    """The exact values of one policy at every state of a task.

    Attributes:
        tree: of the task.
        values: V^π, Q^π and A^π, with the KL of π in the reward and γ = 1.
    """

    tree: PrefixTree
    values: ActionValues

    @classmethod
    def of(cls, policy: LMActorCriticPolicy, solution: Solution, kl_coef: float) -> Truth:
        """That of a policy as it is now.

        Args:
            policy: π.
            solution: of the task.
            kl_coef: β.
        """
        return cls(solution.tree, true_advantages(policy.actor, solution.tree, kl_coef))

    def advantages(self, episodes: Sequence[Episode], gamma: float = 1.0) -> np.ndarray:
        """(n,) A^π(s, a) of the tokens of B responses; NaN where it is not known.

        That is for γ below 1, which the values are not for, and for prompts the tree does not hold.
        """
        prompts = {prompt.tobytes(): i for i, prompt in enumerate(self.tree.prompt_tokens)}
        return np.concatenate(
            [
                self._of_response(e, None if gamma != 1.0 else prompts.get(e.prompt.tobytes()))
                for e in episodes
            ]
        )

    def _of_response(self, episode: Episode, prompt: int | None) -> np.ndarray:
        response = episode.response
        if prompt is None:
            return np.full(len(response), np.nan)
        advantages = self.values.advantages
        states = [self.tree.locate_state(response[:t]) for t in range(len(response))]
        return np.array(
            [advantages[t][prompt, state, response[t]] for t, state in enumerate(states)]
        )
