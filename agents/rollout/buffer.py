"""`EpisodeRolloutBuffer`: each token stored once, whole sequences yielded, rewards scored together.

Stable-Baselines3's buffer stores an observation per time step and shuffles single steps, so that
one forward of a sequence serves one action. This one yields `PackedSequences`: one forward of a
sequence serves all of its actions, and every per-token tensor is 1-D without padding.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv

from agents.rollout.groups import NO_COMPLETE_GROUP_MESSAGE, GroupQueue, check_groups
from agents.rollout.metrics import EpisodeRecord
from agents.rollout.numbers import refuse_non_finite_rollout
from agents.rollout.rewards import (
    ReferencedSamples,
    RewardBinding,
    pay_full_kl,
    score_segments,
    store_old_log_probs,
    store_values,
)
from agents.rollout.segments import (
    RolloutStorage,
    Segment,
    concatenate,
    offsets,
    segments_of_state,
    segments_state,
)
from agents.settings import DEFAULT_VINE_SAMPLES, check_estimator, check_rollout_length
from tokenenv.data import Prompt
from tokenenv.episodes import split_observation
from tokenenv.maths import GROUPED, length_adaptive_lambdas, token_advantages, whiten_rewards
from tokenenv.models import minibatch_indices, pack
from tokenenv.rewards import NonFiniteReward
from tokenenv.settings import ResolvedSettings

__all__ = ["CUTS", "EpisodeRolloutBuffer", "RewardBinding"]

CUTS = ("bootstrap", "carry")
"""What happens to an episode that the end of a rollout cuts: see `EpisodeRolloutBuffer`."""


class EpisodeRolloutBuffer(RolloutBuffer):
    """A rollout buffer of episodes, for SB3's `rollout_buffer_class`.

    Args:
        buffer_size: steps per environment and rollout.
        observation_space: of the token MDP.
        action_space: of the token MDP.
        device: where minibatches go.
        gae_lambda: λ.
        gamma: γ.
        n_envs: N.
        cut: what happens to an episode that the end of a rollout cuts. `"bootstrap"`: its steps are
            used at once, with the critic's value of the next state; the rest follows in the next
            update with the earlier tokens as context. `"carry"`: its steps wait, with the
            log-probabilities they were sampled with, for the update in which the episode finishes.
        advantage_estimator: one of `tokenenv.maths.advantages.ADVANTAGE_ESTIMATORS`. `"gae"` uses
            `gae_lambda`; `"monte-carlo"` and `"td"` are GAE with λ = 1 and λ = 0. `"rloo"`,
            `"group"` and `"reinforce"` use no critic: all tokens of a response share the sum of its
            rewards, score and KL together, less a baseline. Nor does `"vine"`: instead of V it has
            the mean return of `vine_samples` continuations of every state of the finished episodes,
            which the policy samples when the rollout ends, before the update. They need
            `cut="carry"` and γ = 1.
        group_size: responses to the same prompt that `"rloo"` and `"group"` compare; the others
            ignore it. Finished episodes wait, as carried ones do, until the other episodes of the
            environment's group are finished; its `group_size` must be the same.
        whiten_rewards: scale the rewards of all tokens of the update to standard deviation 1 about
            their mean before advantages are computed; see `tokenenv.maths.whiten_rewards` for the
            effect on long responses. Not for the estimators without a critic.
        gae_lambda_value: λ of the returns, which the critic learns; None: that of the advantages.
            With 1 its targets are free of its own errors, whatever λ the advantages have
            (decoupled GAE of VC-PPO, https://arxiv.org/abs/2503.01491).
        gae_lambda_alpha: α of λ = 1 − 1/(α·l), within [0, 1], for responses of l tokens, instead of
            `gae_lambda`; needs `"gae"` and `cut="carry"`. At the paper's α = 0.05 λ is 0 up to
            l = 20: see `tokenenv.maths.advantages.length_adaptive_lambdas`.
        vine_samples: K of `"vine"`; None: 9. Their tokens are no steps of the environment; a
            response of n tokens takes K·n·(n + 1)/2 of them, if continuations end where it does.

    Attributes:
        records: the episodes that finished in the last rollout (deferred scoring only).
        lengths: (S,) steps of each of the S segments in the update.
        advantages: (n,) float32, like `returns`, `values`, `rewards` (as they were paid) and
            `log_probs`: of the n tokens in the update, segment after segment; for `"rloo"` and
            `"group"`, group after group. Without a critic, `returns` are the rewards to come; for
            `"vine"`, `values` are the means of continuations.
        actions: (n,) int32.
        ref_log_probs: (n,) float32 log π_ref of the tokens, or (0,) where the update needs none.
        context_lengths: (S,) int32 response tokens before each segment, which are not trained on.
        ended: (S,) bool, whether the episode ended with the segment.
        origins: S prompts as they were given, with messages and columns; None for a text alone.
        following_values: (S,) float32 V of the state after each segment; 0 where it ended.
        kl_coefs: (n,) float32 β under which each token was sampled.
        old_log_probs: (n,) float32, what ratios divide by: `log_probs`, or the same policy's as the
            update computes them where it computes in another precision.
        kl_coef: β of the last rollout.
        vine_tokens: tokens of the continuations that the last rollout's end sampled.
        reward_fault: what was said of a reward that is not finite, where the rollout was closed all
            the same; None without one.

    Raises:
        ValueError: `cut` or the estimator is unknown, or they can't be combined.
        RuntimeError: a step is added before `RLHFCallback` has bound the buffer.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        cut: str = "bootstrap",
        advantage_estimator: str = "gae",
        group_size: int = 1,
        whiten_rewards: bool = False,
        gae_lambda_value: float | None = None,
        gae_lambda_alpha: float | None = None,
        vine_samples: int | None = None,
    ) -> None:
        if cut not in CUTS:
            raise ValueError(f"cut={cut!r} is unknown: choose one of {', '.join(map(repr, CUTS))}.")
        lambdas = gae_lambda_value, gae_lambda_alpha
        check_estimator(
            advantage_estimator, group_size, cut, gamma, whiten_rewards, *lambdas, vine_samples
        )
        self.cut, self.advantage_estimator = cut, advantage_estimator
        self.group_size, self.whiten_rewards = group_size, whiten_rewards
        self.gae_lambda_value, self.gae_lambda_alpha = lambdas
        self.vine_samples = DEFAULT_VINE_SAMPLES if vine_samples is None else vine_samples
        self._groups: GroupQueue | None = None
        self._next_groups: Sequence[int | None] = [None] * n_envs
        self._next_origins: Sequence[Prompt | None] = [None] * n_envs
        self._last_dones: np.ndarray | None = None
        self.binding: RewardBinding | None = None
        self._bound_env: weakref.ref[VecEnv] | None = None
        self._open: list[Segment | None] = [None] * n_envs
        self._storage = RolloutStorage(0, n_envs)
        super().__init__(
            buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs
        )

    def bind(
        self,
        binding: RewardBinding,
        episode_starts: np.ndarray | None = None,
        env: VecEnv | None = None,
    ) -> None:
        """Set the environment that rewards come from.

        Open and waiting episodes of another environment, or of one that was reset since, are
        dropped: they were paid by other rules, and nothing will finish them.

        Args:
            binding: of the environment that training is about to use.
            episode_starts: (N,) bool, SB3's for the first step: the same array object that closed
                the last rollout where training goes on, a new one, all true, after a reset.
            env: the environment itself.
        """
        known, self.binding = self.binding, binding
        known_env = self._bound_env and self._bound_env()
        self._bound_env = None if env is None else weakref.ref(env.unwrapped)
        is_another = known_env is not None and env is not None and env.unwrapped is not known_env
        was_reset = (
            episode_starts is not None
            and episode_starts is not self._last_dones
            and bool(episode_starts.all())
        )
        if was_reset or is_another or (known is not None and known.penalty != binding.penalty):
            self._open = [None] * self.n_envs
            self._groups = None
        if self._groups is None and self.advantage_estimator in GROUPED:
            self._groups = GroupQueue(self.group_size, binding.shares_groups)

    def check_environment(self, env: VecEnv, settings: ResolvedSettings) -> None:
        """Check that the environment's rollouts provide the episodes that an update needs.

        Args:
            env: that training is about to use.
            settings: of the token MDP behind it.

        Raises:
            ValueError: with `cut="carry"` a rollout could end without one finished episode; or,
                where groups are compared, its `group_size` is another, or rollouts are too short
                for a group.
        """
        if self.advantage_estimator in GROUPED:
            check_groups(self.group_size, self.buffer_size, env, settings)
        check_rollout_length(self.cut, self.buffer_size, settings.max_new_tokens)

    @property
    def is_between_rollouts(self) -> bool:
        """Whether no rollout is under way: all that is stored are open and waiting episodes."""
        return not self._storage.pos

    def state_dict(self) -> dict[str, Any]:
        """The episodes that later rollouts go on with, as JSON values and arrays.

        Raises:
            RuntimeError: a rollout is under way, whose steps are no part of it.
        """
        if not self.is_between_rollouts:
            raise RuntimeError("a rollout is under way: its state can be taken at its end.")
        return {
            "num_envs": self.n_envs,
            "open": segments_state([segment for segment in self._open if segment is not None]),
            "waiting": None if self._groups is None else self._groups.state_dict(),
            "shares_groups": self._groups is not None and self._groups.is_shared,
        }

    def load_state_dict(self, state: Mapping[str, Any], episode_starts: np.ndarray) -> None:
        """Go on with the episodes that `state_dict` gave.

        Args:
            state: of a buffer of the same settings, whose environment goes on as well.
            episode_starts: (N,) bool, the very array that is SB3's for the next step: see `bind`.

        Raises:
            ValueError: it is of another number of environments.
        """
        if state["num_envs"] != self.n_envs:
            raise ValueError(
                f"the stored rollouts are of {state['num_envs']} environments, and here are "
                f"{self.n_envs}: make as many."
            )
        self._open = [None] * self.n_envs
        for segment in segments_of_state(state["open"]):
            self._open[segment.env] = segment
        if state["waiting"] is not None:
            self._groups = GroupQueue(self.group_size, state["shares_groups"])
            self._groups.load_state_dict(state["waiting"])
        self._last_dones = episode_starts

    # Filling -------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Make room for a rollout; episodes that are still open stay.

        They are dropped where the last rollout was never closed (`learn` was interrupted): its
        steps are lost, so nothing continues the rollout before it.
        """
        if self._storage.pos:
            self._open = [None] * self.n_envs
        binding = self.binding
        # Deferred scoring finds them at the rollout's end, for all tokens at once.
        keeps_ref = (
            binding is not None and binding.penalty.keeps_ref_log_probs and not binding.scorer
        )
        self._storage = RolloutStorage(self.buffer_size, self.n_envs, keeps_ref)
        self._keep([])
        self.kl_coef, self.vine_tokens = 0.0, 0
        self.records: list[EpisodeRecord] = []
        self.reward_fault: str | None = None
        self.pos, self.full, self.generator_ready = 0, False, False

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
    ) -> None:
        """Add one step of all environments.

        Args:
            obs: (N, P+T) token ids; used only where an episode starts.
            action: (N, 1) token ids.
            reward: (N,) as `RLHFCallback` left it.
            episode_start: (N,) whether the episode starts with this step.
            value: (N, 1).
            log_prob: (N,).

        Raises:
            RuntimeError: the buffer is not bound.
        """
        storage, started = self._storage, np.asarray(episode_start, dtype=bool)
        prompt_columns = self._bound().max_prompt_tokens
        storage.add(obs, started, prompt_columns, self._open, self._next_groups, self._next_origins)
        storage.actions[storage.pos] = np.asarray(action).reshape(self.n_envs)  # (N, 1) → (N,)
        storage.rewards[storage.pos] = reward
        values = value.detach().cpu().numpy()
        storage.values[storage.pos] = values.reshape(self.n_envs)  # (N, 1) → (N,)
        storage.log_probs[storage.pos] = log_prob.detach().cpu().numpy()
        storage.pos += 1
        self.pos, self.full = storage.pos, storage.pos == self.buffer_size

    def store_ref_log_probs(self, ref_log_probs: np.ndarray) -> None:
        """Store (N,) log π_ref of the step that `add` adds next; `RLHFCallback` has them first."""
        self._storage.ref_log_probs[self._storage.pos] = ref_log_probs

    def store_groups(self, groups: Sequence[int | None]) -> None:
        """Store the groups of the N episodes of the step that `add` adds next."""
        self._next_groups = groups

    def store_origins(self, origins: Sequence[Prompt | None]) -> None:
        """Store the prompts of the N episodes of the step that `add` adds next, as were given."""
        self._next_origins = origins

    def cut_episodes(self, envs: Sequence[int], values: np.ndarray) -> None:
        """End the episodes under way in some environments, which are lost to a restart.

        With `cut="bootstrap"` their steps are used all the same, with the critic's value of the
        state that they were lost in; with `cut="carry"`, where nothing will finish them, they are
        dropped.

        Args:
            envs: the environments' indices.
            values: V of those states, one for each; unused between rollouts.
        """
        for env, value in zip(envs, values, strict=True):
            if self._storage.pos:
                self._storage.cut_episode(env, float(value))
            else:
                self._open[env] = None

    def lacks_steps(self, observations: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
        """Which episodes under way can't be used, as steps of them are lost.

        With `cut="carry"` an update gets whole episodes; with `cut="bootstrap"` lost steps are
        needed as context only, which the observation provides.

        Args:
            observations: (N, P+T) token ids that the next step is sampled in.
            episode_starts: (N,) whether an episode starts with it.

        Returns:
            (N,) bool; all false inside of a rollout, all steps of which are stored.
        """
        lacking = np.zeros(self.n_envs, dtype=bool)
        if self.cut == "carry" and not self._storage.pos:
            for env in np.flatnonzero(~np.asarray(episode_starts, dtype=bool)).tolist():
                state = split_observation(observations[env], self._bound().max_prompt_tokens)
                left = self._open[env]
                lacking[env] = left is None or not left.is_at(*state)
        return lacking

    def _bound(self) -> RewardBinding:
        if self.binding is None:
            raise RuntimeError(
                "EpisodeRolloutBuffer is not bound to an environment: pass callback=RLHFCallback() "
                "to learn() (TokenPPO does it by itself), which binds it and completes the rewards."
            )
        return self.binding

    # Rewards, advantages -------------------------------------------------------------------------

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Close the rollout: cut it, score it where that is deferred, compute advantages.

        Episodes are scored in the rollout that finishes them, whether or not they wait after that.

        Args:
            last_values: (N, 1) V of the observations after the last step; unused where the binding
                gives the values.
            dones: (N,) whether the last step ended an episode.

        Raises:
            RuntimeError: the buffer is not bound.
            ValueError: the reward function pays in a way that `cut` does not allow.
        """
        binding, carries = self._bound(), self.cut == "carry"
        self._last_dones = dones
        self.kl_coef = float(binding.kl_coef())
        segments = self._storage.cut(
            np.asarray(dones, dtype=bool), self._open, carries, self.kl_coef
        )
        if binding.values is not None:
            store_values(segments, self.device, binding.values, follows=not carries)
        if binding.penalty.pays_full and segments:
            assert binding.reference is not None
            pay_full_kl(segments, binding.actor, binding.reference)
        used = [s for s in segments if s.ended] if carries else segments
        if binding.scorer is not None and used:
            self._score(used)
        if carries:  # by the next update other weights may have sampled the rest
            store_old_log_probs(segments, self.device, binding.update_log_probs())
        for segment in segments:
            self._open[segment.env] = None if segment.ended else segment
        if self._groups is not None:
            used = self._groups.complete(used, [s for s in self._open if s is not None])
        if self.advantage_estimator == "vine":
            assert binding.vine is not None
            self.vine_tokens = binding.vine.store_values(used, self.kl_coef)
        self._storage = RolloutStorage(0, self.n_envs)  # the update needs the memory
        self._keep(used)
        values = last_values.detach().cpu().numpy().reshape(self.n_envs)  # (N, 1) → (N,)
        self._compute_advantages(used, values)

    def _score(self, segments: Sequence[Segment]) -> None:
        """Deferred scoring; where a reward is not finite and that may be, all of them are NaN."""
        binding, carries = self._bound(), self.cut == "carry"
        assert binding.scorer is not None
        try:
            self.records = score_segments(
                segments, binding.scorer, binding.kl_shaping, carries, binding.penalty
            )
        except NonFiniteReward as error:
            if not binding.skips_non_finite:
                raise
            self.reward_fault = str(error)
            for segment in segments:
                if segment.ended:
                    segment.rewards[-1] = np.nan

    def _keep(self, segments: Sequence[Segment]) -> None:
        """Store the segments of the update, one array per quantity instead of many small ones."""
        self.lengths = np.array([len(s.actions) for s in segments], dtype=np.int32)  # (S,)
        self.offsets = offsets(self.lengths)  # (S + 1,)
        self.actions = concatenate([s.actions for s in segments], np.int32)  # (n,), as the next are
        self.rewards = concatenate([s.rewards for s in segments], np.float32)
        self.values = concatenate([s.values for s in segments], np.float32)
        self.log_probs = concatenate([s.log_probs for s in segments], np.float32)
        self.ref_log_probs = concatenate([s.ref_log_probs for s in segments], np.float32)
        self.old_log_probs = self.log_probs
        if any(len(s.old_log_probs) for s in segments):
            old = [s.old_log_probs if len(s.old_log_probs) else s.log_probs for s in segments]
            self.old_log_probs = concatenate(old, np.float32)
        self.advantages = self.returns = np.zeros(0, dtype=np.float32)
        prefixes = [s.prefix for s in segments]
        self._prefixes = concatenate(prefixes, np.int32)  # (tokens before all segments,)
        self._prefix_offsets = offsets([len(prefix) for prefix in prefixes])  # (S + 1,)
        self.context_lengths = np.array([len(s.context) for s in segments], dtype=np.int32)  # (S,)
        self.ended = np.array([s.ended for s in segments], dtype=bool)  # (S,)
        self.origins = [s.origin for s in segments]  # S
        self.kl_coefs = concatenate([s.kl_coefs for s in segments], np.float32)  # (n,)
        self.following_values = np.zeros(len(segments), dtype=np.float32)  # (S,)

    def prefix(self, segment: int) -> np.ndarray:
        """The (tokens,) int32 ids that a segment of the update follows: prompt and context."""
        start, end = self._prefix_offsets[segment : segment + 2]
        return self._prefixes[start:end]

    def _compute_advantages(self, segments: Sequence[Segment], last_values: np.ndarray) -> None:
        following = np.array([s.following_value(last_values) for s in segments])  # (S,)
        self.following_values = following.astype(np.float32)
        gae_lambda: float | np.ndarray = self.gae_lambda
        if self.gae_lambda_alpha is not None:
            gae_lambda = length_adaptive_lambdas(self.lengths, self.gae_lambda_alpha)
        value_lambda = self._bound().value_lambda()
        self.advantages, self.returns = token_advantages(
            self.advantage_estimator,
            whiten_rewards(self.rewards) if self.whiten_rewards else self.rewards,
            self.values,
            self.lengths,
            following,
            self.gamma,
            gae_lambda,
            self.group_size,
            self.gae_lambda_value if value_lambda is None else value_lambda,
        )
        if not self._bound().skips_non_finite:
            refuse_non_finite_rollout(self)

    @property
    def num_tokens(self) -> int:
        """Response tokens that the update will see."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, including what waits for a later update."""
        arrays = (
            self.lengths,
            self.offsets,
            self.actions,
            self.rewards,
            self.values,
            self.log_probs,
            self.ref_log_probs,
            self.advantages,
            self.returns,
            self._prefixes,
            self._prefix_offsets,
            self.context_lengths,
            self.ended,
            self.kl_coefs,
            self.following_values,
            *([] if self.old_log_probs is self.log_probs else [self.old_log_probs]),
        )
        still_open = sum(segment.nbytes for segment in self._open if segment is not None)
        waiting = 0 if self._groups is None else self._groups.nbytes
        return sum(array.nbytes for array in arrays) + self._storage.nbytes + still_open + waiting

    # Minibatches ---------------------------------------------------------------------------------

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches of whole sequences with about `batch_size` tokens each, in a random order.

        Args:
            batch_size: tokens per minibatch; None for one minibatch.

        Yields:
            SB3's samples; `observations` is the `PackedSequences` of the states, everything else
            1-D in their order.

        Raises:
            RuntimeError: the rollout completed no group, so that there is nothing to yield.
        """
        assert self.full, "the rollout is not complete"
        if not self.num_tokens:
            raise RuntimeError(NO_COMPLETE_GROUP_MESSAGE.format(self.group_size))
        for segments in minibatch_indices(self.lengths, batch_size, self._order()):
            yield self.minibatch(segments)

    def shares(self, count: int) -> list[np.ndarray]:
        """The segments in `count` minibatches of like sizes, in a random order; some may be empty.

        For ranks that make their minibatches together: all have as many.
        """
        assert self.full, "the rollout is not complete"
        return list(minibatch_indices(self.lengths, None, self._order(), count))

    def _order(self) -> np.random.Generator:
        return np.random.default_rng(np.random.randint(2**31))  # SB3 seeds numpy's global generator

    def all_tokens(self) -> RolloutBufferSamples:
        """All tokens of the update in one minibatch, in the order of the buffer."""
        return self.minibatch(np.arange(len(self.lengths)))

    def nothing(self) -> RolloutBufferSamples:
        """One token that was never sampled: what a rank without a sequence passes, and counts 0."""
        one = self.to_torch(np.zeros(1, dtype=np.float32))
        packed = pack([np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)], self.device)
        samples = RolloutBufferSamples(packed, one.long(), *[one] * 4)  # type: ignore[arg-type]
        return ReferencedSamples(*samples, one) if self._has_references else samples  # type: ignore

    @property
    def _has_references(self) -> bool:
        """Whether the update needs log π_ref of every token."""
        return self.binding is not None and self.binding.penalty.keeps_ref_log_probs

    def minibatch(self, segments: np.ndarray) -> RolloutBufferSamples:
        """The minibatch of some segments: m tokens of s sequences.

        Args:
            segments: (s,) indices of segments, in the order in which their tokens come.

        Returns:
            `ReferencedSamples` where the update needs log π_ref, else SB3's samples.
        """
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in segments]
        tokens = np.concatenate(spans)  # (m,) indices of the buffer's n tokens
        actions = self.actions[tokens].astype(np.int64)  # (m,)
        packed = pack(
            [self.prefix(i).astype(np.int64) for i in segments],
            np.split(actions, np.cumsum(self.lengths[segments])[:-1]),  # s arrays of m in all
            self.device,
        )
        samples = RolloutBufferSamples(
            observations=packed,  # type: ignore[arg-type]
            actions=self.to_torch(actions),
            old_values=self.to_torch(self.values[tokens]),
            old_log_prob=self.to_torch(self.old_log_probs[tokens]),
            advantages=self.to_torch(self.advantages[tokens]),
            returns=self.to_torch(self.returns[tokens]),
        )
        if not len(self.ref_log_probs):
            return samples
        return ReferencedSamples(*samples, self.to_torch(self.ref_log_probs[tokens]))  # type: ignore
