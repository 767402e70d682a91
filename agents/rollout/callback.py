"""`RLHFCallback`: pays the agent's part of the KL, binds the buffer, moves β, and logs.

SB3 calls `on_step` after `env.step` and before the buffer's `add`, with `rewards`, `log_probs` and
`infos` in its locals; so this is the one place where `−β·log π(a_t|s_t)` enters the reward, for
PPO and A2C, with SB3's buffers and with ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.policy import LMActorCriticPolicy, store_rebuild_kwargs
from agents.rollout.agreement import Agreement
from agents.rollout.buffer import EpisodeRolloutBuffer
from agents.rollout.call_stack import entropy_weight
from agents.rollout.compatibility import (
    check_buffer_and_policy,
    check_policy,
    env_settings,
    refuse_changed_rewards,
    refuse_negative_schedules,
    refuse_normalizers,
    refuse_other_widths,
    refuse_recorders,
    refuse_time_limits,
)
from agents.rollout.kl_schedule import KLSchedule
from agents.rollout.metrics import EpisodeRecord, rlhf_metrics
from agents.rollout.rewards import RewardBinding
from agents.rollout.sampling_check import SamplingCheck
from agents.rollout.spread import ScoreSpread
from agents.rollout.vine import VineValues
from agents.scaling import ALONE, Ranks
from agents.settings import (
    DEFAULT_DUAL_RATE,
    DEFAULT_HORIZON,
    resolve_kl,
)
from agents.vec_env import TokenVecEnv
from tokenenv.data import Prompt
from tokenenv.maths import GROUPED, actor_half, kl_penalties, reference_half
from tokenenv.models import PackedSequences
from tokenenv.rewards import build_reference, build_scorer

__all__ = ["RLHFCallback", "has_rlhf_callback"]

_OF_THE_KL = ("kl_coef", "kl_coef_start", "kl_coef_was_multiplied")
"""Attributes of a model that `KLSchedule` sets."""


class RLHFCallback(BaseCallback):
    """What RLHF adds to an SB3 algorithm.

    At the start of training it checks that environment and policy fit and binds the buffer to the
    scorer; at every step it completes the reward; at the end of every rollout it logs `rlhf/`
    metrics and `time/tokens_per_second`, over the episodes that finished in it, and lets the KL
    controller move β in the environment for the next. SB3's own `rollout/ep_rew_mean` is the mean
    of whole returns, score − β·KL, over the last episodes (`stats_window_size`), with and without a
    monitor around the environment, which alone would count what `step` paid: half of the KL, or
    nothing. The callback warns, once, where the log-probabilities
    that the present weights were sampled with are not those of a full forward: where the first
    approximate KL of an update would exceed rounding. It also warns once where the first scores are
    all the same.

    Args:
        verbose: SB3's.
        kl_estimator: one of `KL_ESTIMATORS`, of the penalty in the reward; None: the model's
            where it is a `TokenPPO`, else k1. All but k1 need an environment with
            `kl_shaping="none"`; full needs an `EpisodeRolloutBuffer`.
        kl_controller: one of `KL_CONTROLLERS`; None: the model's, else fixed.
        kl_target: KL per response, in nats, that the controller steers to.
        kl_horizon: of the adaptive controller: episodes in which β changes by a fifth at the most.
        kl_dual_rate: of the dual controller: step in log β at a KL of twice the target.

    Where several ranks train the model (`TokenPPO.join`), records and metrics are those of all.

    A controller's β is kept in the model's attribute `kl_coef`, which SB3 saves: a loaded model's
    controller goes on from there. β's one owner is the environment all the same.

    Attributes:
        records: the episodes that finished in the last rollout; one that was under way before
            training began, so that its first tokens were not seen, is left out.
        metrics: of the last rollout, as logged under `rlhf/`. Whatever the estimator, `kl` is the
            sum of k1 over a response; `kl_coef` is β of the rollout, before it moved, and
            `objective` is J at that β, which moves where a controller moves it. With the estimator
            `"vine"`, `vine_tokens` are those of the continuations, and `vine_tokens_total` all of
            the model's life, which its attribute `num_vine_tokens` keeps.
        num_episodes: how many episodes there have been in `records` so far, of all rollouts.

    Raises:
        ValueError: at the start of training, where environment and policy do not fit: normalisers
            in front of the policy, temperatures or tokenizers that differ, deferred scoring with a
            buffer that can't score, a KL penalty that would be paid twice or not at all, or that
            contradicts `TokenPPO`'s; or where a schedule would be below 0 in an overshooting last
            rollout. At a step, where a `TimeLimit` cut an episode, or a wrapper
            changed what was acted or seen.
    """

    ROWS = ("kl", "ref_log_prob")
    """Parts of the state that are of this process's environments, row by row."""

    def __init__(
        self,
        verbose: int = 0,
        kl_estimator: str | None = None,
        kl_controller: str | None = None,
        kl_target: float | None = None,
        kl_horizon: float = DEFAULT_HORIZON,
        kl_dual_rate: float = DEFAULT_DUAL_RATE,
    ) -> None:
        super().__init__(verbose)
        self._kl_settings = (kl_estimator, kl_controller, kl_target, kl_horizon, kl_dual_rate)
        resolve_kl(None, *self._kl_settings)  # raises where no model could use them
        self.records: list[EpisodeRecord] = []
        self.metrics: dict[str, float] = {}
        self.num_episodes = 0
        self._sampling = SamplingCheck()

    # Start ---------------------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        env = self.training_env
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                f"{type(self.model).__name__} keeps no log-probabilities of its actions, so the KL "
                "can't be completed: RLHFCallback is for PPO, A2C and other on-policy algorithms."
            )
        refuse_negative_schedules(self.model)
        refuse_normalizers(env)
        self.settings = env_settings(env)
        policy = self.model.policy
        buffer = getattr(self.model, "rollout_buffer", None)
        if isinstance(policy, LMActorCriticPolicy) or isinstance(buffer, EpisodeRolloutBuffer):
            refuse_other_widths(env, self.settings)  # an MLP accepts any width
        if isinstance(policy, LMActorCriticPolicy):
            check_policy(policy, self.settings)
            policy.entropy_weight = entropy_weight(self.model)
            store_rebuild_kwargs(self.model)
        self.is_deferred = self.settings.scoring == "deferred"
        if self.is_deferred:
            refuse_recorders(env)
        self.penalty, controller = resolve_kl(self.model, *self._kl_settings)
        check_buffer_and_policy(self.penalty, self.model)
        self._kl_schedule = KLSchedule(self.model, env, controller)
        self._kl_schedule.begin(self.penalty, self.settings.kl_shaping)
        starts = getattr(self.model, "_last_episode_starts", None)
        self._bind_buffer(env, starts)
        self._groups = self._reset_groups(range(env.num_envs))
        self._origins = self._reset_origins(range(env.num_envs))
        under_way = np.zeros(env.num_envs, dtype=bool)
        if starts is not None and len(starts) == env.num_envs:  # else another environment's
            under_way = ~starts.astype(bool)
        self._kl = np.where(under_way, np.nan, 0.0)
        self._ref_log_prob = np.zeros(env.num_envs)
        self._agreement = Agreement(self.model, env, self.settings, self._restarted)
        compares_groups = getattr(buffer, "advantage_estimator", None) in GROUPED
        self._spread = ScoreSpread(compares_groups)
        self._rollout_ended = time.perf_counter()

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the next rollout goes on from, as JSON values and arrays."""
        model: Any = self.model
        return {
            "kl": self._kl.copy(),
            "ref_log_prob": self._ref_log_prob.copy(),
            "num_episodes": self.num_episodes,
            "kl_coef": {name: getattr(model, name, None) for name in _OF_THE_KL},
            "sampling": self._sampling.state_dict(),
            "spread": self._spread.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called; after the start of training."""
        self._kl, self._ref_log_prob = np.array(state["kl"]), np.array(state["ref_log_prob"])
        self.num_episodes = state["num_episodes"]
        for name, value in state["kl_coef"].items():
            if value is not None:
                setattr(self.model, name, value)
        self._sampling.load_state_dict(state["sampling"])
        self._spread.load_state_dict(state["spread"])

    def _restarted(self, rows: list[int]) -> None:
        """Reset the sums of the episodes that were under way in these rows."""
        self._kl[rows] = self._ref_log_prob[rows] = 0.0
        self._groups.update(self._reset_groups(rows))
        self._origins.update(self._reset_origins(rows))

    def _bind_buffer(self, env: VecEnv, episode_starts: np.ndarray | None) -> None:
        buffer = getattr(self.model, "rollout_buffer", None)
        if not isinstance(buffer, EpisodeRolloutBuffer):
            if self.is_deferred:
                raise ValueError(
                    f"scoring='deferred' pays nothing at a step, and {type(buffer).__name__} can't "
                    "score: pass rollout_buffer_class=EpisodeRolloutBuffer to the algorithm, or "
                    "scoring='step' to the environment."
                )
            return
        settings, penalty = self.settings, self.penalty
        needs_reference = penalty.estimator == "full"
        buffer.check_environment(env, settings)
        buffer.bind(
            RewardBinding(
                scorer=build_scorer(settings) if self.is_deferred else None,
                kl_shaping=settings.kl_shaping,
                kl_coef=self._kl_schedule.kl_coef,
                max_prompt_tokens=settings.max_prompt_tokens,
                max_new_tokens=settings.max_new_tokens,
                penalty=penalty,
                actor=self.model.policy.actor if needs_reference else None,
                reference=build_reference(settings) if needs_reference else None,
                shares_groups=isinstance(env.unwrapped, TokenVecEnv),
                update_log_probs=getattr(self.model, "update_log_probs", lambda: None),
                value_lambda=getattr(self.model, "value_lambda", lambda: None),
                vine=self._vine(buffer),
                values=self._values_of_a_rollout(buffer),
                skips_non_finite=getattr(self.model, "max_skipped_updates", 0) > 0,
            ),
            episode_starts,
            env,
        )

    def _vine(self, buffer: EpisodeRolloutBuffer) -> VineValues | None:
        """What values states by continuations, where the buffer's estimator needs that."""
        if buffer.advantage_estimator != "vine":
            return None
        return VineValues(
            self.model.policy.actor,
            build_scorer(self.settings),
            self.settings.max_new_tokens,
            self.penalty,
            buffer.vine_samples,
        )

    def _values_of_a_rollout(self, buffer: Any) -> Callable[[PackedSequences], torch.Tensor] | None:
        """What gives all values at a rollout's end: where a critic of its own need not sample."""
        policy = self.model.policy
        if not isinstance(policy, LMActorCriticPolicy) or policy.critic is None:
            return None
        if not isinstance(buffer, EpisodeRolloutBuffer):
            return None
        return getattr(self.model, "state_values", policy.state_values)

    def _count_vine_tokens(self) -> None:
        """Count the tokens of continuations, which are no steps of the environment."""
        model: Any = self.model
        buffer = getattr(model, "rollout_buffer", None)
        if isinstance(buffer, EpisodeRolloutBuffer) and buffer.advantage_estimator == "vine":
            tokens = int(sum(self._ranks.gather(buffer.vine_tokens)))
            total = getattr(model, "num_vine_tokens", 0) + tokens
            model.num_vine_tokens = total  # saved with the model, as SB3 saves its attributes
            self.metrics["vine_tokens"] = tokens
            self.metrics["vine_tokens_total"] = total

    def _reset_groups(self, rows: Iterable[int]) -> dict[int, int | None]:
        """Row → the group of the episode that its last reset began; None: of none."""
        reset_infos = self.training_env.unwrapped.reset_infos
        return {row: reset_infos[row].get("group") for row in rows}

    def _reset_origins(self, rows: Iterable[int]) -> dict[int, Prompt | None]:
        """Row → the prompt of the episode that its last reset began, as it was given."""
        reset_infos = self.training_env.unwrapped.reset_infos
        return {row: reset_infos[row].get("origin") for row in rows}

    # Steps ---------------------------------------------------------------------------------------

    def _on_rollout_start(self) -> None:
        self.records = []
        self._log_prob_sum, self._num_steps = 0.0, 0
        self._rollout_kl_coef = self._kl_schedule.kl_coef()
        self._sampling.begin(self.training_env.num_envs, getattr(self.model, "n_steps", 1))
        self._agreement.begin_rollout()
        if isinstance(self.model.policy, LMActorCriticPolicy):
            buffer: Any = getattr(self.model, "rollout_buffer", None)
            comes_later = self._values_of_a_rollout(buffer) is not None
            self.model.policy.begin_rollout((lambda: buffer.full) if comes_later else None)

    def _on_training_end(self) -> None:
        self._agreement.end_rollout()
        if isinstance(self.model.policy, LMActorCriticPolicy):
            self.model.policy.end_rollout()  # a callback may have stopped inside of a rollout

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        dones: np.ndarray = self.locals["dones"]
        log_probs = self.locals["log_probs"].detach().cpu().numpy().astype(np.float64)
        refuse_time_limits(infos, dones, self.settings)
        seen = self.locals
        self._agreement.check_step(seen["actions"], seen["new_obs"], dones, infos)
        if isinstance(self.model.policy, LMActorCriticPolicy):
            observations = np.asarray(self.model._last_obs)
            starts = np.asarray(self.model._last_episode_starts, dtype=bool)
            self._sampling.note(observations, seen["actions"], log_probs, starts)
        paid = self.locals["rewards"].copy()
        if self.is_deferred:
            refuse_changed_rewards(paid, np.zeros(len(infos)))
        if self.settings.kl_shaping == "k1":
            # In place: SB3 hands the same array to the buffer.
            rewards = self.locals["rewards"]
            rewards += actor_half(log_probs, self._step_kl_coefs(infos)).astype(rewards.dtype)
        self._log_prob_sum += float(log_probs.sum())
        self._num_steps += len(log_probs)
        if not self.is_deferred:
            ref_log_probs = np.array([info["ref_logprob"] for info in infos])
            expected = np.zeros(len(infos))
            if self.settings.kl_shaping == "k1":
                expected += reference_half(ref_log_probs, self._step_kl_coefs(infos))
            expected[dones] += [infos[env]["score"] for env in np.flatnonzero(dones)]
            refuse_changed_rewards(paid, expected)
            self._pay_token_penalties(log_probs, ref_log_probs, infos)
            self._kl += log_probs - ref_log_probs
            self._ref_log_prob += ref_log_probs
        ended = np.flatnonzero(dones).tolist()
        for env in ended:
            self._end_episode(env, infos[env])
        self._store_starts(ended)
        return True

    def _store_starts(self, ended: list[int]) -> None:
        """Tell the buffer groups and prompts of this step; the environment is at the next."""
        buffer = getattr(self.model, "rollout_buffer", None)
        if not isinstance(buffer, EpisodeRolloutBuffer):
            return
        buffer.store_origins(list(self._origins.values()))
        self._origins.update(self._reset_origins(ended))
        if self.settings.group_size > 1:
            buffer.store_groups(list(self._groups.values()))
            self._groups.update(self._reset_groups(ended))

    def _pay_token_penalties(
        self, log_probs: np.ndarray, ref_log_probs: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Subtract β·k2 or β·k3 whole, or keep log π_ref for the loss that takes their place."""
        if self.penalty.pays_log_ratio:
            kl_coefs, rewards = self._step_kl_coefs(infos), self.locals["rewards"]
            penalties = kl_penalties(self.penalty.estimator, log_probs, ref_log_probs, kl_coefs)
            rewards -= penalties.astype(rewards.dtype)
        if self.penalty.keeps_ref_log_probs:
            self.model.rollout_buffer.store_ref_log_probs(ref_log_probs)  # type: ignore[attr-defined]

    def _step_kl_coefs(self, infos: list[dict[str, Any]]) -> float | np.ndarray:
        """β of this step, as the environment paid it; where it pays later, of this rollout."""
        if self.is_deferred:
            return self._rollout_kl_coef
        return np.array([info["kl_coef"] for info in infos])

    def _end_episode(self, env: int, info: dict[str, Any]) -> None:
        """Record an episode that has just ended; the buffer records those that it scores.

        Args:
            env: the environment's index.
            info: of the last step. Its `episode`, for SB3's window, gets the whole return.
        """
        # A monitor has seen what `step` paid; SB3's window gets the whole return below, or at the
        # end of the rollout where scoring is deferred.
        monitored = info.pop("episode", None)
        if self.is_deferred:
            return
        if not np.isnan(self._kl[env]):
            kl, ref_log_prob = float(self._kl[env]), float(self._ref_log_prob[env])
            record = EpisodeRecord.from_info(kl, ref_log_prob, info)
            record = replace(record, group=self._groups[env])
            self.records.append(record)
            if self._ranks.count == 1:  # of several, at the end of the rollout
                info["episode"] = {**(monitored or {}), **self._window_entry(record)}
        self._kl[env] = self._ref_log_prob[env] = 0.0

    def _window_entry(self, record: EpisodeRecord) -> dict[str, float]:
        """An episode as SB3's window of returns and lengths, `ep_info_buffer`, keeps it."""
        return {"r": record.whole_return(self._rollout_kl_coef), "l": record.length}

    def multiply_kl_coef(self, factor: float) -> float:
        """Multiply β of the environment for the next rollout; returns it.

        For callbacks behind this one, in their `_on_rollout_end`: the rewards of the rollout are
        final then. It stays within `KL_COEF_RANGE` of where it started, as with a controller.

        Args:
            factor: positive.
        """
        return self._kl_schedule.multiply(factor)

    def take_kl_coef(self, kl_coef: float, was_multiplied: bool) -> None:
        """Let β be that of another rank for the next rollout; when `multiply_kl_coef` may be."""
        self._kl_schedule.take(kl_coef, was_multiplied)

    # Rollout's end -------------------------------------------------------------------------------

    @property
    def _ranks(self) -> Ranks:
        """Those that train the model together."""
        return getattr(self.model, "ranks", ALONE)

    def _join_ranks(self) -> None:
        """Let records and counts be those of all ranks' episodes and steps."""
        ranks = self._ranks
        if ranks.count == 1:
            return
        self.records = [
            replace(record, group=None if (g := record.group) is None else g * ranks.count + rank)
            for rank, records in enumerate(ranks.gather(self.records))
            for record in records
        ]
        sums = ranks.sum(np.array([self._log_prob_sum, self._num_steps]))
        self._log_prob_sum, self._num_steps = float(sums[0]), int(sums[1])

    def _on_rollout_end(self) -> None:
        self._agreement.end_rollout()
        if isinstance(self.model.policy, LMActorCriticPolicy):
            self.model.policy.end_rollout()
            self._sampling.end(self.model.policy)
        if self.is_deferred:
            self.records = self.model.rollout_buffer.records  # type: ignore[attr-defined]
        self._join_ranks()
        self._spread.look(self.records)
        self.num_episodes += len(self.records)
        kl_coef = self._rollout_kl_coef
        self.metrics = rlhf_metrics(self.records, kl_coef)
        # The mean of −log π over sampled tokens estimates the entropy without bias.
        self.metrics["entropy"] = -self._log_prob_sum / self._num_steps
        self._count_vine_tokens()
        for name, value in self.metrics.items():
            self.logger.record(f"rlhf/{name}", value)
        self._kl_schedule.end_rollout(self.metrics.get("kl"), len(self.records))
        now = time.perf_counter()
        self.logger.record("time/tokens_per_second", self._num_steps / (now - self._rollout_ended))
        self._rollout_ended = now
        if self.is_deferred or self._ranks.count > 1:
            assert self.model.ep_info_buffer is not None
            self.model.ep_info_buffer.extend(map(self._window_entry, self.records))


def has_rlhf_callback(callbacks: Iterable[Any]) -> bool:
    """Whether an `RLHFCallback` is among callbacks, or in a list among them."""
    return any(
        has_rlhf_callback(callback.callbacks)
        if isinstance(callback, CallbackList)
        else isinstance(callback, RLHFCallback)
        for callback in callbacks
    )
