"""`RefreshCallback`: the rounds of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.reward_quality.refresh.refresher import Refresh, RewardRefresher

__all__ = ["RefreshCallback"]


class RefreshCallback(BaseCallback):
    """Refreshes the reward models before a rollout, every so many updates.

    It logs, of the policy that the rollout is sampled with, `rlhf/rm_accuracy` (how often the
    reward agrees with the labels of fresh pairs, before it has learned them),
    `rlhf/rm_accuracy_after` (after), `rlhf/rm_scale` (deviation of the raw rewards on the
    reference's responses over that at the start of the training) and `rlhf/rm_labels` (fresh labels
    so far). Put it before the `RLHFCallback`.

    Args:
        refresher: does a round.
        every: updates between two rounds.
        say: called with a sentence about each round; None: nothing is said.
        on_refreshed: called after a round that changed the reward, for whoever keeps what follows
            from it, such as an optimum.

    Attributes:
        rounds: what came of them.
    """

    def __init__(
        self,
        refresher: RewardRefresher,
        every: int,
        say: Callable[[str], None] | None = None,
        on_refreshed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.refresher, self.every = refresher, every
        self.rounds: list[Refresh] = []
        self._say = say or (lambda text: None)
        self._on_refreshed = on_refreshed or (lambda: None)
        self._updates, self._labels, self._scale = 0, 0, 1.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self._updates or self._updates % self.every:
            return
        if self.refresher.rounds >= self._updates // self.every:
            return  # done already, before the training was interrupted here
        policy: Any = self.model.policy
        done = self.refresher.refresh(policy.actor)
        self.rounds.append(done)
        self._labels += done.labels
        self._scale *= done.scale
        if not math.isnan(done.accuracy):
            self.logger.record("rlhf/rm_accuracy", done.accuracy)
            self.logger.record("rlhf/rm_accuracy_after", done.accuracy_after)
        self.logger.record("rlhf/rm_scale", self._scale)
        self.logger.record("rlhf/rm_labels", self._labels)
        self._say(self._sentence(done))
        if self.refresher.how.epochs:
            self._on_refreshed()

    def _sentence(self, done: Refresh) -> str:
        said = f"after {self.num_timesteps:,} tokens, {done.labels:,} fresh pairs labelled"
        if math.isnan(done.accuracy):
            return f"{said}: all of them are ties."
        said += f": the reward agrees with {done.accuracy:.0%} of the labels"
        if not self.refresher.how.epochs:
            return f"{said}."
        return (
            f"{said}, and with {done.accuracy_after:.0%} after learning them; the spread of its "
            f"raw rewards on the reference's responses is {done.scale:.2f} times what it was, and "
            "is normalised away, so that β means the same."
        )

    def _on_rollout_end(self) -> None:
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the rounds stand, those of the refresher included."""
        counts = {"updates": self._updates, "labels": self._labels, "scale": self._scale}
        return {**counts, "refresher": self.refresher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._updates, self._labels = state["updates"], state["labels"]
        self._scale = state["scale"]
        self.refresher.load_state_dict(state["refresher"])
        self._on_refreshed()
