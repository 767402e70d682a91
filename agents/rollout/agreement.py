"""Checks before and after every action that agent and environment are at the same states.

SB3 acts on the last observation that it stored. Anything that moves the environment in between
makes that observation stale: an evaluation or a reset of the training environment, an interrupted
`learn`, another environment. Episodes would then contain tokens that were sampled in other contexts
than those they are trained in. So rows that differ are restarted, as by a reset.

Axes: `N` environments, `P` prompt columns, `T` response columns.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.hooks import RemovableHandle

from agents.rollout.buffer import EpisodeRolloutBuffer
from agents.rollout.call_stack import is_running
from agents.rollout.rows import of_rows, replaced, restart_rows, restarts_rows
from agents.vec_env import TokenVecEnv
from tokenenv.episodes import NO_TOKEN
from tokenenv.settings import ResolvedSettings

__all__ = ["Agreement"]

logger = logging.getLogger(__name__)

_States = list[tuple[Any, np.ndarray]]
_STATES_OF: weakref.WeakKeyDictionary[VecEnv, _States] = weakref.WeakKeyDictionary()
"""For environments whose observations are no token ids: the last observations of an agent, with
the (N, P+T) states that they show."""

_WARNED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models for which the warning about restarted rows was logged."""

_HOOKS: weakref.WeakKeyDictionary[torch.nn.Module, RemovableHandle] = weakref.WeakKeyDictionary()
"""Hooks on policies that are acting."""


