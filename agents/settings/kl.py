"""The KL settings of an agent: the estimator, where the penalty is paid, and what moves β.

Imports no torch: the command line checks its settings with it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from tokenenv.maths import (
    KL_COEF_RANGE,
    KL_CONTROLLERS,
    KL_ESTIMATORS,
    AdaptiveKL,
    DualKL,
    FixedKL,
    KLController,
    bounded_kl_coef,
)
from tokenenv.ranges import POSITIVE, check_ranges

__all__ = [
    "DEFAULT_DUAL_RATE",
    "DEFAULT_HORIZON",
    "KLPenalty",
    "check_controller",
    "kl_controller",
    "resolve_kl",
    "warn_of_bound",
]

DEFAULT_HORIZON: float = 10_000
"""Horizon of the adaptive controller, in episodes."""

DEFAULT_DUAL_RATE = 0.1
"""Rate of the dual controller: step in log β after a rollout whose KL is twice the target."""


@dataclass(frozen=True, slots=True)
class KLPenalty:
    """The estimator of the KL penalty, and whether it is paid in the reward or is a loss.

    Attributes:
        estimator: one of `KL_ESTIMATORS`.
        as_loss: β times its mean over the tokens is added to PPO's loss, and the reward is the
            score alone; otherwise β times it is subtracted from the reward of each token.

    Raises:
        ValueError: the estimator is unknown, or k1 is to be a loss.
    """

    estimator: str = "k1"
    as_loss: bool = False

    def __post_init__(self) -> None:
        """Refuse penalties without effect."""
        if self.estimator not in KL_ESTIMATORS:
            raise ValueError(
                f"kl_estimator={self.estimator!r} is unknown: choose one of "
                f"{', '.join(map(repr, KL_ESTIMATORS))}."
            )
        if self.as_loss and self.estimator == "k1":
            raise ValueError(
                "use_kl_loss=True with kl_estimator='k1': the gradient of k1 as a loss is "
                "E[∇log π] = 0, so it would not hold the policy at all. Choose 'k2', 'k3' or "
                "'full', or pay k1 in the reward (use_kl_loss=False)."
            )

    @property
    def pays_log_ratio(self) -> bool:
        """Whether the agent's side subtracts β·k2, β·k3 or their like from the rewards."""
        return self.estimator not in ("k1", "full") and not self.as_loss

    @property
    def pays_full(self) -> bool:
        """Whether the agent's side subtracts the β·KL of whole distributions from the rewards."""
        return self.estimator == "full" and not self.as_loss

    @property
    def keeps_ref_log_probs(self) -> bool:
        """Whether the update needs log π_ref of every token."""
        return self.as_loss and self.estimator != "full"

    @property
    def kl_shaping(self) -> str:
        """The environment's `kl_shaping` that goes with it."""
        return "k1" if self.estimator == "k1" else "none"

    def check_kl_shaping(self, env_kl_shaping: str, kl_coef: float = 0.0) -> None:
        """Raise ValueError where the penalty would be paid twice, or k1 not at all.

        Args:
            env_kl_shaping: the environment's `kl_shaping`.
            kl_coef: β.
        """
        if self.kl_shaping == "k1" and env_kl_shaping == "none" and kl_coef > 0:
            raise ValueError(
                f"kl_estimator='k1' with kl_shaping='none' in the environment pays no KL at all, "
                f"and kl_coef={kl_coef:g} would be without effect: make the environment with "
                "kl_shaping='k1', or with kl_coef=0 if nothing is to be paid, or choose another "
                "estimator, which the agent pays whole."
            )
        if env_kl_shaping == "none" or self.kl_shaping == env_kl_shaping:
            return
        where = "in the loss" if self.as_loss else "whole by the agent"
        raise ValueError(
            f"kl_estimator={self.estimator!r} is paid {where}, but the environment has "
            f"kl_shaping={env_kl_shaping!r} and pays its half of k1 as well: the penalty would be "
            "counted twice. Make the environment with kl_shaping='none'."
        )


