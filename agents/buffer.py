"""`EpisodeRolloutBuffer`: each token stored once, whole sequences yielded, rewards scored together.

Stable-Baselines3's own buffer keeps an observation per time step and shuffles single steps, so that
one forward of a sequence serves one action. This one yields `PackedSequences`: one forward of a
sequence serves all of its actions, and every per-token tensor is 1-D without padding.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.deferred_scoring import RewardBinding, score_segments
from agents.episode_records import EpisodeRecord
from agents.packing import minibatch_indices, pack
from agents.segments import Segment, StepLog
from tokenenv.credit import generalized_advantages

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

    Attributes:
        records: the episodes that finished in the last rollout (deferred scoring only).
        lengths: (S,) steps of each of the S segments in the update.
        advantages: (n,) float32, like `returns`, `values`, `rewards` and `log_probs`: of the n
            tokens in the update, segment after segment.
        actions: (n,) int32.

    Raises:
        ValueError: `cut` is unknown.
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
    ) -> None:
        if cut not in CUTS:
            raise ValueError(f"cut={cut!r} is unknown: choose one of {', '.join(map(repr, CUTS))}.")
        self.cut = cut
        self.binding: RewardBinding | None = None
        self._open: list[Segment | None] = [None] * n_envs
        super().__init__(
            buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs
        )

    def bind(self, binding: RewardBinding) -> None:
        """Tell the buffer where rewards come from.

        Raises:
            ValueError: with `cut="carry"` a rollout could end without one finished episode.
        """
        if self.cut == "carry" and self.buffer_size < binding.max_new_tokens:
            raise ValueError(
                f"cut='carry' needs n_steps ≥ max_new_tokens = {binding.max_new_tokens}, got "
                f"n_steps={self.buffer_size}: in fewer steps no episode might finish. Raise "
                "n_steps, or use cut='bootstrap'."
            )
        self.binding = binding

    # Filling -------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Make room for a rollout; episodes that are still open stay."""
        self._log = StepLog(self.buffer_size, self.n_envs)
        self._keep([])
        self.records: list[EpisodeRecord] = []
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
            obs: (N, P+T) token ids; read where an episode starts and nowhere else.
            action: (N, 1) token ids.
            reward: (N,) as `RLHFCallback` left it.
            episode_start: (N,) whether the episode starts with this step.
            value: (N, 1).
            log_prob: (N,).

        Raises:
            RuntimeError: the buffer is not bound.
        """
        log, started = self._log, np.asarray(episode_start, dtype=bool)
        log.add(obs, started, self._bound().max_prompt_tokens, self._open)
        log.actions[log.pos] = np.asarray(action).reshape(self.n_envs)
        log.rewards[log.pos] = reward
        log.values[log.pos] = value.detach().cpu().numpy().reshape(self.n_envs)
        log.log_probs[log.pos] = log_prob.detach().cpu().numpy()
        log.pos += 1
        self.pos, self.full = log.pos, log.pos == self.buffer_size

    def _bound(self) -> RewardBinding:
        if self.binding is None:
            raise RuntimeError(
                "EpisodeRolloutBuffer is not bound to an environment: pass callback=RLHFCallback() "
                "to learn() (TokenPPO does it by itself), which binds it and completes the rewards."
            )
        return self.binding

    # Rewards, advantages -------------------------------------------------------------------------

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Close the rollout: cut it into segments, score them where that is deferred, compute GAE.

        Args:
            last_values: (N, 1) V of the observations after the last step.
            dones: (N,) whether the last step ended an episode.

        Raises:
            RuntimeError: the buffer is not bound.
            ValueError: the reward function pays in a way that `cut` does not allow.
        """
        binding, carries = self._bound(), self.cut == "carry"
        segments = self._log.cut(
            np.asarray(dones, dtype=bool), self._open, carries, float(binding.kl_coef())
        )
        used = [s for s in segments if s.ended] if carries else segments
        if binding.scorer is not None and used:
            self.records = score_segments(used, binding.scorer, binding.kl_shaping, carries)
        for segment in segments:
            self._open[segment.env] = None if segment.ended else segment
        self._log = StepLog(0, self.n_envs)  # the update needs the memory
        self._keep(used)
        self._compute_advantages(used, last_values.detach().cpu().numpy().reshape(self.n_envs))

    def _keep(self, segments: Sequence[Segment]) -> None:
        """Store the segments of the update, one array per quantity instead of many small ones."""
        self.lengths = np.array([len(s.actions) for s in segments], dtype=np.int32)
        self.offsets = _offsets(self.lengths)
        self.actions = _joined([s.actions for s in segments], np.int32)
        self.rewards = _joined([s.rewards for s in segments], np.float32)
        self.values = _joined([s.values for s in segments], np.float32)
        self.log_probs = _joined([s.log_probs for s in segments], np.float32)
        self.advantages = self.returns = np.zeros(0, dtype=np.float32)
        prefixes = [s.prefix for s in segments]
        self._prefixes = _joined(prefixes, np.int32)
        self._prefix_offsets = _offsets([len(prefix) for prefix in prefixes])

    def _compute_advantages(self, segments: Sequence[Segment], last_values: np.ndarray) -> None:
        columns = np.arange(int(self.lengths.max(initial=1)))
        is_step = columns[None, :] < self.lengths[:, None]
        rewards, values = (np.zeros(is_step.shape) for _ in range(2))
        rewards[is_step], values[is_step] = self.rewards, self.values
        bootstrap = np.array([0.0 if s.ended else last_values[s.env] for s in segments])
        found = generalized_advantages(
            rewards, values, self.lengths, bootstrap, self.gamma, self.gae_lambda
        )
        self.advantages = found[is_step].astype(np.float32)
        self.returns = self.advantages + self.values

    @property
    def num_tokens(self) -> int:
        """Response tokens that the update will see."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        arrays = (
            self.lengths,
            self.offsets,
            self.actions,
            self.rewards,
            self.values,
            self.log_probs,
            self.advantages,
            self.returns,
            self._prefixes,
            self._prefix_offsets,
        )
        still_open = sum(segment.nbytes for segment in self._open if segment is not None)
        return sum(array.nbytes for array in arrays) + self._log.nbytes + still_open

    # Minibatches ---------------------------------------------------------------------------------

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches of whole sequences with about `batch_size` tokens each, in a random order.

        Args:
            batch_size: tokens per minibatch; None for one minibatch.

        Yields:
            SB3's samples; `observations` is the `PackedSequences` of the states, everything else
            1-D in their order.
        """
        assert self.full, "the rollout is not complete"
        rng = np.random.default_rng(np.random.randint(2**31))  # SB3 seeds numpy's global generator
        for chosen in minibatch_indices(self.lengths, batch_size, rng):
            yield self._minibatch(chosen)

    def _minibatch(self, chosen: np.ndarray) -> RolloutBufferSamples:
        picked = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen])
        actions = self.actions[picked].astype(np.int64)
        bounds = self._prefix_offsets
        packed = pack(
            [self._prefixes[bounds[i] : bounds[i + 1]].astype(np.int64) for i in chosen],
            np.split(actions, np.cumsum(self.lengths[chosen])[:-1]),
            self.device,
        )
        return RolloutBufferSamples(
            observations=packed,  # type: ignore[arg-type]
            actions=self.to_torch(actions),
            old_values=self.to_torch(self.values[picked]),
            old_log_prob=self.to_torch(self.log_probs[picked]),
            advantages=self.to_torch(self.advantages[picked]),
            returns=self.to_torch(self.returns[picked]),
        )


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(S + 1,) where each of S parts begins in the array that joins them, and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
