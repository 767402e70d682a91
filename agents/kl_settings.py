"""What an agent does about the KL divergence: which estimator, where it is paid, what moves β.

No torch here: the command line checks its settings with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenenv.shaping import (
    KL_CONTROLLERS,
    KL_ESTIMATORS,
    AdaptiveKL,
    DualKL,
    FixedKL,
    KLController,
)

__all__ = ["KLPenalty", "check_controller", "kl_controller"]


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
        """Refuse what would hold no policy."""
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
        """Whether the agent's side subtracts β·k2 or β·k3 from the rewards."""
        return self.estimator in ("k2", "k3") and not self.as_loss

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

    def check_kl_shaping(self, found: str) -> None:
        """Raise ValueError where the environment pays its half of k1 on top of the penalty.

        Args:
            found: the environment's `kl_shaping`; `"none"` always goes.
        """
        if found == "none" or self.kl_shaping == found:
            return
        where = "in the loss" if self.as_loss else "whole by the agent"
        raise ValueError(
            f"kl_estimator={self.estimator!r} is paid {where}, but the environment has "
            f"kl_shaping={found!r} and pays its half of k1 as well: the penalty would be counted "
            "twice. Make the environment with kl_shaping='none'."
        )


def kl_controller(
    name: str, target: float | None, horizon: float, dual_rate: float
) -> KLController:
    """The controller of that name.

    Args:
        name: one of `KL_CONTROLLERS`.
        target: KL per response, in nats; for `"adaptive"` and `"dual"`, which need it.
        horizon: of `"adaptive"`, in episodes.
        dual_rate: of `"dual"`, change of β per nat and rollout.

    Raises:
        ValueError: the name is unknown, or the numbers don't go with it.
    """
    if name not in KL_CONTROLLERS:
        raise ValueError(
            f"kl_controller={name!r} is unknown: choose one of "
            f"{', '.join(map(repr, KL_CONTROLLERS))}."
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


def check_controller(controller: KLController, kl_coef: float | None, is_paid: bool = True) -> None:
    """Raise ValueError where moving β could not steer anything.

    Args:
        controller: what moves β.
        kl_coef: β that it starts from; None where that is not known yet.
        is_paid: whether anybody pays β times the KL.
    """
    if isinstance(controller, FixedKL):
        return
    if not is_paid:
        raise ValueError(
            "kl_estimator='k1' with kl_shaping='none' in the environment pays no KL at all, so "
            f"that {type(controller).__name__} would move a β without effect: make the "
            "environment with kl_shaping='k1', or choose another estimator."
        )
    if isinstance(controller, AdaptiveKL) and kl_coef == 0:
        raise ValueError(
            "kl_controller='adaptive' multiplies β, and from kl_coef=0 it would stay 0 for ever: "
            "start from a positive kl_coef, or use kl_controller='dual'."
        )
