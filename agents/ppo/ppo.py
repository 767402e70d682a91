"""`TokenPPO`: SB3's PPO with the defaults and the batch handling that RLHF needs.

The update is that of Schulman et al. 2017, https://arxiv.org/abs/1707.06347, as SB3 computes it;
with whitening, normalised returns, micro-batches, the KL loss and the critic's warm-up off it gives
the same weights as stock PPO.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    Schedule,
)
from stable_baselines3.common.utils import update_learning_rate

from agents.policy import LMActorCriticPolicy, ValueHead, store_rebuild_kwargs
from agents.ppo.checkpointed import CheckpointedPPO
from agents.ppo.last_good import LastGoodPolicy
from agents.ppo.learning_rates import Decay
from agents.ppo.minibatches import tokens_of_ranks
from agents.ppo.parts import check_parts
from agents.ppo.precision import (
    check_update_precision,
    computing_in,
    measured_precision,
    update_log_probs,
)
from agents.ppo.skipping import has_last_good_policy, skip_update
from agents.ppo.update import Update
from agents.rollout import (
    EpisodeRolloutBuffer,
    RLHFCallback,
    check_plain_environment,
    find_env_settings,
    has_rlhf_callback,
)
from agents.settings import (
    DEFAULT_DUAL_RATE,
    DEFAULT_HORIZON,
    DEFAULT_LAMBDA,
    LATER_SETTINGS,
    KLPenalty,
    check_agent,
    kl_controller,
    normalizes_returns,
    value_loss_weight,
)
from tokenenv.maths import KLController
from tokenenv.models import NonFiniteNumbers, PackedSequences

__all__ = ["TokenPPO"]


class TokenPPO(CheckpointedPPO):
    """PPO on whole sequences, with RLHF's defaults; `RLHFCallback` comes with it.

    `TokenPPO.load` reads a checkpoint's folder, without pickle; or SB3's archive, parts of which it
    unpickles, which can run any code: load only archives that you trust. To pass a model on, use
    `policy.save_pretrained`: nothing in its folder is unpickled.

    Args:
        policy: `LMActorCriticPolicy`, or any SB3 policy for other environments.
        env: from `agents.make_vec_env`, or any SB3 environment over the token MDP; with an SB3
            policy and `rollout_buffer_class=RolloutBuffer` any environment at all.
        learning_rate: a number is the rate of the first update and decays linearly, so that it
            would be 0 in the update after the last, wherever it is set (here, in `load`, or as the
            attribute before `_setup_lr_schedule()`); a `Decay` falls in another shape; a schedule
            is taken as it is. No schedule is asked for progress below 0, which SB3 reaches where
            the last rollout overshoots.
        n_steps: steps per environment and rollout.
        batch_size: tokens per minibatch, approximately: sequences are not split.
        n_epochs: passes over a rollout.
        critic_epochs: those of them, the first ones, in which a critic with a trunk of its own
            learns; None: in all. It costs as much as the actor in each.
        max_skipped_updates: updates in a row that may be left out where rewards, loss or gradient
            are not finite: the weights are those of before, `on_skipped` is called, training goes
            on. One more is an error; so is the first at 0. It takes a copy of what is trained.
        gamma: γ; 1: a token late in the response is worth as much as an early one.
        gae_lambda: λ of the estimator `"gae"`; the others have none to choose.
        clip_range: of the ratio.
        clip_range_vf: of the value's change, in deviations of the returns where they are
            normalised; None: no clipping.
        normalize_returns: let the critic learn returns divided by their running deviation, which
            is stored in the policy; V is in units of the reward everywhere else. None: where
            `LMActorCriticPolicy` has a critic that learns; SB3's policies can't store it.
        normalize_advantage: per minibatch, as SB3 does it; but where a minibatch's differ by
            rounding only, they are 0.
        whiten_advantages: once over the whole rollout, instead.
        ent_coef: weight of the entropy bonus, beside advantages of the scale that they have then.
        vf_coef: weight of the value loss; None for 0.1, or 0 where the buffer's
            `advantage_estimator` needs no critic.
        max_grad_norm: gradients are clipped to this norm.
        target_kl: stop the epochs of an update where the approximate KL exceeds 1.5 times this.
        micro_batch_tokens: tokens, padding included, per forward and backward; the gradients of a
            minibatch add up over its micro-batches, so this changes memory and not the result.
        precision: of the update's forward and backward passes: `"float32"`, `"bfloat16"` (autocast;
            weights, logits, softmax and values stay float32), or `"auto"`: the faster of the two,
            measured at the start of the first training, which may differ between machines.
            Sampling stays in float32, and ratios divide by the sampling policy's log-probabilities
            as the update computes them.
        kl_estimator: of the KL penalty: `"k1"` (paid in two halves, the environment's and ours),
            `"k2"`, `"k3"` or `"full"` (ours alone: the environment needs `kl_shaping="none"`).
        use_kl_loss: add β times the estimator's mean over the tokens to the loss, instead of
            subtracting it from the rewards; β is the environment's in that rollout. Where
            advantages are divided by their standard deviation, over the rollout or per minibatch,
            so is β here: whitening does not change the trade-off between score and KL. (The
            estimator `"group"` divides by the deviation in every group, and β is relative to that.)
            Not for k1.
        kl_controller: what moves β between rollouts: `"fixed"` (nothing), `"adaptive"`
            (proportional, Ziegler et al. 2019) or `"dual"` (gradient ascent on the multiplier, in
            log β). Both start from a positive β.
        kl_target: KL per response, in nats, that the controller steers to.
        kl_horizon: of the adaptive controller: episodes in which β changes by a fifth at the most.
        kl_dual_rate: of the dual controller: step in log β at a KL of twice the target.
        critic_warmup: updates at the start of the model's life in which only the critic learns.
        critic_warmup_lambda: λ of the critic's targets in them; None: as later. With 1 and
            `cut="carry"` they are the Monte-Carlo returns of the policy at rest (VC-PPO,
            https://arxiv.org/abs/2503.01491); with `cut="bootstrap"` those of a cut episode end in
            the critic's own value.
        clip_range_high: ratios are clipped to [1 − `clip_range`, 1 + `clip_range_high`] (DAPO,
            https://arxiv.org/abs/2503.14476); None: `clip_range`.
        loss_aggregation: how the terms that move the actor (policy, entropy, KL loss) are summed up
            over a minibatch: `"token"`, their mean over its tokens; `"sequence"`, the mean over its
            sequences of the mean over their tokens; `"constant"`, the mean over its sequences of
            the sum over their tokens, divided by `loss_divisor`. The value loss is a mean over
            tokens always. See `agents.ppo.losses.aggregation_weights`.
        loss_divisor: tokens, of `"constant"`; None: `max_new_tokens`.
        rollout_buffer_class: `EpisodeRolloutBuffer` unless given.
        rollout_buffer_kwargs: of the buffer.
        tensorboard_log: folder, or None.
        policy_kwargs: of the policy; its actor is a copy of the environment's reference unless
            one is given.
        verbose: SB3's.
        seed: of everything.
        device: a torch device or "auto".
        stats_window_size: SB3's.
        _init_setup_model: SB3's.

    Attributes:
        num_updates: updates in the model's life; each is `n_epochs` passes over a rollout.
        num_skipped_updates: those that were left out, which `num_updates` does not count.
        skipped_in_a_row: of those, the ones since the last update that was made.
        update_precision: `"float32"` or `"bfloat16"`: what `precision` came to; a loaded model
            measures `"auto"` again.

    Raises:
        ValueError: a setting can't be used, alone or with the others.
        NonFiniteStep: in `learn`, where the loss of a minibatch or its gradient is not finite; no
            step is taken then; see `max_skipped_updates`. (A `ValueError`.)
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        n_steps: int = 64,
        batch_size: int = 1024,
        n_epochs: int = 4,
        gamma: float = 1.0,
        gae_lambda: float = DEFAULT_LAMBDA,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = 0.2,
        normalize_returns: bool | None = None,
        normalize_advantage: bool = False,
        whiten_advantages: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float | None = None,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        micro_batch_tokens: int | None = None,
        precision: str = "float32",
        kl_estimator: str = "k1",
        use_kl_loss: bool = False,
        kl_controller: str = "fixed",
        kl_target: float | None = None,
        kl_horizon: float = DEFAULT_HORIZON,
        kl_dual_rate: float = DEFAULT_DUAL_RATE,
        critic_warmup: int = 0,
        critic_warmup_lambda: float | None = None,
        critic_epochs: int | None = None,
        max_skipped_updates: int = 0,
        clip_range_high: float | Schedule | None = None,
        loss_aggregation: str = "token",
        loss_divisor: int | None = None,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        stats_window_size: int = 100,
        _init_setup_model: bool = True,
    ) -> None:
        estimator = (rollout_buffer_kwargs or {}).get("advantage_estimator", "gae")
        sb3_settings: dict[str, Any] = {
            "learning_rate": learning_rate,
            "n_steps": n_steps,
            "batch_size": batch_size,
            "n_epochs": n_epochs,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "clip_range": clip_range,
            "clip_range_vf": clip_range_vf,
            "normalize_advantage": normalize_advantage,
            "ent_coef": ent_coef,
            "max_grad_norm": max_grad_norm,
            "target_kl": target_kl,
            "rollout_buffer_kwargs": rollout_buffer_kwargs,
            "policy_kwargs": policy_kwargs,
        }
        self.normalize_returns = normalize_returns
        self.whiten_advantages = whiten_advantages
        self.micro_batch_tokens = micro_batch_tokens
        self.precision = precision
        self.kl_estimator, self.use_kl_loss = kl_estimator, use_kl_loss
        self.kl_controller, self.kl_target = kl_controller, kl_target
        self.kl_horizon, self.kl_dual_rate = kl_horizon, kl_dual_rate
        self.critic_warmup, self.critic_warmup_lambda = critic_warmup, critic_warmup_lambda
        self.critic_epochs, self.clip_range_high = critic_epochs, clip_range_high
        self.max_skipped_updates = max_skipped_updates
        self.loss_aggregation, self.loss_divisor = loss_aggregation, loss_divisor
        check_agent({**sb3_settings, **vars(self), "vf_coef": vf_coef})
        self.num_updates, self.has_met_rounding = 0, False
        self.num_skipped_updates = self.skipped_in_a_row = 0
        with warnings.catch_warnings():
            # It counts steps that do not divide into minibatches; sequences never do, exactly.
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            super().__init__(
                policy,
                env,
                vf_coef=value_loss_weight(vf_coef, estimator),
                rollout_buffer_class=rollout_buffer_class or EpisodeRolloutBuffer,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=_init_setup_model,
                **sb3_settings,
            )

    def _setup_model(self) -> None:
        """Check the settings and build the policy: of the constructor, and of a loaded model."""
        for name, default in LATER_SETTINGS.items():  # an archive of an older version has none
            vars(self).setdefault(name, default)
        check_agent(vars(self))
        check_parts(self)
        settings = find_env_settings(self.env)
        if self.is_plain_ppo:
            check_plain_environment(vars(self))
        if settings is not None and issubclass(self.policy_class, LMActorCriticPolicy):
            self.policy_kwargs = {"actor": settings.reference, **self.policy_kwargs}
        super()._setup_model()
        # Not in the constructor: a loaded model may be given another precision.
        self.update_precision = "float32" if self.precision == "auto" else self.precision
        self.has_measured_precision = False
        check_update_precision(self)
        if isinstance(self.policy, LMActorCriticPolicy):
            store_rebuild_kwargs(self)  # the archive of an untrained model needs them, too

    @property
    def is_plain_ppo(self) -> bool:
        """Whether this is plain PPO: no language model, and an environment that is no token MDP."""
        is_plain = not issubclass(self.policy_class, LMActorCriticPolicy)
        return is_plain and self.env is not None and find_env_settings(self.env) is None

    @property
    def kl_penalty(self) -> KLPenalty:
        """The estimator of the KL penalty, and where it is paid."""
        return KLPenalty(self.kl_estimator, self.use_kl_loss)

    @property
    def kl_control(self) -> KLController:
        """The controller that moves β between rollouts."""
        return kl_controller(self.kl_controller, self.kl_target, self.kl_horizon, self.kl_dual_rate)

    @property
    def normalized_head(self) -> ValueHead | None:
        """The critic's head where it learns returns divided by their running deviation."""
        policy: Any = self.policy
        if not isinstance(policy, LMActorCriticPolicy):
            return None
        is_on = normalizes_returns(self.normalize_returns, self.vf_coef)
        return policy.critic_head if is_on else None

    def update_log_probs(
        self,
    ) -> Callable[[PackedSequences, torch.Tensor], torch.Tensor] | None:
        """A function for log π of actions as the update computes it; None: as sampling does."""
        return update_log_probs(self)

    def state_values(self, packed: PackedSequences) -> torch.Tensor:
        """(n, 1) V of packed states as the update computes them: in its precision."""
        policy: Any = self.policy
        with computing_in(self.update_precision, self.device):
            return policy.state_values(packed)

    @property
    def is_warming_up(self) -> bool:
        """Whether the next update trains the critic alone."""
        return self.num_updates < self.critic_warmup

    def value_lambda(self) -> float | None:
        """λ of the critic's targets in the next update; None: that of the buffer."""
        return self.critic_warmup_lambda if self.is_warming_up else None

    @property
    def actor_is_unchanged(self) -> bool:
        """Whether a warm-up has frozen the actor of the last rollout since the start."""
        return bool(self.critic_warmup) and self.num_updates <= self.critic_warmup

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """Insert `RLHFCallback` as the first, unless there is one: others need complete rewards.

        Without a token MDP there is no KL to complete.
        """
        callbacks = callback if isinstance(callback, list) else [callback] if callback else []
        if not (self.is_plain_ppo or has_rlhf_callback(callbacks)):
            callbacks = [RLHFCallback(), *callbacks]
        if self.max_skipped_updates and not has_last_good_policy(callbacks):
            callbacks = [*callbacks, LastGoodPolicy()]
        converted = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in callbacks]
        return super()._init_callback(converted, progress_bar)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """SB3's, whose policy reads the observations where they are: on the host."""
        if not isinstance(self.policy, LMActorCriticPolicy):
            return super().collect_rollouts(*args, **kwargs)
        with self.policy.reading(lambda: np.asarray(self._last_obs)):
            return super().collect_rollouts(*args, **kwargs)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        setup = super()._setup_learn(*args, **kwargs)
        if self.precision == "auto" and not self.has_measured_precision:
            self.update_precision = self.ranks.of_first(measured_precision(self))
            self.has_measured_precision = True
        return setup

    # The update ----------------------------------------------------------------------------------

    def _setup_lr_schedule(self) -> None:
        """A number decays linearly to 0; a schedule is taken as it is."""
        if isinstance(self.learning_rate, numbers.Real):
            self.lr_schedule = Decay(float(self.learning_rate))
        else:
            super()._setup_lr_schedule()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """SB3's, but never below 0: a user's schedule may be anything there, negative rates too."""
        super()._update_current_progress_remaining(
            min(num_timesteps, total_timesteps), total_timesteps
        )

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        """SB3's, but our decay counts from the rollout's start, so that the last update learns.

        SB3 reads a schedule at the rollout's end, where a linear decay has reached 0 in the last
        (or only) update of a run.
        """
        if not isinstance(self.learning_rate, (numbers.Real, Decay)):
            super()._update_learning_rate(optimizers)
            return
        before = max(0, self.num_timesteps - self.n_steps * self.n_envs * self.ranks.count)
        learning_rate = self.lr_schedule(1.0 - before / self._total_timesteps)
        self.logger.record("train/learning_rate", learning_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, learning_rate)

    def train(self) -> None:
        """Update the policy: `n_epochs` passes over the rollout, in minibatches of sequences.

        A rollout that completed no group of responses to compare leaves everything as it is. So
        does an update that meets numbers which are not finite, up to `max_skipped_updates` times in
        a row.
        """
        buffer = self.rollout_buffer
        if not isinstance(buffer, EpisodeRolloutBuffer) or tokens_of_ranks(buffer, self.ranks):
            update = Update(self)
            try:
                update.run()
            except NonFiniteNumbers as error:
                skip_update(self, update, error)
            else:
                self.skipped_in_a_row = 0
                if self.on_updated is not None:
                    self.on_updated(update)
        self.end_rollout()

    def rollout_kl_coef(self) -> float:
        """β of the last rollout; 0 where there is no KL."""
        if isinstance(self.rollout_buffer, EpisodeRolloutBuffer):
            return self.rollout_buffer.kl_coef
        if self.is_plain_ppo or self.env is None:
            return 0.0
        return float(self.env.get_attr("kl_coef")[0])
