"""What the reference makes of the states that N episodes are in: features, and likely tokens."""

from __future__ import annotations

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.models.log_probs import log_softmax
from tokenenv.models.reference import Reference
from tokenenv.models.slot_cache import SlotDecoder
from tokenenv.models.weight_watch import WeightWatch

__all__ = ["ReferenceDecoder", "top_tokens"]


class ReferenceDecoder:
    """Reads the states of N episodes with the reference, one forward per new token.

    Whoever asks for a state that was read already is answered from memory: rewards, observations,
    actions and masks share one decoder, so that the reference runs once per state.

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
            observations: (N, P+T) int64; a row that was never started may be empty.

        Returns:
            (N, h): overwritten by the next call.
        """
        if self._decoder is None:
            self._decoder = self.reference.decoder(self.num_envs, self.width)
        idle = self._is_idle(observations)
        if idle.any():  # it shows a token, to be refilled
            observations = observations.copy()
            observations[idle, self.max_prompt_tokens - 1] = 0
        return self._decoder.hidden_states(observations)

    def refill(self) -> None:
        """Read all states anew at the next call; for a reset, after which it would anyway."""
        self._log_probs = None
        if self._decoder is not None:
            self._decoder.refill()

    def features(self, observations: np.ndarray) -> np.ndarray:
        """(N, h) float32 hidden states as an array of its own; zeros where no episode started."""
        features = self.hidden_states(observations).to(dtype=torch.float32, copy=True).cpu().numpy()
        features[self._is_idle(observations)] = 0.0
        return features

    @torch.no_grad()
    def log_probs(self, observations: np.ndarray) -> torch.Tensor:
        """(N, V) log π_ref of every token at every state, float32 at least; not to be changed."""
        if (
            self._log_probs is None
            or self._weights.changed()
            or not np.array_equal(observations, self._log_probs_of)
        ):
            hidden = self.hidden_states(observations)
            model = self.reference.language_model.model
            self._log_probs = log_softmax(model, hidden, self.reference.temperature)
            self._log_probs_of = observations.copy()
        return self._log_probs

    def top_tokens(self, observations: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k likeliest tokens of the reference at every state; see `top_tokens`."""
        tokens, excluded_probability = top_tokens(self.log_probs(observations), k)
        return tokens.cpu().numpy(), excluded_probability.double().cpu().numpy()

    def _is_idle(self, observations: np.ndarray) -> np.ndarray:
        """(N,) bool: prompts are right-aligned, so their last column tells."""
        return observations[:, self.max_prompt_tokens - 1] == NO_TOKEN


def top_tokens(log_probs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens of distributions, the likeliest first; of equals the smallest id.

    Args:
        log_probs: (N, V).
        k: 1 … V.

    Returns:
        (N, k) int64 token ids, and (N,) the probability mass of all others.
    """
    # `topk` breaks ties as it likes: only its k-th value is used, which ties do not change.
    last = log_probs.topk(k, dim=-1).values[:, -1:]
    above, equal = log_probs > last, log_probs == last
    is_chosen = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    ids = is_chosen.nonzero()[:, 1].reshape(len(log_probs), k)  # in the order of the ids
    order = log_probs.gather(-1, ids).argsort(dim=-1, descending=True, stable=True)
    excluded_probability = log_probs.exp().masked_fill(is_chosen, 0.0).sum(-1)
    return ids.gather(-1, order), excluded_probability
