"""Groups of responses to one prompt: the queue in which finished episodes wait for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from agents.rollout.segments import Segment, segments_of_state, segments_state
from agents.vec_env import TokenVecEnv
from tokenenv.settings import ResolvedSettings

__all__ = ["NO_COMPLETE_GROUP_MESSAGE", "GroupQueue", "check_groups"]

NO_COMPLETE_GROUP_MESSAGE = (
    "this rollout completed no group of {} responses to the same prompt, as can happen after an "
    "interruption, or after a reset of separate environments; its episodes wait for the next one. "
    "TokenPPO skips such an update, SB3's algorithms can't: use TokenPPO, or raise n_envs."
)
"""Message about a rollout without tokens to update with; {} is the group size."""


class GroupQueue:
    """Finished episodes that wait for the others of the environment's group.

    They wait unchanged, with the rewards they were paid and the log-probabilities they were sampled
    with, for as many rollouts as necessary, and each is used once. The group of an episode is
    decided when it starts. Groups of consecutive finished episodes with equal prompts would compare
    short responses with short ones, and remove a part of the effect of length from the advantages.

    An episode of no group (its prompt was set by `reset`) has no others to compare it with, and is
    left out. A group that lost one of its episodes, to a restart or to another user of the
    environment, will never be complete: its other episodes are dropped.

    Args:
        group_size: k.
        is_shared: whether the rows fill groups together; else each row has separate groups.
    """

    def __init__(self, group_size: int, is_shared: bool = True) -> None:
        self.group_size, self.is_shared = group_size, is_shared
        self._waiting: dict[tuple[int, int], list[Segment]] = {}

    def complete(
        self, finished: Sequence[Segment], under_way: Sequence[Segment] = ()
    ) -> list[Segment]:
        """Add the episodes that a rollout finished; returns those whose group is complete now.

        Args:
            finished: whole episodes, all of them scored.
            under_way: those that the rollout left unfinished.

        Returns:
            Group after group, k episodes each, in the order in which they finished.
        """
        completed: list[Segment] = []
        for segment in sorted(finished, key=lambda s: (s.end, s.env)):
            if segment.group is None:
                continue
            key = self._key(segment)
            group = self._waiting.setdefault(key, [])
            group.append(segment)
            if len(group) == self.group_size:
                completed += self._waiting.pop(key)
        self._drop_incomplete(finished, [s for s in under_way if s.group is not None])
        return completed

    def _key(self, segment: Segment) -> tuple[int, int]:
        """The row that counts the group (−1: all rows together), and the group's number."""
        assert segment.group is not None
        return (-1 if self.is_shared else segment.env, segment.group)

    def _drop_incomplete(self, finished: Sequence[Segment], under_way: Sequence[Segment]) -> None:
        """Drop the groups of which an episode was lost.

        Groups start one after another: of all but the newest, every episode has started, so it
        waits here, is under way, or is lost.
        """
        running = Counter(map(self._key, under_way))
        completed = [self._key(s) for s in finished if s.group is not None]
        newest: dict[int, int] = {}
        for numbering, number in [*self._waiting, *running, *completed]:
            newest[numbering] = max(number, newest.get(numbering, number))
        self._waiting = {
            key: group
            for key, group in self._waiting.items()
            if key[1] == newest[key[0]] or len(group) + running[key] >= self.group_size
        }

    def state_dict(self) -> dict[str, Any]:
        """What waits, as JSON values and arrays."""
        groups = list(self._waiting.values())
        return {
            "keys": [list(key) for key in self._waiting],
            "sizes": [len(group) for group in groups],
            "segments": segments_state([segment for group in groups for segment in group]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let what `state_dict` gave wait here."""
        segments = iter(segments_of_state(state["segments"]))
        self._waiting = {
            (numbering, number): [next(segments) for _ in range(size)]
            for (numbering, number), size in zip(state["keys"], state["sizes"], strict=True)
        }

    def __len__(self) -> int:
        """Episodes that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of what waits."""
        return sum(s.nbytes for group in self._waiting.values() for s in group)


def check_groups(group_size: int, n_steps: int, env: VecEnv, settings: ResolvedSettings) -> None:
    """Check that the environment's rollouts provide the groups that an estimator needs.

    The rows of one `TokenVecEnv` fill groups together: k consecutive starts take at most ⌈k/N⌉
    responses of every row. Separate environments each fill separate groups.

    Args:
        group_size: k, of the buffer.
        n_steps: steps per environment and rollout.
        env: the environment that training is about to use.
        settings: of the token MDP behind it.

    Raises:
        ValueError: the environment draws a new prompt after another number of episodes, or a
            rollout could end without one complete group.
    """
    if settings.group_size != group_size:
        raise ValueError(
            f"the buffer compares group_size={group_size} responses to the same prompt, but the "
            f"environment gives each prompt to group_size={settings.group_size} episodes: pass the "
            f"same to both, as in make_vec_env(..., group_size={group_size}) and "
            f"rollout_buffer_kwargs={{'group_size': {group_size}}}."
        )
    is_shared = isinstance(env.unwrapped, TokenVecEnv)
    rows = env.num_envs if is_shared else 1
    needed = -(-group_size // rows) * settings.max_new_tokens
    if n_steps < needed:
        together = "" if is_shared else ", use agents.make_vec_env, whose rows fill groups together"
        raise ValueError(
            f"group_size={group_size} needs n_steps ≥ {needed} here, got n_steps={n_steps}: in "
            f"fewer steps no group might be complete, as a response may take max_new_tokens="
            f"{settings.max_new_tokens} steps and {rows} of a group's are sampled at a time. Raise "
            f"n_steps{' or n_envs' if is_shared else ''}{together}, or lower group_size."
        )
