"""One update of PPO, top down: advantages → epochs → minibatch → micro-batch → losses → step.

It is that of Schulman et al. 2017, https://arxiv.org/abs/1707.06347, as `PPO.train` of
Stable-Baselines3 computes it; comments name what stands there at the same place. Whitening,
normalised returns, micro-batches, the KL loss and the critic's warm-up are added.

Several ranks make one update together (`TokenPPO.join`): every statistic is that of all ranks'
rollouts, every step that of the gradient of the mean over all ranks' tokens. Alone, every sum over
the ranks is of one.

Axes: `n` tokens of a minibatch, in the order in which `evaluate_actions` answers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.policy import return_std
from agents.ppo.losses import (
    LOGGED_NAMES,
    aggregation_weights,
    explained_variance,
    kl_loss,
    normalized,
    ppo_losses,
    split_minibatch,
    whiten,
    whitening_divisor,
)
from agents.ppo.minibatches import Minibatch, minibatches
from agents.ppo.precision import computing_in, settle_old_log_probs
from agents.rollout import EpisodeRolloutBuffer, advantage_magnitude, refuse_non_finite_rollout
from tokenenv.models import NonFiniteNumbers, PackedSequences

__all__ = ["NonFiniteStep", "Update", "frozen", "why_not_finite"]

logger = logging.getLogger(__name__)

FAR = 20
"""Clip ranges of the value in a deviation of the returns, from where on a warning says so."""


class NonFiniteStep(NonFiniteNumbers):
    """The loss of a minibatch or its gradient is not finite, so that no step was taken."""


class Update:
    """One update of a `TokenPPO` from the rollout in its buffer.

    Args:
        model: a `TokenPPO`. Its policy, optimiser, buffer and logger change.

    Attributes:
        magnitude: of the numbers that advantages were computed from; they round relative to it.
        raw_advantages: (n,) as the buffer had them before they were whitened.
        advantage_mean: what was subtracted from the advantages of the rollout.
        advantage_std: what they were divided by.
        return_deviation: what values and returns are divided by in the value loss.
        first_pass_is_old: whether ratios divide by the log-probabilities of the first forward pass.
        epoch: from 0.
        minibatches: the numbers of every minibatch so far, as logged.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.policy, self.buffer = model, model.policy, model.rollout_buffer
        self.ranks, self.trained = model.ranks, model.trained
        self.magnitude, self.advantage_mean, self.advantage_std = 0.0, 0.0, 1.0
        self.raw_advantages = self.buffer.advantages
        self.return_deviation: float | torch.Tensor = 1.0
        if (head := model.normalized_head) is not None:
            self.return_deviation = head.deviation
        self.first_pass_is_old = False
        self.epoch = 0
        self.minibatches: list[dict[str, float]] = []
        # SB3: "Compute current clip range", and "Optional: clip range for the value function".
        self.clip_range = model.clip_range(model._current_progress_remaining)
        self.clip_range_high, self.clip_range_vf = (
            setting(model._current_progress_remaining) if callable(setting) else setting
            for setting in (model.clip_range_high, model.clip_range_vf)
        )
        self.kl_penalty = model.kl_penalty if model.use_kl_loss else None

    def run(self) -> None:
        """The whole update, and its numbers in the logger."""
        refuse_non_finite_rollout(self.buffer, self.ranks)
        self.policy.set_training_mode(True)  # SB3: "Switch to train mode"
        self.model._update_learning_rate(self.trained.optimizer)
        self.whiten_advantages()
        self.follow_returns()
        self.first_pass_is_old = settle_old_log_probs(self.model)
        self._begin()
        with frozen(self.policy.actor) if self.model.is_warming_up else contextlib.nullcontext():
            self.run_epochs()
        self.trained.end()
        self.model.num_updates += 1
        self.log()

    def _begin(self) -> None:
        """Let what is trained see the weights as they are; with shards, that is a copy."""
        copied: Any = self.trained.module
        if copied is not self.policy:
            copied.set_training_mode(True)
            copied.entropy_weight = self.policy.entropy_weight
        self.trained.begin()

    # Advantages and returns ----------------------------------------------------------------------

    def whiten_advantages(self) -> None:
        """Give the rollout's advantages mean 0 and deviation 1, unless they are rounding only."""
        self.raw_advantages = advantages = self.buffer.advantages
        own_size = np.size(advantages)
        own = advantage_magnitude(self.buffer, self.model.rollout_kl_coef())
        self.magnitude = self.ranks.largest(own)
        if not self.model.whiten_advantages:
            return
        advantages = self.ranks.joined(advantages)
        self.advantage_std = whitening_divisor(advantages, self.magnitude)
        if np.size(advantages) > 1:
            self.advantage_mean = float(np.mean(advantages, dtype=np.float64))
        whitened = whiten(advantages, self.magnitude)
        self.buffer.advantages = self.ranks.own_part(whitened, own_size)
        is_rounding = bool(np.ptp(advantages) > 0 and not whitened.any())
        self.model.logger.record("train/advantages_are_rounding", float(is_rounding))
        if is_rounding and not self.model.has_met_rounding:
            logger.warning(
                "all advantages of this rollout lie within %.2g of each other, no more than the "
                "rounding of the rewards and values that they come from (of size %.2g): the actor "
                "learns nothing from it. Does the reward vary? If so, subtract its mean.",
                np.ptp(advantages),
                self.magnitude,
            )
            self.model.has_met_rounding = True

    def follow_returns(self) -> None:
        """Let the critic's head follow the returns' deviation, or warn where a clip stops it."""
        returns = self.ranks.joined(self.buffer.returns.ravel())
        head = self.model.normalized_head
        if head is not None:
            head.follow(returns)
            self.return_deviation = head.deviation
            self.model.logger.record("train/return_deviation", float(head.deviation))
        elif (
            self.model.vf_coef
            and self.clip_range_vf
            and return_std(returns) > FAR * self.clip_range_vf
        ):
            warnings.warn(
                f"clip_range_vf={self.clip_range_vf:g} lets a value move by so much in an update, "
                f"and returns deviate by {return_std(returns):.3g}: the critic may hardly "
                "learn. Use clip_range_vf=None, or normalize_returns=True with "
                "LMActorCriticPolicy.",
                stacklevel=2,
            )

    # Epochs --------------------------------------------------------------------------------------

    def run_epochs(self) -> None:
        """SB3: "train for n_epochs epochs"; fewer where the approximate KL exceeds its target."""
        for epoch in range(self.model.n_epochs):
            self.epoch = epoch
            is_complete = self.run_epoch()
            self.model._n_updates += 1
            if not is_complete:
                return

    def run_epoch(self) -> bool:
        """SB3: "Do a complete pass on the rollout buffer"; False where the KL stopped it."""
        for minibatch in minibatches(self.buffer, self.model.batch_size, self.ranks):
            sums = self.accumulate_gradients(minibatch)
            numbers = self.clip_gradients(sums)
            # SB3 stops before the step, too, and logs what it did not use.
            if self.exceeds_target_kl(numbers):
                self.minibatches.append(numbers)
                return False
            self.refuse_non_finite(numbers)
            self.minibatches.append(numbers)
            self.trained.optimizer.step()
        return True

    def exceeds_target_kl(self, numbers: Mapping[str, float]) -> bool:
        """Whether the approximate KL of a minibatch ends the update."""
        target = self.model.target_kl
        return target is not None and numbers["approx_kl"] > 1.5 * target

    # Minibatch and micro-batches -----------------------------------------------------------------

    def accumulate_gradients(
        self, minibatch: Minibatch | RolloutBufferSamples
    ) -> dict[str, torch.Tensor]:
        """Leave the gradient of a minibatch's loss in the parameters: that of all ranks.

        Args:
            minibatch: this rank's part of it; samples alone are a whole one, of one process.

        Returns:
            The parts of the loss, () means over the tokens: what this rank's add to them.
        """
        if not isinstance(minibatch, Minibatch):
            minibatch = Minibatch(minibatch, len(minibatch.advantages))
        self.trained.optimizer.zero_grad()
        batch, advantage_std = self.normalize_advantage(minibatch)
        weights = self.aggregation_weights(minibatch)
        first_log_probs = torch.empty_like(batch.old_log_prob)
        sums: dict[str, torch.Tensor] = {}
        parts_of_it = list(split_minibatch(batch, self.model.micro_batch_tokens))
        passes = len(parts_of_it)
        if self.trained.needs_equal_passes:
            passes = int(self.ranks.largest(passes))
        for number in range(passes):
            part, index = parts_of_it[min(number, len(parts_of_it) - 1)]
            is_idle = minibatch.is_empty or number >= len(parts_of_it)
            share = 0.0 if is_idle else len(part.advantages) / minibatch.tokens
            of_part = weights if weights is None or index is None else weights[index]
            with self.trained.one_pass(is_last=number == passes - 1):
                parts, log_probs = self.backward(part, share, advantage_std, of_part)
            if self.is_first_pass:
                first_log_probs[slice(None) if index is None else index] = log_probs
            sums = {name: sums.get(name, 0.0) + share * own for name, own in parts.items()}
        if self.is_first_pass and not minibatch.is_empty:
            self.buffer.old_log_probs = first_log_probs.cpu().numpy()
        return sums

    def normalize_advantage(
        self, minibatch: Minibatch
    ) -> tuple[RolloutBufferSamples, torch.Tensor]:
        """SB3: "Normalize advantage", over a minibatch of all ranks, and what they are divided by.

        Returns:
            This rank's part of the minibatch, and () the divisor: that of the rollout where
            minibatches are not normalised.
        """
        batch = minibatch.samples
        advantages, divisor = batch.advantages, torch.as_tensor(self.advantage_std)
        if not self.model.normalize_advantage or minibatch.tokens < 2:
            return batch, divisor
        if self.ranks.count == 1:
            advantages, divisor = normalized(advantages, self.magnitude)
        else:
            own = advantages[:0] if minibatch.is_empty else advantages
            joined = torch.as_tensor(self.ranks.joined(own.cpu().numpy()))
            whole, divisor = normalized(joined, self.magnitude)
            part = torch.as_tensor(self.ranks.own_part(whole.numpy(), len(own)))
            advantages = advantages if minibatch.is_empty else part.to(advantages.device)
        return batch._replace(advantages=advantages), divisor

    def aggregation_weights(self, minibatch: Minibatch) -> torch.Tensor | None:
        """(n,) what the tokens of a minibatch count in the actor's loss; None: 1 each."""
        if self.model.loss_aggregation == "token":
            return None
        packed, divisor = minibatch.samples.observations, self.model.loss_divisor
        assert isinstance(packed, PackedSequences) and self.buffer.binding is not None
        divisor = self.buffer.binding.max_new_tokens if divisor is None else divisor
        weights = aggregation_weights(packed.rows, self.model.loss_aggregation, divisor)
        if self.ranks.count == 1 or weights is None or minibatch.is_empty:
            return weights
        # n/S is of this rank's part there, and has to be that of all of them.
        own = len(packed.rows) / len(torch.unique(packed.rows))
        return weights * (minibatch.tokens / minibatch.sequences / own)

    @property
    def is_first_pass(self) -> bool:
        """Whether ratios divide by the log-probabilities of this very pass, so that they are 1."""
        return self.first_pass_is_old and self.epoch == 0

    def backward(
        self,
        part: RolloutBufferSamples,
        share: float,
        advantage_std: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Add the gradient of a micro-batch's loss to the parameters.

        Args:
            part: whole sequences of the minibatch.
            share: of the minibatch's tokens.
            advantage_std: what the minibatch's advantages were divided by.
            weights: (n,) what the tokens count in the actor's loss; None: 1 each.

        Returns:
            The parts of the loss, () each, and the (n,) log-probabilities, all without gradient.
        """
        values, log_probs, entropies, logits = self.evaluate(part)
        if self.is_first_pass:
            part = part._replace(old_log_prob=log_probs.detach())
        losses = ppo_losses(
            None if values is None else values.flatten(),  # (n, 1) → (n,)
            log_probs,
            log_probs.neg() if entropies is None else entropies,  # SB3: "Approximate entropy"
            part,
            part.advantages,
            self.clip_range,
            self.clip_range_vf,
            self.return_deviation,
            self.clip_range_high,
            weights,
        )
        loss = losses.total(self.model.ent_coef, self.model.vf_coef)
        parts = losses.detached()
        if self.kl_penalty is not None:
            kl = self.kl_loss(part, log_probs, logits, weights)
            # Divided as the advantages are, or β would weigh against another score.
            loss = loss + self.buffer.kl_coef / advantage_std * kl
            parts["kl"] = kl.detach()
        (self.trained.factor * share * loss).backward()
        parts["loss"] = loss.detach()
        return parts, log_probs.detach()

    def evaluate(self, part: RolloutBufferSamples) -> tuple[Any, ...]:
        """Values, log-probabilities, entropies; and logits, where the KL loss needs them all.

        There are no values where the critic does not learn in this epoch.
        """
        states, actions = part.observations, part.actions.long().flatten()
        choice = {} if self.critic_learns else {"with_values": False}
        with computing_in(self.model.update_precision, actions.device):
            if self.kl_penalty is not None and self.kl_penalty.estimator == "full":
                return self.trained.call("evaluate_with_logits", states, actions, **choice)
            return (*self.trained.call("evaluate_actions", states, actions, **choice), None)

    @property
    def critic_learns(self) -> bool:
        """Whether the critic learns in this epoch; in a warm-up, where it alone does, always."""
        limit = self.model.critic_epochs
        return limit is None or self.epoch < limit or self.model.is_warming_up

    def kl_loss(
        self,
        part: RolloutBufferSamples,
        log_probs: torch.Tensor,
        logits: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """() the KL penalty as a loss, without its weight."""
        assert isinstance(self.buffer, EpisodeRolloutBuffer) and self.buffer.binding is not None
        assert self.kl_penalty is not None
        reference = self.buffer.binding.reference
        with computing_in(self.model.update_precision, log_probs.device):
            return kl_loss(self.kl_penalty, part, log_probs, logits, reference, weights)

    # Step ----------------------------------------------------------------------------------------

    def clip_gradients(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """SB3: "Clip grad norm"; and bring the numbers of a minibatch to the host.

        One wait for the device, not one per number: so it costs nothing to know the norm.

        Args:
            parts: of the loss, () each; what this rank's tokens add to them.

        Returns:
            The parts, of all ranks, and `grad_norm` before it was clipped.
        """
        norm = self.trained.clip(self.model.max_grad_norm)
        tensors = {**parts, "grad_norm": norm.to(parts["loss"].device)}
        numbers = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
        if self.ranks.count > 1:
            sums = self.ranks.sum(np.array([numbers[name] for name in parts]))
            numbers |= dict(zip(parts, sums.tolist(), strict=True))
        return numbers

    def refuse_non_finite(self, numbers: Mapping[str, float]) -> None:
        """Raise NonFiniteStep where a minibatch's loss or gradient is not finite."""
        reason = why_not_finite(numbers)
        if reason is None:
            return
        self.trained.optimizer.zero_grad()
        raise NonFiniteStep(
            f"update {self.model.num_updates + 1}, epoch {self.epoch + 1}, step "
            f"{len(self.minibatches) + 1}: {reason}. The step was not taken: weights and optimiser "
            "are as the one before it left them. Lower the learning rate, or look in the metrics "
            "of the updates before this one for what grew."
        )

    def log(self) -> None:
        """SB3: "Logs"; means over the minibatches."""
        record = self.model.logger.record
        for name in self.minibatches[0]:
            values = [numbers[name] for numbers in self.minibatches if name in numbers]
            mean = float(np.mean(values))
            record(f"train/{LOGGED_NAMES.get(name, name)}", mean)
        values, returns = (
            self.ranks.joined(np.ravel(numbers))
            for numbers in (self.buffer.values, self.buffer.returns)
        )
        explained = explained_variance(values, returns)
        record("train/explained_variance", explained)
        record("train/n_updates", self.model._n_updates, exclude="tensorboard")


def why_not_finite(numbers: Mapping[str, float]) -> str | None:
    """What of a minibatch's loss and gradient is not finite, in words; None where both are.

    Args:
        numbers: what `Update.clip_gradients` returned.
    """
    if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
        return None
    words = {LOGGED_NAMES.get(name, name): number for name, number in numbers.items()}
    wrong = ", ".join(f"{name}={x:g}" for name, x in words.items() if not math.isfinite(x))
    finite = ", ".join(f"{name}={x:.3g}" for name, x in words.items() if math.isfinite(x))
    return f"{wrong} (finite: {finite or 'nothing'})"


@contextlib.contextmanager
def frozen(actor: Any) -> Iterator[None]:
    """Hold every weight of a policy's actor, its trunk included, while this lasts.

    With a shared trunk the value head alone learns, else the critic's own trunk and head. Weights
    without a gradient are left out by the optimiser and by the clipping of the gradients' norm.
    """
    held = [weight for weight in actor.parameters() if weight.requires_grad]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)