class Agreement:
    """Keeps SB3's last observation and the environment at the same states, or refuses.

    Args:
        model: an SB3 on-policy algorithm.
        env: what it trains on.
        settings: of the token MDP behind it.
        on_restart: called with the rows that started afresh.

    Attributes:
        reads_tokens: whether the agent's observations are those of the token MDP.
    """

    def __init__(
        self,
        model: Any,
        env: VecEnv,
        settings: ResolvedSettings,
        on_restart: Callable[[list[int]], None],
    ) -> None:
        self._model, self._env, self._on_restart = model, env, on_restart
        self._prompt_columns = settings.max_prompt_tokens
        self._is_deferred = settings.scoring == "deferred"
        space: Any = env.observation_space
        self.reads_tokens = (
            isinstance(space, spaces.Box)
            and space.shape == (self._prompt_columns + settings.max_new_tokens,)
            and np.issubdtype(space.dtype, np.integer)
        )
        self._picks_tokens = (
            self.reads_tokens
            and isinstance(env.action_space, spaces.Discrete)
            and int(env.action_space.n) == int(space.high.max()) + 1
        )
        self._acted_on: Any = None

    # Before an action ----------------------------------------------------------------------------

    def begin_rollout(self) -> None:
        """Check now, and from now on before every action of SB3."""
        self.end_rollout()
        self._acted_on = None
        self.restore()
        before, policy = _BeforeActing(self), self._model.policy
        _HOOKS[policy] = policy.register_forward_pre_hook(before, with_kwargs=True)

    def end_rollout(self) -> None:
        """Stop checking, and remove the hook of another one whose `learn` was interrupted."""
        hook = _HOOKS.pop(self._model.policy, None)
        if hook is not None:
            hook.remove()

    def before_acting(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """New arguments for the policy where rows were restarted, else None."""
        model = self._model
        if not is_running(model, "collect_rollouts"):
            self.end_rollout()  # an interrupted `learn` left it behind
            return None
        if model._last_obs is self._acted_on:  # a callback calls the policy
            return None
        rows = self.restore()
        self._acted_on = model._last_obs
        if self._is_deferred:
            self._env.env_method("leave_next_score_to_buffer")
        if not rows:
            return None
        masks = kwargs.get("action_masks")
        if masks is not None:
            # In place: MaskablePPO gives its buffer the array that it gave the policy.
            np.copyto(masks, np.stack(self._env.env_method("action_masks")))
        return (obs_as_tensor(model._last_obs, model.device), *args[1:]), kwargs

    def restore(self) -> list[int]:
        """Restart the rows that differ from the agent's last observation; returns them.

        Raises:
            ValueError: a wrapper shows other token ids than the environment's.
        """
        rows = self._differing()
        if rows:
            self._restart(rows)
        if not self.reads_tokens:
            self._remember(self._model._last_obs)
        elif rows and self._differing():
            raise ValueError(
                "the observations are not the environment's states, not even after a reset: a "
                "wrapper changes or delays them. Token ids that were changed are other tokens, and "
                "the policy would be trained in contexts that the environment never saw. Take "
                "observation wrappers off."
            )
        return rows

    def _differing(self) -> list[int]:
        """Rows whose state is not the one that the agent is about to act on.

        Rows whose episode the buffer can't use, as an interrupted `learn` lost steps of it, are
        included.
        """
        expected = self._model._last_obs if self.reads_tokens else self._remembered()
        if expected is None:
            return []
        if len(expected) != self._env.num_envs:  # a loaded model's, of another environment
            return list(range(self._env.num_envs))
        base = self._env.unwrapped
        if isinstance(base, TokenVecEnv):
            is_there = base.inner.is_at(expected)
        else:
            is_there = (expected == np.concatenate(base.get_attr("states"))).all(axis=1)
        buffer = getattr(self._model, "rollout_buffer", None)
        if isinstance(buffer, EpisodeRolloutBuffer):
            is_there &= ~buffer.lacks_steps(expected, self._model._last_episode_starts)
        return np.flatnonzero(~is_there).tolist()

    def _remembered(self) -> np.ndarray | None:
        """The states that the agent's last observation shows; None where they are unknown."""
        known = _STATES_OF.get(self._env.unwrapped, [])
        states_shown = [states for obs, states in known if obs is self._model._last_obs]
        return states_shown[0] if states_shown else None

    def _remember(self, observations: Any) -> None:
        base = self._env.unwrapped
        states = np.concatenate(_per_environment(base, "states"))
        _STATES_OF[base] = [*_STATES_OF.get(base, [])[-1:], (observations, states)]

    # Starting afresh -----------------------------------------------------------------------------

    def _restart(self, rows: list[int]) -> None:
        """Begin new episodes in these rows, or in all where a wrapper keeps a history of each."""
        model, env = self._model, self._env
        self._warn(rows)
        self._cut_episodes(rows)
        if len(rows) == env.num_envs or not restarts_rows(env):
            rows = list(range(env.num_envs))
            observations, starts = env.reset(), np.ones(env.num_envs, dtype=bool)
        else:
            observations = replaced(model._last_obs, rows, restart_rows(env, rows))
            starts = np.array(model._last_episode_starts, dtype=bool)
            starts[rows] = True
        model._last_obs, model._last_episode_starts = observations, starts
        self._on_restart(rows)

    def _warn(self, rows: list[int]) -> None:
        if self._model in _WARNED:
            return
        _WARNED.add(self._model)
        logger.warning(
            "%d of %d environments are not where the agent left its episodes (an evaluation on the "
            "training environment, your call of reset or step, an interrupted learn?): they start "
            "afresh, and the episodes under way there are lost. Evaluate in another environment. "
            "This is said once; wherever it happens again to this model, it is mended in the same "
            "way.",
            len(rows),
            self._env.num_envs,
        )

    def _cut_episodes(self, rows: list[int]) -> None:
        """Keep the steps that were taken in these rows, with V of the state that follows them."""
        model = self._model
        buffer = getattr(model, "rollout_buffer", None)
        if not isinstance(buffer, RolloutBuffer):
            return
        # A loaded model may have had fewer rows: those beyond have no episode to end.
        under_way = [row for row in rows if not model._last_episode_starts[row : row + 1].all()]
        values = np.zeros(len(under_way), dtype=np.float32)
        is_inside = 0 < buffer.pos < buffer.buffer_size
        if under_way and is_inside:
            left = obs_as_tensor(of_rows(model._last_obs, under_way), model.device)
            with torch.no_grad():
                values = model.policy.predict_values(left).cpu().numpy().reshape(-1)
        if isinstance(buffer, EpisodeRolloutBuffer):
            buffer.cut_episodes(under_way, values)
        elif under_way and is_inside:
            # As SB3 does where a time limit truncates: the row's next step starts an episode.
            buffer.rewards[buffer.pos - 1, under_way] += buffer.gamma * values

    # After an action -----------------------------------------------------------------------------

    def check_step(
        self, actions: np.ndarray, observations: Any, dones: np.ndarray, infos: Sequence[Any]
    ) -> None:
        """Check that a step led the environment where the actions lead.

        Args:
            actions: (N,) or (N, 1) as the agent chose them.
            observations: (N, P+T) that followed.
            dones: (N,) bool.
            infos: N, with `terminal_observation` where an episode ended.

        Raises:
            ValueError: a sampled token is not what the next or terminal observation holds.
        """
        if not self.reads_tokens:
            self._remember(observations)
            return
        acted_on, flat_actions = np.asarray(self._model._last_obs), np.asarray(actions).reshape(-1)
        following = observations
        ended = np.flatnonzero(dones)
        if len(ended):
            following = observations.copy()
            following[ended] = [infos[row]["terminal_observation"] for row in ended.tolist()]
        width = acted_on.shape[1]
        places = np.flatnonzero(following != acted_on)
        rows, columns = np.divmod(places, width)
        new, before = following.reshape(-1)[places], acted_on.reshape(-1)
        is_one_each = len(rows) == len(acted_on) and bool((np.diff(rows) == 1).all())
        if (
            is_one_each
            and (columns >= self._prompt_columns).all()
            and (before[places] == NO_TOKEN).all()
            and ((columns == self._prompt_columns) | (before[places - 1] != NO_TOKEN)).all()
            and (not self._picks_tokens or np.array_equal(new, flat_actions))
        ):
            return
        self._refuse(acted_on, flat_actions, following)

    def _refuse(self, acted_on: np.ndarray, actions: np.ndarray, following: np.ndarray) -> None:
        """Raise ValueError about the first row that is not where its action leads."""
        expected = acted_on.copy()
        lengths = (acted_on[:, self._prompt_columns :] != NO_TOKEN).sum(axis=1)
        columns = np.minimum(self._prompt_columns + lengths, acted_on.shape[1] - 1)
        rows = np.arange(len(acted_on))
        expected[rows, columns] = actions if self._picks_tokens else following[rows, columns]
        wrong = np.flatnonzero((expected != following).any(axis=1))
        row = int(wrong[0]) if len(wrong) else 0
        column, token = int(columns[row]), int(following[row, columns[row]])
        rest = np.delete(expected[row] != following[row], column).any()
        if rest:
            what = "the observation that followed does not go on from the one before"
        else:
            what = f"the observation that followed holds {token} in its place"
        raise ValueError(
            f"the agent chose {int(actions[row])} in environment {row}, but {what}: a wrapper "
            "changes what is acted or seen (StickyAction, a repeated, delayed or mapped action, an "
            "observation transform?), or a callback moved the environment before the policy was "
            "asked. The log-probabilities would be those of other tokens than were written, so the "
            "KL and every gradient would be wrong. Take that wrapper off."
        )


class _BeforeActing:
    """The hook on a policy; copies and pickles of the policy get one that does nothing."""

    def __init__(self, agreement: Agreement | None = None) -> None:
        self.agreement = agreement

    def __call__(self, _policy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self.agreement is None else self.agreement.before_acting(args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_BeforeActing, ())


def _per_environment(base: VecEnv, name: str) -> list[np.ndarray]:
    """An attribute of each environment; the rows of a `TokenVecEnv` are in one."""
    values = base.get_attr(name)
    return values[:1] if isinstance(base, TokenVecEnv) else values
