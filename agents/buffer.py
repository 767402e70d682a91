"""`EpisodeRolloutBuffer`: every token stored once, whole sequences yielded, rewards scored in one batch.

Stable-Baselines3's own buffer keeps an observation per time step and shuffles single steps, so that one
forward of a sequence serves one action. This one yields `PackedSequences`: one forward of a sequence
serves all of its actions, and every per-token tensor is 1-D without padding.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.episode_records import EpisodeRecord
from agents.packing import minibatch_indices, pack
from tokenenv.credit import generalized_advantages
from tokenenv.episodes import NO_TOKEN
from tokenenv.rewards import Episode
from tokenenv.scoring import EpisodeScorer
from tokenenv.shaping import reference_half

__all__ = ["CUTS", "EpisodeRolloutBuffer", "RewardBinding"]

CUTS = ("bootstrap", "carry")
"""What happens to an episode that the end of a rollout cuts: see `EpisodeRolloutBuffer`."""


@dataclass(frozen=True, slots=True)
class RewardBinding:
    """What the buffer must know of the environment; `RLHFCallback` makes it at the start of training.

    Attributes:
        scorer: scores whole rollouts where scoring is deferred; None where `step` pays.
        kl_shaping: the environment's.
        kl_coef: a function that gives β, which the environment owns.
        max_new_tokens: T.
    """

    scorer: EpisodeScorer | None
    kl_shaping: str
    kl_coef: Any
    max_new_tokens: int


@dataclass(slots=True)
class _Segment:
    """The steps of one episode inside one rollout (or, carried, of several).

    Attributes:
        env: the environment's index.
        prompt: the tokens that the episode started from.
        earlier: response tokens of rollouts before, which serve as context only.
        actions, rewards, values, log_probs: of the steps.
        ended: whether the episode ended with the last of them.
        kl_before, ref_log_prob_before: sums over `earlier`.
    """

    env: int
    prompt: np.ndarray
    earlier: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray
    ended: bool = False
    kl_before: float = 0.0
    ref_log_prob_before: float = 0.0

    @property
    def prefix(self) -> np.ndarray:
        """The tokens before the first of the steps."""
        return np.concatenate([self.prompt, self.earlier])

    @property
    def response(self) -> np.ndarray:
        """The whole response so far."""
        return np.concatenate([self.earlier, self.actions])


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
        cut: what happens to an episode that the end of a rollout cuts. `"bootstrap"`: its steps are used at
            once, with the critic's value of the next state; the rest follows in the next update with
            the earlier tokens as context. `"carry"`: its steps wait, with the log-probabilities they
            were sampled with, for the update in which the episode finishes.

    Attributes:
        records: the episodes that finished in the last rollout (deferred scoring only).

    Raises:
        ValueError: `cut` is unknown.
        RuntimeError: rewards are needed before `RLHFCallback` has bound the buffer.
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
        self.records: list[EpisodeRecord] = []
        self._open: list[_Segment | None] = [None] * n_envs
        self._packed: list[_Segment] = []
        self._rng = np.random.default_rng()
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
                f"cut='carry' needs n_steps ≥ max_new_tokens = {binding.max_new_tokens}, got n_steps="
                f"{self.buffer_size}: in fewer steps no episode might finish. Raise n_steps, or use "
                "cut='bootstrap'."
            )
        self.binding = binding

    # Filling -------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Make room for a rollout; episodes that are still open stay."""
        shape = (self.buffer_size, self.n_envs)
        self._actions = np.zeros(shape, dtype=np.int32)
        self._rewards, self._values, self._log_probs = (
            np.zeros(shape, dtype=np.float32) for _ in range(3)
        )
        self._starts: list[
            tuple[int, int, np.ndarray]
        ] = []  # (step, env, tokens of the observation)
        self._packed = []
        self.records = []
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
        """
        started = np.asarray(episode_start, dtype=bool)
        if self.pos == 0:  # an environment whose episode nobody saw start: take it from here
            started = started | np.array([segment is None for segment in self._open])
        for env in np.flatnonzero(started).tolist():
            self._starts.append((self.pos, env, obs[env][obs[env] != NO_TOKEN].astype(np.int32)))
        self._actions[self.pos] = np.asarray(action).reshape(self.n_envs)
        self._rewards[self.pos] = reward
        self._values[self.pos] = value.detach().cpu().numpy().reshape(self.n_envs)
        self._log_probs[self.pos] = log_prob.detach().cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    # Rewards, advantages -------------------------------------------------------------------------

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Close the rollout: cut it into segments, score them where scoring is deferred, compute GAE.

        Args:
            last_values: (N, 1) V of the observations after the last step.
            dones: (N,) whether the last step ended an episode.

        Raises:
            RuntimeError: the buffer is not bound.
        """
        if self.binding is None:
            raise RuntimeError(
                "EpisodeRolloutBuffer is not bound to an environment: pass callback=RLHFCallback() to "
                "learn() (TokenPPO does it by itself), which binds it and completes the rewards."
            )
        segments = self._cut(np.asarray(dones, dtype=bool))
        if self.cut == "carry":
            self._packed = [s for s in segments if s.ended]
        else:
            self._packed = segments
        if self.binding.scorer is not None:
            self._score(self._packed)
        for segment in segments:
            waits = not segment.ended
            self._open[segment.env] = segment if waits else None
        last = last_values.detach().cpu().numpy().reshape(self.n_envs)
        self._compute_advantages(last)
        self._free_rollout()

    def _cut(self, dones: np.ndarray) -> list[_Segment]:
        """The segments of the rollout, each joined with what its episode left open before."""
        starts: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(self.n_envs)]
        for step, env, tokens in self._starts:
            starts[env].append((step, tokens))
        segments: list[_Segment] = []
        for env in range(self.n_envs):
            bounds = [step for step, _ in starts[env]] + [self.pos]
            own = [self._continued(env, bounds[0])] if bounds[0] > 0 else []
            for index, (step, prompt) in enumerate(starts[env]):
                earlier = np.zeros(0, dtype=np.int32)
                own.append(self._steps(env, step, bounds[index + 1], prompt, earlier))
            for segment in own[:-1]:
                segment.ended = True
            own[-1].ended = bool(dones[env])
            segments += own
        return segments

    def _steps(
        self, env: int, start: int, end: int, prompt: np.ndarray, earlier: np.ndarray
    ) -> _Segment:
        part = slice(start, end)
        return _Segment(
            env,
            prompt,
            earlier,
            self._actions[part, env].copy(),
            self._rewards[part, env].copy(),
            self._values[part, env].copy(),
            self._log_probs[part, env].copy(),
        )

    def _continued(self, env: int, end: int) -> _Segment:
        """The first steps of an environment whose episode began in an earlier rollout."""
        before = self._open[env]
        assert before is not None
        if self.cut == "bootstrap":
            segment = self._steps(env, 0, end, before.prompt, before.response)
            segment.kl_before = before.kl_before
            segment.ref_log_prob_before = before.ref_log_prob_before
            return segment
        segment = self._steps(env, 0, end, before.prompt, before.earlier)
        for name in ("actions", "rewards", "values", "log_probs"):
            joined = np.concatenate([getattr(before, name), getattr(segment, name)])
            setattr(segment, name, joined)
        return segment

    def _score(self, segments: list[_Segment]) -> None:
        """Add the environment's half of the rewards to segments, and record the episodes that ended."""
        assert self.binding is not None and self.binding.scorer is not None
        if not segments:
            return
        scorer, kl_coef = self.binding.scorer, float(self.binding.kl_coef())
        eos = scorer.reference.language_model.eos_token_ids
        episodes = [
            Episode(
                s.prompt.astype(np.int64),
                s.response.astype(np.int64),
                s.ended and int(s.actions[-1]) in eos,
            )
            for s in segments
        ]
        for segment, found in zip(segments, scorer.ref_log_probs(episodes), strict=True):
            own = found[len(segment.earlier) :]
            if self.binding.kl_shaping == "k1":
                segment.rewards += reference_half(own, kl_coef)
            segment.kl_before += float((segment.log_probs - own).sum())
            segment.ref_log_prob_before += float(own.sum())
        ended = [i for i, segment in enumerate(segments) if segment.ended]
        if not ended:
            return
        scores = scorer.score([episodes[i] for i in ended])
        if scores.is_per_token and self.cut == "bootstrap":
            raise ValueError(
                "the reward function returned rewards per token, which reach the tokens of an episode "
                "only if all of them are in one update: use rollout_buffer_kwargs={'cut': 'carry'}."
            )
        for row, i in enumerate(ended):
            segment = segments[i]
            segment.rewards += scores.token_rewards[row][len(segment.earlier) :]
            gold = None if scores.gold_reward is None else float(scores.gold_reward[row])
            self.records.append(
                EpisodeRecord(
                    segment.kl_before,
                    segment.ref_log_prob_before,
                    float(scores.rm_score[row]),
                    float(scores.score[row]),
                    gold,
                    len(segment.response),
                    episodes[i].stopped,
                )
            )

    def _compute_advantages(self, last_values: np.ndarray) -> None:
        segments = self._packed
        lengths = np.array([len(s.actions) for s in segments])
        rewards, values = (np.zeros((len(segments), int(lengths.max(initial=1)))) for _ in range(2))
        for row, segment in enumerate(segments):
            rewards[row, : lengths[row]] = segment.rewards
            values[row, : lengths[row]] = segment.values
        bootstrap = np.array([0.0 if s.ended else last_values[s.env] for s in segments])
        found = generalized_advantages(
            rewards, values, lengths, bootstrap, self.gamma, self.gae_lambda
        )
        is_step = np.arange(rewards.shape[1])[None, :] < lengths[:, None]
        self.lengths = lengths
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.advantages = found[is_step].astype(np.float32)
        self.values = values[is_step].astype(np.float32)
        self.returns = self.advantages + self.values
        self.rewards = rewards[is_step].astype(np.float32)
        self.log_probs = np.concatenate([s.log_probs for s in segments])

    def _free_rollout(self) -> None:
        """The segments hold copies: give the step-wise arrays back before the update needs memory."""
        self._actions = np.zeros((0, self.n_envs), dtype=np.int32)
        self._rewards = self._values = self._log_probs = np.zeros((0, self.n_envs), np.float32)
        self._starts = []

    @property
    def num_tokens(self) -> int:
        """Response tokens that the update will see."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored, after a rollout."""
        per_token = (self.advantages, self.values, self.returns, self.rewards, self.log_probs)
        segments = sum(
            a.nbytes
            for s in self._packed
            for a in (s.prompt, s.earlier, s.actions, s.rewards, s.values, s.log_probs)
        )
        return sum(a.nbytes for a in per_token) + segments

    # Minibatches ---------------------------------------------------------------------------------

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches of whole sequences with about `batch_size` tokens each, in a random order.

        Yields:
            SB3's samples; `observations` is the `PackedSequences` of the states, everything else 1-D
            in their order.
        """
        assert self.full, "the rollout is not complete"
        rng = np.random.default_rng(np.random.randint(2**31))  # SB3 seeds numpy's global generator
        for chosen in minibatch_indices(self.lengths, batch_size, rng):
            yield self._minibatch(chosen)

    def _minibatch(self, chosen: np.ndarray) -> RolloutBufferSamples:
        segments = [self._packed[i] for i in chosen]
        picked = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen])
        actions = [s.actions.astype(np.int64) for s in segments]
        packed = pack([s.prefix.astype(np.int64) for s in segments], actions, self.device)
        return RolloutBufferSamples(
            observations=packed,  # type: ignore[arg-type]
            actions=self.to_torch(np.concatenate(actions)),
            old_values=self.to_torch(self.values[picked]),
            old_log_prob=self.to_torch(self.log_probs[picked]),
            advantages=self.to_torch(self.advantages[picked]),
            returns=self.to_torch(self.returns[picked]),
        )
