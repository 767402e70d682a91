"""Wrappers that give standard agents observations, actions and masks they can use.

For single environments here; for `TokenVectorEnv` in `tokenenv.wrappers.vector`, under the same
names. All of them read the state from the environment at the bottom, with the decoder that computes
the rewards, so the reference still runs once per state.

`fork` copies an environment and the wrappers around it, single or vector, these or Gymnasium's.
"""

from __future__ import annotations

from tokenenv.wrappers.action_mask import ActionMask
from tokenenv.wrappers.forking import fork
from tokenenv.wrappers.hidden_state import HiddenStateObservation
from tokenenv.wrappers.log_prob_shaping import LogProbShaping
from tokenenv.wrappers.top_k import TopKActions

__all__ = ["ActionMask", "HiddenStateObservation", "LogProbShaping", "TopKActions", "fork"]
