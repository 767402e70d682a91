"""The tree of all states of a token MDP that is small enough to write every one of them down.

Axes: `X` prompts, `V` token ids, `C` of which continue a response (all but EOS), `T` tokens at
most. At depth t (t tokens of response) each prompt has C^t states; the c-th continuing token leads
from state i at depth t to state i·C + c at depth t + 1. Quantities of states or of actions are a
list of T arrays, one per depth: (X, C^t) for states, (X, C^t, V) for actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenenv.episodes import NO_TOKEN
from tokenenv.models import LanguageModel
from tokenenv.settings import ResolvedSettings

__all__ = ["Levels", "PrefixTree", "count_responses", "normalized"]

Levels = list[np.ndarray]
"""One array per depth t = 0 … T−1: (X, C^t) of states or (X, C^t, V) of actions."""


def normalized(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities: `logits` less the log of the sum of their exp over the last axis."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def count_responses(prompts: int, vocabulary_size: int, eos: int, max_new_tokens: int) -> int:
    """Finished responses of a token MDP with that many prompts, token ids and EOS ids."""
    going_on = vocabulary_size - eos
    ended = sum(going_on**t * eos for t in range(max_new_tokens))
    return prompts * (ended + going_on**max_new_tokens)


@dataclass(frozen=True)
class PrefixTree:
    """Every state, every action and every finished response of a token MDP.

    Attributes:
        settings: the environment's, resolved; its `kl_coef` is the default β.
        language_model: the reference.
        prompts: X texts.
        prompt_tokens: X arrays of token ids.
        continuing: (C,) the token ids that do not end a response.
        eos: (V − C,) those that do.
        ref_log_probs: T levels (X, C^t, V) of log π_ref(a|s), float64, normalised.
        scores: T levels (X, C^t, V) of R(x, y) of the response that the action finishes; NaN where
            it goes on.
        gold_rewards: likewise, of the true reward; None if unknown.
    """

    settings: ResolvedSettings
    language_model: LanguageModel
    prompts: list[str]
    prompt_tokens: list[np.ndarray]
    continuing: np.ndarray
    eos: np.ndarray
    ref_log_probs: Levels
    scores: Levels
    gold_rewards: Levels | None

    @property
    def depth(self) -> int:
        """T, the longest response."""
        return self.settings.max_new_tokens

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.continuing) + len(self.eos)

    @property
    def kl_coef(self) -> float:
        """β of the environment."""
        return self.settings.kl_coef

    @property
    def num_responses(self) -> int:
        """Finished responses over all prompts."""
        return count_responses(len(self.prompts), self.vocabulary_size, len(self.eos), self.depth)

    def shape(self, t: int) -> tuple[int, int, int]:
        """(X, C^t, V) of the actions at depth t."""
        return len(self.prompts), len(self.continuing) ** t, self.vocabulary_size

    @property
    def is_eos(self) -> np.ndarray:
        """(V,) bool, the actions that stop a response."""
        stops = np.zeros(self.vocabulary_size, dtype=bool)
        stops[self.eos] = True
        return stops

    def ending(self, t: int) -> np.ndarray:
        """(V,) bool, the actions that finish a response at depth t, by stopping or by length."""
        return self.is_eos | (t == self.depth - 1)

    def prefixes(self, t: int) -> np.ndarray:
        """(C^t, t) the response tokens of the states at depth t."""
        count = len(self.continuing)
        return self.continuing[np.indices((count,) * t).reshape(t, count**t).T]

    def observations(self, t: int) -> np.ndarray:
        """(X·C^t, P+T) the environment's observations of the states at depth t, by prompt."""
        columns = self.settings.max_prompt_tokens
        prefixes = self.prefixes(t)
        shape = (len(self.prompts), len(prefixes), columns + self.depth)
        observations = np.full(shape, NO_TOKEN, dtype=np.int64)
        for row, prompt in enumerate(self.prompt_tokens):
            observations[row, :, columns - len(prompt) : columns] = prompt
        observations[:, :, columns : columns + t] = prefixes
        return observations.reshape(-1, shape[-1])

    def locate_state(self, prefix: Sequence[int] | np.ndarray) -> int:
        """The index, at its depth, of the state after the tokens of `prefix`.

        Raises:
            ValueError: the tree has no such state.
        """
        index = {int(token): i for i, token in enumerate(self.continuing)}
        if len(prefix) >= self.depth or not all(int(token) in index for token in prefix):
            raise ValueError(
                f"{list(map(int, prefix))} is no unfinished response: give fewer than {self.depth} "
                f"of the token ids {self.continuing.tolist()}."
            )
        state = 0
        for token in prefix:
            state = state * len(index) + index[int(token)]
        return state

    def locate(self, response: Sequence[int] | np.ndarray) -> tuple[int, int, int]:
        """Depth, state and last action of a finished response, as indices into levels.

        Raises:
            ValueError: the tree has no such response.
        """
        depth, last = len(response) - 1, int(response[-1]) if len(response) else -1
        is_token = 0 <= last < self.vocabulary_size
        if not (0 <= depth < self.depth and is_token and self.ending(depth)[last]):
            raise ValueError(
                f"{list(map(int, response))} is no finished response: it must end with one of "
                f"{self.eos.tolist()}, or have {self.depth} tokens."
            )
        return depth, self.locate_state(response[:-1]), last

    # Along the tree ------------------------------------------------------------------------------

    def after(self, t: int, of_states: np.ndarray | None) -> np.ndarray:
        """(X, C^t, V) values of the states that the actions at depth t lead to.

        Args:
            t: depth of the actions.
            of_states: (X, C^(t+1)) of the states one deeper; None at the last depth.

        Returns:
            0 where an action finishes the response.
        """
        values = np.zeros(self.shape(t))
        if of_states is not None:
            values[:, :, self.continuing] = of_states.reshape(*values.shape[:2], -1)
        return values

    def next_states(self, of_actions: np.ndarray) -> np.ndarray:
        """(X, C^(t+1)) values of the states one deeper, from (X, C^t, V) of the actions to them."""
        return of_actions[:, :, self.continuing].reshape(len(self.prompts), -1)

    def state_log_probs(self, log_policy: Levels) -> Levels:
        """T levels (X, C^t): the log-probability of coming to each state from its prompt."""
        levels = [np.zeros((len(self.prompts), 1))]
        for level in log_policy[:-1]:
            levels.append(self.next_states(levels[-1][:, :, None] + level))
        return levels

    # Finished responses --------------------------------------------------------------------------

    def finished(self, of_actions: Levels) -> np.ndarray:
        """(X, N) values of the last action of each of a prompt's N finished responses.

        Every table of finished responses has this order: by length, then by state, then by action.
        """
        parts = [level[:, :, self.ending(t)] for t, level in enumerate(of_actions)]
        return np.concatenate([part.reshape(len(self.prompts), -1) for part in parts], axis=1)

    def response_log_probs(self, log_policy: Levels) -> np.ndarray:
        """(X, N) log π(y|x) of every finished response."""
        states = self.state_log_probs(log_policy)
        return self.finished(
            [state[:, :, None] + level for state, level in zip(states, log_policy, strict=True)]
        )

    def responses(self) -> list[np.ndarray]:
        """The token ids of a prompt's N finished responses; the same for each prompt."""
        responses: list[np.ndarray] = []
        for t in range(self.depth):
            last = np.flatnonzero(self.ending(t))
            prefixes = self.prefixes(t)
            whole = np.empty((len(prefixes), len(last), t + 1), dtype=np.int64)
            whole[:, :, :t] = prefixes[:, None]
            whole[:, :, t] = last
            responses += list(whole.reshape(-1, t + 1))
        return responses

    @property
    def response_lengths(self) -> np.ndarray:
        """(N,) tokens of a prompt's finished responses, EOS counted."""
        return self.finished([np.full(self.shape(t), t + 1) for t in range(self.depth)])[0]

    @property
    def response_stopped(self) -> np.ndarray:
        """(N,) bool, which of a prompt's finished responses end with EOS."""
        levels = [np.broadcast_to(self.is_eos, self.shape(t)) for t in range(self.depth)]
        return self.finished(levels)[0]
