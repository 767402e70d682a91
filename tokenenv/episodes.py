"""The batched state machine of the token MDP, in numpy: prompts, responses and lengths.

Axes: `N` episodes side by side, `P` prompt columns, `T` response columns, `V` token ids.
The transition s_{t+1} = s_t + a_t and the end of an episode are written here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from gymnasium.error import ResetNeeded

__all__ = ["NO_TOKEN", "EpisodeBatch", "split_observation"]

NO_TOKEN = -1
"""Fills observations where there is no token; it is no token id, so pad == eos is safe."""

_STATE = ("observations", "prompt_lengths", "response_lengths", "running", "stopped")
"""Attributes of `EpisodeBatch` that make up its state."""


class EpisodeBatch:
    """N episodes of the token MDP side by side.

    Args:
        num_envs: N.
        max_prompt_tokens: P, the columns that the prompt is right-aligned in.
        max_new_tokens: T, the columns that the response is left-aligned in, and its budget.
        vocabulary_size: V; actions are 0 … V−1.
        eos_token_ids: the token ids that end a response.

    Attributes:
        observations: (N, P+T) int64, `NO_TOKEN` where there is no token.
        prompt_lengths: (N,) int64.
        response_lengths: (N,) int64, the EOS token counted.
        running: (N,) bool, true from `start` until the episode has ended.
        stopped: (N,) bool, true where the last token of an ended episode is EOS.
    """

    def __init__(
        self,
        num_envs: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        vocabulary_size: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self.num_envs = num_envs
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.vocabulary_size = vocabulary_size
        self.is_eos = np.zeros(vocabulary_size, dtype=bool)
        self.is_eos[list(eos_token_ids)] = True
        width = max_prompt_tokens + max_new_tokens
        self.observations = np.full((num_envs, width), NO_TOKEN, dtype=np.int64)
        self.prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self.response_lengths = np.zeros(num_envs, dtype=np.int64)
        self.running = np.zeros(num_envs, dtype=bool)
        self.stopped = np.zeros(num_envs, dtype=bool)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The episodes as arrays, by attribute."""
        return {name: getattr(self, name).copy() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on with the episodes that `state_dict` gave.

        Raises:
            ValueError: they are of another number of environments, or of other limits.
        """
        for name in _STATE:
            here, stored = getattr(self, name), np.asarray(state[name])
            if stored.shape != here.shape:
                raise ValueError(
                    f"the stored episodes have {name} of shape {stored.shape}, and here it is "
                    f"{here.shape}: make the environment with the same number of environments, "
                    "max_prompt_tokens and max_new_tokens."
                )
        for name in _STATE:
            getattr(self, name)[...] = state[name]

    def start(self, row: int, prompt: np.ndarray) -> None:
        """Begin a new episode in `row` from `prompt`, (n,) token ids with 1 ≤ n ≤ P."""
        assert 1 <= len(prompt) <= self.max_prompt_tokens
        self.observations[row] = NO_TOKEN
        first = self.max_prompt_tokens - len(prompt)
        self.observations[row, first : self.max_prompt_tokens] = prompt
        self.prompt_lengths[row] = len(prompt)
        self.response_lengths[row] = 0
        self.running[row] = True
        self.stopped[row] = False

    def append(self, actions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Append `actions[rows]` to the responses of `rows`.

        Args:
            actions: (N,) token ids; entries outside `rows` are ignored.
            rows: (n,) int64, the episodes that take a step.

        Returns:
            (n,) bool, where the episode has ended with this token.

        Raises:
            ResetNeeded: a row has not been started, or has ended.
            ValueError: an action is no integer in 0 … V−1.
        """
        idle = rows[~self.running[rows]]
        if len(idle):
            raise ResetNeeded(
                f"step() on environment {idle[0]}, which has no running episode: call reset() "
                "first, and again after every episode that has ended."
            )
        tokens = self._checked(actions, rows)
        columns = self.max_prompt_tokens + self.response_lengths[rows]
        self.observations[rows, columns] = tokens
        self.response_lengths[rows] += 1
        self.stopped[rows] = self.is_eos[tokens]
        ended = self.stopped[rows] | (self.response_lengths[rows] == self.max_new_tokens)
        self.running[rows] = ~ended
        return ended

    def take_back(self, rows: np.ndarray) -> None:
        """Undo the last `append` to `rows`, (n,) int64: their episodes are running again."""
        self.response_lengths[rows] -= 1
        columns = self.max_prompt_tokens + self.response_lengths[rows]
        self.observations[rows, columns] = NO_TOKEN
        self.running[rows] = True
        self.stopped[rows] = False

    def _checked(self, actions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`actions[rows]`, or ValueError: nothing is clipped or cast silently."""
        tokens = np.asarray(actions)
        if tokens.shape != (self.num_envs,) or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"actions have shape {tokens.shape} and dtype {tokens.dtype}; they must be "
                f"{self.num_envs} integer token ids, one per environment, in 0 … "
                f"{self.vocabulary_size - 1}."
            )
        tokens = tokens[rows]
        outside = np.flatnonzero((tokens < 0) | (tokens >= self.vocabulary_size))
        if len(outside):
            raise ValueError(
                f"action {tokens[outside[0]]} of environment {rows[outside[0]]} is outside the "
                f"vocabulary: allowed are the token ids 0 … {self.vocabulary_size - 1}."
            )
        return tokens

    def finish_reason(self, row: int) -> str:
        """`"stop"` where the response ended with EOS, `"length"` where its budget ran out."""
        return "stop" if self.stopped[row] else "length"

    def prompt(self, row: int) -> np.ndarray:
        """(prompt length,) int64 token ids of `row`'s prompt."""
        end = self.max_prompt_tokens
        return self.observations[row, end - self.prompt_lengths[row] : end].copy()

    def response(self, row: int) -> np.ndarray:
        """(response length,) int64 token ids of `row`'s response, EOS included."""
        start = self.max_prompt_tokens
        return self.observations[row, start : start + self.response_lengths[row]].copy()


def split_observation(
    observation: np.ndarray | Sequence[int], max_prompt_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The prompt and the response of one (P+T,) observation, as token ids without `NO_TOKEN`."""
    row = np.asarray(observation)
    prompt, response = row[:max_prompt_tokens], row[max_prompt_tokens:]
    return prompt[prompt != NO_TOKEN], response[response != NO_TOKEN]
