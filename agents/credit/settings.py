"""How an agent turns the rewards of tokens into updates: what a token table is computed by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from agents.ppo import aggregation_weights
from agents.rollout import EpisodeRolloutBuffer
from agents.settings import DEFAULT_LAMBDA, DEFAULT_VINE_SAMPLES, KLPenalty
from tokenenv.maths import CRITIC_FREE, UNIFORM, length_adaptive_lambdas

__all__ = ["UpdateSettings", "Whitening"]


@dataclass(frozen=True, slots=True)
class Whitening:
    """What advantages are whitened with: (A − mean)/deviation.

    Attributes:
        mean: subtracted.
        deviation: divided by.
        of: where the two come from: `"the last rollout"` or `"these responses"`.
    """

    mean: float
    deviation: float
    of: str

    def __call__(self, advantages: np.ndarray) -> np.ndarray:
        """(n,) whitened advantages."""
        return (np.asarray(advantages, dtype=np.float64) - self.mean) / self.deviation


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """The settings of an agent that decide on the update of a token.

    Args:
        advantage_estimator: one of `tokenenv.maths.ADVANTAGE_ESTIMATORS`.
        gamma: γ.
        gae_lambda: λ of `"gae"`.
        group_size: responses to a prompt that `"rloo"` and `"group"` compare.
        kl_coef: β; None: that of the environment.
        kl_estimator: of the KL penalty.
        use_kl_loss: whether the penalty is a loss instead of a reward.
        clip_range: of the ratio.
        clip_range_vf: of a value's change; None: none.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        whiten_advantages: whether advantages are whitened over the rollout.
        whitening: with what; None: computed from the responses of the table.
        reward_factor: rewards enter the advantages as `reward_factor`·r + `reward_shift`, which are
            1 and 0 unless the agent whitens rewards.
        reward_shift: see there.
        return_deviation: what values and returns are divided by in the value loss.
        clip_range_high: of a ratio above 1; None: `clip_range`.
        gae_lambda_value: λ of the returns; None: that of the advantages.
        gae_lambda_alpha: α of the length-adaptive λ; None: `gae_lambda`.
        vine_samples: continuations of every state, of `"vine"`.
        loss_aggregation: by token, by sequence or by a constant.
        loss_divisor: tokens, of the constant; None: `max_new_tokens`.
        max_new_tokens: T; None: not known, which `"vine"` and the constant can't do without.
    """

    advantage_estimator: str = "gae"
    gamma: float = 1.0
    gae_lambda: float = DEFAULT_LAMBDA
    group_size: int = 1
    kl_coef: float | None = None
    kl_estimator: str = "k1"
    use_kl_loss: bool = False
    clip_range: float = 0.2
    clip_range_vf: float | None = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.1
    whiten_advantages: bool = True
    whitening: Whitening | None = None
    reward_factor: float = 1.0
    reward_shift: float = 0.0
    return_deviation: float = 1.0
    clip_range_high: float | None = None
    gae_lambda_value: float | None = None
    gae_lambda_alpha: float | None = None
    vine_samples: int = DEFAULT_VINE_SAMPLES
    loss_aggregation: str = "token"
    loss_divisor: int | None = None
    max_new_tokens: int | None = None

    @classmethod
    def of_model(cls, model: Any) -> UpdateSettings:
        """Those of a `TokenPPO` between two updates; nothing is known of a whitening.

        Args:
            model: with an `EpisodeRolloutBuffer` and an environment.

        Raises:
            ValueError: it normalises advantages per minibatch, or has another buffer.
        """
        if model.normalize_advantage:
            raise ValueError(
                "normalize_advantage=True divides the advantages of every minibatch by a deviation "
                "of its own, so that a token has no one weight for a table: use whiten_advantages."
            )
        if not isinstance(model.rollout_buffer, EpisodeRolloutBuffer):
            raise ValueError(
                f"a token table is made of an EpisodeRolloutBuffer, and the model has a "
                f"{type(model.rollout_buffer).__name__}: leave rollout_buffer_class out."
            )
        buffer, head = model.rollout_buffer, model.normalized_head
        remaining = model._current_progress_remaining
        clip_range_high, clip_range_vf = (
            clip(remaining) if callable(clip) else clip
            for clip in (model.clip_range_high, model.clip_range_vf)
        )
        return cls(
            advantage_estimator=buffer.advantage_estimator,
            gamma=float(buffer.gamma),
            gae_lambda=float(buffer.gae_lambda),
            group_size=buffer.group_size,
            kl_coef=float(model.env.get_attr("kl_coef")[0]),
            kl_estimator=model.kl_estimator,
            use_kl_loss=model.use_kl_loss,
            clip_range=float(model.clip_range(remaining)),
            clip_range_high=clip_range_high,
            clip_range_vf=clip_range_vf,
            ent_coef=float(model.ent_coef),
            vf_coef=float(model.vf_coef),
            whiten_advantages=model.whiten_advantages,
            return_deviation=1.0 if head is None else float(head.deviation),
            gae_lambda_value=buffer.gae_lambda_value,
            gae_lambda_alpha=buffer.gae_lambda_alpha,
            vine_samples=buffer.vine_samples,
            loss_aggregation=model.loss_aggregation,
            loss_divisor=model.loss_divisor,
            max_new_tokens=model.env.get_attr("settings")[0].max_new_tokens,
        )

    @classmethod
    def of_update(cls, update: Any) -> UpdateSettings:
        """Those of the update that a `TokenPPO` has just made, with what it whitened by.

        Args:
            update: `agents.ppo.update.Update`, while the buffer holds its rollout.
        """
        of_model = cls.of_model(update.model)
        buffer, whitening = update.buffer, None
        if update.model.whiten_advantages:
            whitening = Whitening(update.advantage_mean, update.advantage_std, "the last rollout")
        factor, shift = _reward_scale(buffer.rewards) if buffer.whiten_rewards else (1.0, 0.0)
        return replace(
            of_model,
            kl_coef=float(buffer.kl_coef),
            clip_range=float(update.clip_range),
            clip_range_high=update.clip_range_high,
            clip_range_vf=update.clip_range_vf,
            whitening=whitening,
            reward_factor=factor,
            reward_shift=shift,
            return_deviation=float(update.return_deviation),
        )

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> UpdateSettings:
        """Those that `header` wrote, with the whitening of the rollout that the table was made of.

        Args:
            header: of a token table.
        """
        whitening, scale = header["whitening"], header["reward_scale"]
        return cls(
            advantage_estimator=header["estimator"],
            whiten_advantages=whitening is not None,
            whitening=None
            if whitening is None
            else Whitening(**{name: whitening[name] for name in ("mean", "deviation", "of")}),
            reward_factor=scale["factor"],
            reward_shift=scale["shift"],
            **{name: header[name] for name in (*_IN_HEADER, "kl_coef")},
            **{name: header[name] for name in _OPTIONS if name in header},
        )

    @property
    def has_critic(self) -> bool:
        """Whether advantages are computed with V."""
        return self.advantage_estimator not in CRITIC_FREE

    @property
    def has_values(self) -> bool:
        """Whether they are computed with values of states, a critic's or those of continuations."""
        return self.advantage_estimator not in UNIFORM

    def lambda_of(self, lengths: np.ndarray) -> float | np.ndarray:
        """λ of the advantages of responses of (B,) `lengths`: one, or (B,) of them."""
        if self.gae_lambda_alpha is None:
            return self.gae_lambda
        return length_adaptive_lambdas(lengths, self.gae_lambda_alpha)

    def token_weights(self, lengths: np.ndarray) -> np.ndarray:
        """(n,) what the tokens of responses of (B,) `lengths` count in the loss.

        Relative to a mean over these n tokens, where each counts 1; see `aggregation_weights`.
        """
        rows = torch.repeat_interleave(torch.as_tensor(np.asarray(lengths)))  # (n,)
        divisor = self.loss_divisor or self.max_new_tokens
        if self.loss_aggregation == "constant" and divisor is None:
            raise ValueError(
                "loss_aggregation='constant' divides by loss_divisor or max_new_tokens, and both "
                "are None: give one."
            )
        weights = aggregation_weights(rows, self.loss_aggregation, divisor or 1)
        return np.ones(len(rows)) if weights is None else weights.numpy()

    @property
    def penalty(self) -> KLPenalty:
        """The KL penalty."""
        return KLPenalty(self.kl_estimator, self.use_kl_loss)

    def header(self) -> dict[str, Any]:
        """For a table's header."""
        return {
            "estimator": self.advantage_estimator,
            **{name: getattr(self, name) for name in (*_IN_HEADER, "kl_coef", *_OPTIONS)},
            "has_critic": self.has_critic,
            "whitening": None if self.whitening is None else asdict(self.whitening),
            "reward_scale": {"factor": self.reward_factor, "shift": self.reward_shift},
            "clip_range": min(self.clip_range, NO_CLIP),
        }


NO_CLIP = 1e9
"""A clip range that no ratio reaches, which a file has for infinity: JSON has none."""

_IN_HEADER = (
    *("gamma", "gae_lambda", "group_size", "kl_estimator", "use_kl_loss"),
    *("clip_range", "clip_range_vf", "ent_coef", "vf_coef"),
)
"""Settings that a table's header has under their own names."""

_OPTIONS = (
    *("clip_range_high", "gae_lambda_value", "gae_lambda_alpha", "vine_samples"),
    *("loss_aggregation", "loss_divisor", "max_new_tokens", "return_deviation"),
)
"""Those that a header may lack: they have their defaults then."""


def _reward_scale(rewards: np.ndarray) -> tuple[float, float]:
    """Factor and shift of `tokenenv.maths.whiten_rewards` on a rollout's (n,) rewards."""
    wide = np.asarray(rewards, dtype=np.float64)
    if wide.size < 2:
        return 1.0, 0.0
    deviation = float(np.sqrt(wide.var(ddof=1) + 1e-8))
    return 1.0 / deviation, float(wide.mean()) * (1.0 - 1.0 / deviation)