def kl_controller(
    name: str, target: float | None, horizon: float, dual_rate: float
) -> KLController:
    """The controller of that name.

    Args:
        name: one of `KL_CONTROLLERS`.
        target: KL per response, in nats; for `"adaptive"` and `"dual"`, which need it.
        horizon: of `"adaptive"`, in episodes.
        dual_rate: of `"dual"`, step in log β per rollout whose KL is twice the target.

    Raises:
        ValueError: the name is unknown, or the numbers don't go with it.
    """
    if name not in KL_CONTROLLERS:
        raise ValueError(
            f"kl_controller={name!r} is unknown: choose one of "
            f"{', '.join(map(repr, KL_CONTROLLERS))}."
        )
    numbers = {"kl_horizon": horizon, "kl_dual_rate": dual_rate}
    check_ranges(numbers, dict.fromkeys(numbers, POSITIVE))
    for setting, value, default, owner in (
        ("kl_horizon", horizon, DEFAULT_HORIZON, "adaptive"),
        ("kl_dual_rate", dual_rate, DEFAULT_DUAL_RATE, "dual"),
    ):
        if name != owner and value != default:
            raise ValueError(
                f"{setting}={value!r} is for kl_controller={owner!r} and without effect with "
                f"{name!r}: choose {owner!r}, or leave {setting} at its default of {default:g}."
            )
    if name == "fixed":
        if target is not None:
            raise ValueError(
                f"kl_target={target} with kl_controller='fixed', which steers to nothing: choose "
                "'adaptive' or 'dual', or leave the target out."
            )
        return FixedKL()
    if target is None:
        raise ValueError(
            f"kl_controller={name!r} needs kl_target, the KL per response (in nats) to steer to: "
            "give one, or choose 'fixed'."
        )
    return AdaptiveKL(target, horizon) if name == "adaptive" else DualKL(target, dual_rate)


def check_controller(controller: KLController, kl_coef: float | None) -> None:
    """Raise ValueError where the controller could not change β.

    Args:
        controller: the controller of β.
        kl_coef: the initial β; None where it is not known yet.
    """
    if not isinstance(controller, FixedKL) and kl_coef == 0:
        name = "adaptive" if isinstance(controller, AdaptiveKL) else "dual"
        raise ValueError(
            f"kl_controller={name!r} multiplies β, and from kl_coef=0 it would stay 0 forever: "
            "start from a positive kl_coef."
        )


def warn_of_bound(kl_coef: float, start: float, kl: float, controller: KLController) -> None:
    """Warn where a controller has just reached a bound of its range, which it can't leave.

    Args:
        kl_coef: the new β.
        start: β at the start of training.
        kl: the KL per response that β was moved for.
        controller: the controller that moved it.
    """
    low, high = (bounded_kl_coef(value, start) for value in (0.0, float("inf")))
    if low < kl_coef < high:
        return
    way, remedy = ("lower", "smaller") if kl_coef == low else ("upper", "greater")
    warnings.warn(
        f"β has reached {kl_coef:.3g}, the {way} bound of the controller: a factor of "
        f"{KL_COEF_RANGE:g} from the {start:.3g} it started with. The KL is {kl:.3g} nats per "
        f"response, {controller} asks for {getattr(controller, 'target', kl):.3g}: if that can be "
        f"reached at all, start from a {remedy} kl_coef.",
        stacklevel=2,
    )


def resolve_kl(
    model: Any,
    estimator: str | None,
    controller: str | None,
    target: float | None,
    horizon: float,
    dual_rate: float,
) -> tuple[KLPenalty, KLController]:
    """The penalty and the controller of a training.

    Args:
        model: the algorithm; a `TokenPPO` has a penalty and a controller.
        estimator: the callback's; None: the model's, or k1.
        controller: the callback's; None: the model's, or fixed.
        target: the callback's.
        horizon: the callback's.
        dual_rate: the callback's.

    Raises:
        ValueError: the callback's settings can't be used, or contradict the model's.
    """
    penalty = getattr(model, "kl_penalty", None)
    control = getattr(model, "kl_control", None)
    if penalty is None:
        penalty = KLPenalty("k1" if estimator is None else estimator)
    elif estimator not in (None, penalty.estimator):
        raise _contradiction(model, "kl_estimator", estimator, penalty.estimator)
    callback_control = kl_controller(
        "fixed" if controller is None else controller, target, horizon, dual_rate
    )
    if control is None:
        control = callback_control
    elif controller is not None and callback_control != control:
        raise _contradiction(model, "kl_controller", callback_control, control)
    return penalty, control


def _contradiction(model: Any, name: str, callback_value: Any, model_value: Any) -> ValueError:
    agent = type(model).__name__
    return ValueError(
        f"RLHFCallback has {name}={callback_value!r}, {agent} {model_value!r}: give it to {agent} "
        "alone, which RLHFCallback() follows."
    )
