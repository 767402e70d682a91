"""Which actions are allowed at s_t, for agents that mask (sb3-contrib's MaskablePPO)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from tokenenv.wrappers.checks import (
    check_kind,
    check_same_actions,
    check_token_actions,
    layers,
    mdp_of,
)
from tokenenv.wrappers.mask_rules import MaskRules, checked_positions, checked_tokens

__all__ = ["ActionMask", "MaskSource"]


class MaskSource:
    """The masks of N episodes over the actions that an environment takes, remembered per state.

    Args:
        env: the environment below the mask: actions are token ids, or the k likeliest tokens.
        **rules: the arguments of `MaskRules`.

    Raises:
        ValueError: a rule can't be used, or the actions below are something else.
    """

    def __init__(self, env: Any, **rules: Any) -> None:
        self.k = next((layer.k for layer in layers(env) if hasattr(layer, "action_tokens")), None)
        space = getattr(env, "single_action_space", None) or env.action_space
        if self.k is None or space != gym.spaces.Discrete(self.k):
            check_token_actions("ActionMask", env)
        check_same_actions("ActionMask", env)
        self.rules = MaskRules(mdp_of(env), num_candidates=self.k, **rules)
        self._of: np.ndarray | None = None
        self._masks = np.zeros((0, 0), dtype=bool)

    def __call__(self, env: Any) -> np.ndarray:
        """(N, V) or (N, k) bool at the states that `env` is in; all true where no episode runs."""
        mdp = mdp_of(env)
        state = np.column_stack([mdp.episodes.observations, mdp.episodes.running])
        if self._of is None or not np.array_equal(state, self._of):
            self._of, self._masks = state, self._compute(mdp)
        return self._masks.copy()

    def _compute(self, mdp: Any) -> np.ndarray:
        if self.k is None:
            return self.rules.masks(mdp)
        candidates, _ = mdp.reference_decoder.top_tokens(mdp.episodes.observations, self.k)
        return np.take_along_axis(self.rules.masks(mdp, candidates), candidates, axis=1)


class ActionMask(gym.Wrapper, RecordConstructorArgs):
    """Say which actions are allowed: `action_masks()`, and `info["action_mask"]`.

    `action_masks()` gives (V,) bool for sb3-contrib's `MaskablePPO`. `info["action_mask"]`, at
    resets and steps, is the same as int8, as `action_space.sample(mask)` takes it. Nothing is
    refused: an agent that ignores the mask acts as if there were none.

    Rules, the strongest first; a weaker one selects among the tokens that stronger ones leave:

    1. `forbid`: tokens that never come. Only this one can rule EOS out everywhere.
    2. `force`: at this position of the response, this token and no other.
    3. `grammar`: continuations that the task's grammar allows; EOS where a text may end. A text
       that has left the grammar is not judged any more.
    4. `top_p`: of those left, the fewest likeliest tokens of the reference that hold a share of
       at least p. At the last position it spares EOS, so that a response can stop by itself.

    A mask is never empty. Where the episode has ended it is all ones: no action counts there.

    On `TopKActions` the masks are over its k actions, (k,); a token that is not among the k can't
    be allowed, so `force` is refused there and a grammar that allows none of the k is ignored.

    Args:
        env: an environment over a token MDP, its actions unchanged or those of `TopKActions`.
        top_p: 0 < p ≤ 1.
        forbid: token ids.
        force: response position → token id; −1 is the last position.
        grammar: follow the grammar of the task (`reviews` and `exact` have one). Each new state
            costs one call per token of the vocabulary.

    Raises:
        ValueError: a rule can't be used, or could leave nothing.
    """

    def __init__(
        self,
        env: gym.Env,
        top_p: float = 1.0,
        forbid: Iterable[int] = (),
        force: Mapping[int, int] | None = None,
        grammar: bool = False,
    ) -> None:
        check_kind("ActionMask", env, vector=False)
        rules: dict[str, Any] = {
            "top_p": top_p,
            "forbid": checked_tokens(forbid),
            "force": checked_positions(force),
            "grammar": grammar,
        }
        RecordConstructorArgs.__init__(self, **rules)
        gym.Wrapper.__init__(self, env)
        self._source = MaskSource(env, **rules)

    def action_masks(self) -> np.ndarray:
        """(V,) bool, or (k,) on `TopKActions`: the actions that are allowed at s_t."""
        return self._source(self)[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; `info` gains the mask."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "action_mask": self.action_masks().astype(np.int8)}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step; `info` gains the mask of the state that was reached."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, "action_mask": self.action_masks().astype(np.int8)}
        return observation, reward, terminated, truncated, info
