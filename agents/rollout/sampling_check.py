"""Whether a rollout's log-probabilities are those of a full forward of the policy that sampled it.

Before the first step of an update every ratio π/π_old is 1, and the approximate KL (Schulman's k3,
http://joschu.net/blog/kl-approx.html) of the tokens that the present weights have sampled is 0, up
to rounding. Where it is not, sampling and update disagree about the policy.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from agents.policy import LMActorCriticPolicy
from tokenenv.episodes import NO_TOKEN
from tokenenv.models import pack

__all__ = ["KL_OF_ROUNDING", "SamplingCheck"]

KL_OF_ROUNDING = 1e-4
"""Approximate KL, in nats per token, that rounding does not reach in float32."""

_KL_IN_HALF_PRECISION = 1e-2
"""The same for weights in bfloat16 or float16."""

_TOKENS = 256
"""Approximate number of tokens that are evaluated again: whole rows of some environments."""


class SamplingCheck:
    """Stores some environments' steps of a rollout and evaluates them again at its end.

    Tokens that an earlier policy sampled, which an update may use as well, are never among them.
    The forward is in float32, whatever the update's precision is.

    Attributes:
        approx_kl: of the last rollout's sample; NaN before the first.
    """

    def __init__(self) -> None:
        self.approx_kl = math.nan
        self._has_warned = False
        self._rollouts = 0
        self._rows = np.zeros(0, dtype=np.int64)
        self._steps: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def state_dict(self) -> dict[str, Any]:
        """Which environments come next, and whether the warning was given; JSON."""
        return {"rollouts": self._rollouts, "has_warned": self._has_warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._rollouts, self._has_warned = state["rollouts"], state["has_warned"]

    def begin(self, num_envs: int, num_steps: int) -> None:
        """Choose other environments than in the last rollout, enough for `_TOKENS` tokens."""
        count = min(num_envs, -(-_TOKENS // max(1, num_steps)))
        self._rows = (self._rollouts * count + np.arange(count)) % num_envs
        self._rollouts += 1
        self._steps = []

    def note(
        self, observations: np.ndarray, actions: Any, log_probs: np.ndarray, starts: np.ndarray
    ) -> None:
        """Store one step of all N environments, and where an episode starts.

        (Ends would not suffice: an episode that is lost to a restart has none.)
        """
        rows = self._rows
        row_actions = np.asarray(actions).reshape(-1)[rows]
        self._steps.append((observations[rows], row_actions, log_probs[rows], starts[rows]))

    def end(self, policy: LMActorCriticPolicy) -> None:
        """Evaluate the stored steps by a full forward; warn, once, where they differ."""
        if not self._steps:
            return
        observations, actions, log_probs, starts = map(np.stack, zip(*self._steps, strict=True))
        prefixes, responses, old_log_probs = [], [], []
        for env in range(len(self._rows)):
            bounds = [0, *(np.flatnonzero(starts[1:, env]) + 1).tolist(), len(starts)]
            for start, end in itertools.pairwise(bounds):
                first = observations[start, env]
                prefixes.append(first[first != NO_TOKEN])
                responses.append(actions[start:end, env].astype(np.int64))
                old_log_probs.append(log_probs[start:end, env])
        packed = pack(prefixes, responses, policy.device)
        taken = torch.as_tensor(np.concatenate(responses), device=policy.device)
        with torch.no_grad():
            scored = policy.log_probs_of(packed, taken).double().cpu().numpy()
        log_ratio = scored - np.concatenate(old_log_probs)
        self.approx_kl = float(np.mean(np.expm1(log_ratio) - log_ratio))
        self._steps = []
        self._warn(policy)

    def _warn(self, policy: LMActorCriticPolicy) -> None:
        is_wide = policy.actor.dtype in (torch.float32, torch.float64)
        limit = KL_OF_ROUNDING if is_wide else _KL_IN_HALF_PRECISION
        if self._has_warned or self.approx_kl <= limit:
            return
        self._has_warned = True
        warnings.warn(
            f"before any step of the update, the approximate KL between the policy that sampled "
            f"and the same weights in a full forward is {self.approx_kl:.2g} nats per token; "
            f"rounding makes {limit:g} at the most. The update's ratios are wrong by as much. "
            "Either weights were written in the middle of a rollout (do it between rollouts, or "
            "call policy.drop_caches() after it), or something changed the log-probabilities or "
            f"the observations on their way, or {type(policy.actor).__name__} is decoded wrongly, "
            "which its check when it was loaded should have noticed: please report it.",
            UserWarning,
            stacklevel=2,
        )
