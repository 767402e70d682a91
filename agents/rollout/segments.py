"""Segments: the steps of one episode inside one rollout, and the storage they are cut from.

Axes: `N` environments, `P` prompt columns, `T` response columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenenv.data import Prompt, prompt_of_state, prompt_state
from tokenenv.episodes import split_observation

__all__ = [
    "RolloutStorage",
    "Segment",
    "concatenate",
    "offsets",
    "segments_of_state",
    "segments_state",
]


@dataclass(slots=True)
class Segment:
    """The steps of one episode inside one rollout (or, carried, of several).

    Attributes:
        env: the environment's index.
        prompt: the tokens that the episode started from.
        context: response tokens before the first of the steps; they are not trained on.
        actions: (n,) int32 token ids.
        rewards: (n,) float32.
        values: (n,) float32, V of the states that the actions were taken in.
        log_probs: (n,) float32, as they were sampled.
        kl_coefs: (n,) float64, the β under which each action was sampled.
        ended: whether the episode ended with the last of the steps.
        end: the row of the last rollout that follows the last of the steps.
        kl_before: log π − log π_ref, summed over `context`; NaN where its sampling was not seen.
        ref_log_prob_before: log π_ref, summed over `context`.
        ref_log_probs: (n,) float32 log π_ref of the actions, or (0,) where the update needs none.
        old_log_probs: (n,) float32, `log_probs` as the update computes them, or (0,) where it
            computes as sampling did.
        new_steps: how many of the steps, the last ones, are of the last rollout.
        bootstrap: V of the state after the last of the steps, where the episode was lost there or
            the rollout's values were computed at its end.
        group: the environment's number of the group that the episode belongs to; None: of none.
        origin: the prompt as it was given, with messages and columns; None for a text alone.
    """

    env: int
    prompt: np.ndarray
    context: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray
    kl_coefs: np.ndarray
    ended: bool = False
    end: int = 0
    kl_before: float = 0.0
    ref_log_prob_before: float = 0.0
    ref_log_probs: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    old_log_probs: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    new_steps: int = 0
    bootstrap: float | None = None
    group: int | None = None
    origin: Prompt | None = None

    @property
    def prefix(self) -> np.ndarray:
        """The tokens before the first of the steps."""
        return np.concatenate([self.prompt, self.context])

    @property
    def response(self) -> np.ndarray:
        """The whole response so far."""
        return np.concatenate([self.context, self.actions])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.prompt, self.context, *(getattr(self, name) for name in _PER_STEP))
        return sum(array.nbytes for array in arrays)

    def store_old_log_probs(self, new: np.ndarray | None) -> None:
        """Store the old log-probabilities of the last rollout's steps, (`new_steps`,) float32.

        Where those of earlier steps were stored and these are None, or the other way round (the
        precision was changed in between), the sampled ones are used instead.
        """
        if new is None and not len(self.old_log_probs):
            return
        before = len(self.log_probs) - self.new_steps
        stored = self.old_log_probs if len(self.old_log_probs) else self.log_probs[:before]
        new = self.log_probs[before:] if new is None else new
        self.old_log_probs = np.concatenate([stored, new])  # (n,)

    def following_value(self, last_values: np.ndarray) -> float:
        """V of the state after the last of the steps, 0 where the episode ended.

        Args:
            last_values: (N,) V of the states that the rollout ended in.
        """
        if self.ended:
            return 0.0
        return float(last_values[self.env]) if self.bootstrap is None else self.bootstrap

    def is_at(self, prompt: np.ndarray, response: np.ndarray) -> bool:
        """Whether `prompt` and `response` are the state after the last of the steps."""
        return np.array_equal(self.prompt, prompt) and np.array_equal(self.response, response)


_PER_EPISODE = (
    *("env", "ended", "end", "kl_before", "ref_log_prob_before", "new_steps", "bootstrap", "group"),
)


def segments_state(segments: Sequence[Segment]) -> dict[str, Any]:
    """Segments as JSON values and arrays: each array of all of them in one."""
    state: dict[str, Any] = {
        name: [getattr(segment, name) for segment in segments] for name in _PER_EPISODE
    }
    state["origins"] = [prompt_state(segment.origin) for segment in segments]
    for name in ("prompt", "context", *_PER_STEP):
        arrays = [getattr(segment, name) for segment in segments]
        state[name] = {
            "lengths": np.array([len(array) for array in arrays], dtype=np.int64),
            "values": np.concatenate(arrays) if arrays else np.zeros(0),
        }
    return state


def segments_of_state(state: Mapping[str, Any]) -> list[Segment]:
    """The segments that `segments_state` described."""
    arrays: dict[str, Any] = {
        name: np.split(state[name]["values"], np.cumsum(state[name]["lengths"])[:-1])
        for name in ("prompt", "context", *_PER_STEP)
    }
    return [
        Segment(
            **{name: state[name][i] for name in _PER_EPISODE},
            **{name: parts[i].copy() for name, parts in arrays.items()},
            origin=prompt_of_state(origin),
        )
        for i, origin in enumerate(state["origins"])
    ]


_PER_STEP = (
    "actions",
    "rewards",
    "values",
    "log_probs",
    "kl_coefs",
    "ref_log_probs",
    "old_log_probs",
)


class RolloutStorage:
    """The steps of one rollout as they come in, one row of N environments at a time.

    Args:
        num_steps: rows.
        num_envs: N.
        keeps_ref_log_probs: whether log π_ref of the actions is stored with them.
    """

    def __init__(self, num_steps: int, num_envs: int, keeps_ref_log_probs: bool = False) -> None:
        shape = (num_steps, num_envs)  # rows as they come in; segments are cut from the columns
        ref_shape = shape if keeps_ref_log_probs else (0, num_envs)
        self.ref_log_probs = np.zeros(ref_shape, dtype=np.float32)
        self.actions = np.zeros(shape, dtype=np.int32)
        self.rewards, self.values, self.log_probs = (
            np.zeros(shape, dtype=np.float32) for _ in range(3)
        )
        self.pos = 0
        # Per environment: (row, group, origin, prompt, response so far) of the episodes that begin
        # here.
        self._starts: list[list[tuple[int, int | None, Prompt | None, np.ndarray, np.ndarray]]] = [
            [] for _ in range(num_envs)
        ]
        # (row, environment) → V, of the episodes that were lost before that row
        self._lost: dict[tuple[int, int], float] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = [self.actions, self.rewards, self.values, self.log_probs, self.ref_log_probs]
        tokens = [a for starts in self._starts for _, _, _, *both in starts for a in both]
        return sum(array.nbytes for array in arrays + tokens)

    def add(
        self,
        observations: np.ndarray,
        episode_starts: np.ndarray,
        max_prompt_tokens: int,
        open_segments: Sequence[Segment | None],
        groups: Sequence[int | None],
        origins: Sequence[Prompt | None],
    ) -> None:
        """Record the episodes that begin with the next row.

        In the first row, an environment whose observation does not follow on from its open segment
        (training was interrupted, say) begins here too, in the middle of its episode.

        Args:
            observations: (N, P+T) token ids.
            episode_starts: (N,) bool.
            max_prompt_tokens: P.
            open_segments: what the rollout before left open, per environment.
            groups: of the episodes that the next row belongs to, per environment.
            origins: their prompts as they were given, per environment.
        """
        is_first = self.pos == 0
        begins = np.ones_like(episode_starts) if is_first else episode_starts
        for env in np.flatnonzero(begins).tolist():
            prompt, response = split_observation(observations[env], max_prompt_tokens)
            left = open_segments[env]
            if not episode_starts[env] and left is not None and left.is_at(prompt, response):
                continue
            tokens = prompt.astype(np.int32), response.astype(np.int32)
            self._starts[env].append((self.pos, groups[env], origins[env], *tokens))

    def cut_episode(self, env: int, value: float) -> None:
        """End the episode under way in `env` before the next row: its end will not be seen.

        Args:
            env: the environment's index.
            value: V of the state that it was lost in.
        """
        self._lost[self.pos, env] = value

    def cut(
        self,
        dones: np.ndarray,
        open_segments: Sequence[Segment | None],
        merge_open: bool,
        kl_coef: float,
    ) -> list[Segment]:
        """The segments of the rollout, by environment and time.

        Args:
            dones: (N,) whether the last row ended an episode.
            open_segments: what the rollout before left open, per environment.
            merge_open: whether an open segment and its continuation become one; otherwise the
                continuation has the open one's tokens as context.
            kl_coef: β of this rollout.
        """
        segments: list[Segment] = []
        for env, starts in enumerate(self._starts):
            bounds = [row for row, *_ in starts] + [self.pos]
            env_segments = []
            if bounds[0] > 0:
                before = open_segments[env]
                assert before is not None
                env_segments.append(self._continued(before, bounds[0], merge_open, kl_coef))
            for index, (row, group, origin, prompt, context) in enumerate(starts):
                segment = self._steps(env, row, bounds[index + 1], prompt, context, kl_coef)
                segment.group, segment.origin = group, origin
                segment.kl_before = float("nan") if len(context) else 0.0
                env_segments.append(segment)
            for segment in env_segments[:-1]:
                segment.bootstrap = self._lost.get((segment.end, env))
                segment.ended = segment.bootstrap is None
            env_segments[-1].ended = bool(dones[env])
            segments += env_segments
        return segments

    def _steps(
        self,
        env: int,
        start: int,
        end: int,
        prompt: np.ndarray,
        context: np.ndarray,
        kl_coef: float,
    ) -> Segment:
        """A segment of the rows from `start` to before `end` of one environment.

        Args:
            env: the environment's index.
            start: first row.
            end: the row after the last.
            prompt: tokens of the prompt.
            context: tokens of the response before `start`.
            kl_coef: β of this rollout.
        """
        return Segment(
            env,
            prompt,
            context,
            actions=self.actions[start:end, env].copy(),  # (n,), n = end − start
            rewards=self.rewards[start:end, env].copy(),
            values=self.values[start:end, env].copy(),
            log_probs=self.log_probs[start:end, env].copy(),
            kl_coefs=np.full(end - start, kl_coef),
            ref_log_probs=self.ref_log_probs[start:end, env].copy(),
            new_steps=end - start,
            end=end,
        )

    def _continued(self, before: Segment, end: int, merge_open: bool, kl_coef: float) -> Segment:
        """The rows before `end` of an environment whose episode began in an earlier rollout.

        Args:
            before: the segment that was left open there.
            end: the row after the last.
            merge_open: whether the segment includes the steps of `before`; otherwise they are its
                context.
            kl_coef: β of this rollout.
        """
        context = before.context if merge_open else before.response
        segment = self._steps(before.env, 0, end, before.prompt, context, kl_coef)
        segment.group, segment.origin = before.group, before.origin
        segment.kl_before = before.kl_before
        segment.ref_log_prob_before = before.ref_log_prob_before
        if merge_open:
            for name in _PER_STEP:
                both = np.concatenate([getattr(before, name), getattr(segment, name)])
                setattr(segment, name, both)  # (len(before) + n,)
        return segment


def concatenate(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """All arrays in one; an empty one of type `dtype` where there are none."""
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(S + 1,) where each of S parts begins in their concatenation, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (S + 1,)
