"""The reference at the states of N episodes: hidden states, distributions and likeliest tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.log_probs import log_softmax
from tokenenv.models.reference import Reference
from tokenenv.models.slot_decoder import SlotDecoder
from tokenenv.models.weight_watch import WeightWatch

__all__ = ["ReferenceDecoder", "top_tokens"]


class ReferenceDecoder:
    """Evaluates the reference at the states of N episodes, one forward per new token.

    Rewards, observations, actions and masks share one decoder: a second request for the same state
    is answered from memory, so the reference runs once per state.

    Args:
        reference: the reference.
        num_envs: N.
        max_prompt_tokens: P.
        max_new_tokens: T.
    """

    def __init__(
        self, reference: Reference, num_envs: int, max_prompt_tokens: int, max_new_tokens: int
    ) -> None:
        self.reference = reference
        self.num_envs = num_envs
        self.max_prompt_tokens = max_prompt_tokens
        self.width = max_prompt_tokens + max_new_tokens
        self._decoder: SlotDecoder | None = None
        self._log_probs: torch.Tensor | None = None
        self._log_probs_of = np.zeros((0, 0), dtype=np.int64)
        self._weights = WeightWatch(reference.language_model.model)

    @property
    def hidden_size(self) -> int:
        """h, the width of the reference's last hidden state."""
        model = self.reference.language_model.model
        return int(model.get_output_embeddings().weight.shape[1])

    @property
    def forwards(self) -> int:
        """Forwards of the reference's trunk so far."""
        return 0 if self._decoder is None else self._decoder.forwards

    def hidden_states(self, observations: np.ndarray) -> torch.Tensor:
        """The trunk's last hidden state at every state.

        Args:
            observations: (N, P+T) int64; a row without an episode may be empty.

        Returns:
            (N, h): overwritten by the next call.
        """
        if self._decoder is None:
            self._decoder = self.reference.decoder(self.num_envs, self.width)
        idle = self._is_idle(observations)  # (N,)
        if idle.any():  # the decoder needs at least one token per row
            observations = observations.copy()
            observations[idle, self.max_prompt_tokens - 1] = 0  # (idle rows,)
        return self._decoder.hidden_states(observations)

    def refill(self) -> None:
        """Evaluate all states anew at the next call; for a reset of all episodes."""
        self._log_probs = None
        if self._decoder is not None:
            self._decoder.refill()

    def fork(self) -> ReferenceDecoder:
        """A copy that has seen the same states; the reference is shared, its cache is copied."""
        twin = copy.copy(self)
        twin._weights = copy.copy(self._weights)
        if self._decoder is not None:
            twin._decoder = self._decoder.fork()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """The states that were seen, with keys and values; empty where none were."""
        return {} if self._decoder is None else self._decoder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._log_probs = None
        if state and self._decoder is None:
            self._decoder = self.reference.decoder(self.num_envs, self.width)
        if self._decoder is not None:
            self._decoder.load_state_dict(state)

    def features(self, observations: np.ndarray) -> np.ndarray:
        """(N, h) float32 hidden states as a new array; zeros in rows without an episode."""
        hidden = self.hidden_states(observations)  # (N, h), overwritten by the next call
        features = hidden.to(dtype=torch.float32, copy=True).cpu().numpy()
        features[self._is_idle(observations)] = 0.0  # (idle rows, h)
        return features

    @torch.no_grad()
    def log_probs(self, observations: np.ndarray) -> torch.Tensor:
        """(N, V) log π_ref of every token at every state, float32 at least; read only."""
        if (
            self._log_probs is None
            or self._weights.changed()
            or not np.array_equal(observations, self._log_probs_of)
        ):
            hidden = self.hidden_states(observations)  # (N, h)
            model = self.reference.language_model.model
            self._log_probs = log_softmax(model, hidden, self.reference.temperature)  # (N, V)
            self._log_probs_of = observations.copy()
        return self._log_probs

    def top_tokens(self, observations: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k likeliest tokens of the reference at every state; see `top_tokens`."""
        tokens, excluded_probability = top_tokens(self.log_probs(observations), k)
        return tokens.cpu().numpy(), excluded_probability.double().cpu().numpy()

    def _is_idle(self, observations: np.ndarray) -> np.ndarray:
        """(N,) bool, the rows without an episode: the last column of the prompt is empty."""
        return observations[:, self.max_prompt_tokens - 1] == NO_TOKEN


def top_tokens(log_probs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens of distributions, the likeliest first; of equals the smallest id.

    Args:
        log_probs: (N, V).
        k: 1 … V.

    Returns:
        (N, k) int64 token ids, and (N,) the probability mass of all others.
    """
    # The order of ties in `topk` is undefined: only its k-th value is used, which is not.
    kth = log_probs.topk(k, dim=-1).values[:, -1:]  # (N, k) → (N, 1)
    above, equal = log_probs > kth, log_probs == kth  # (N, V) each
    places = k - above.sum(-1, keepdim=True)  # (N, 1), left for tokens that equal the k-th
    is_top = above | (equal & (equal.cumsum(-1) <= places))  # (N, V), k true in each row
    ids = is_top.nonzero()[:, 1].reshape(len(log_probs), k)  # (N·k, 2) → (N, k), by ascending id
    order = log_probs.gather(-1, ids).argsort(dim=-1, descending=True, stable=True)  # (N, k)
    excluded_probability = log_probs.exp().masked_fill(is_top, 0.0).sum(-1)  # (N, V) → (N,)
    return ids.gather(-1, order), excluded_probability  # (N, k), (N,)
