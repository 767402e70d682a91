"""Which KL penalty and controller hold in a training, and what they can't be combined with."""

from __future__ import annotations

from typing import Any

from agents.buffer import EpisodeRolloutBuffer
from agents.kl_settings import KLPenalty, kl_controller
from agents.policy import LMActorCriticPolicy
from tokenenv.shaping import FixedKL, KLController

__all__ = ["check_buffer_and_policy", "resolve_kl"]


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
        model: the algorithm; a `TokenPPO` has a penalty and a controller of its own.
        estimator: the callback's; None: the model's own, or k1.
        controller: the callback's; None: the model's own, or fixed.
        target: the callback's.
        horizon: the callback's.
        dual_rate: the callback's.

    Raises:
        ValueError: the callback's settings can't be used, or contradict the model's.
    """
    penalty = getattr(model, "kl_penalty", None)
    control = getattr(model, "kl_control", None)
    if penalty is None:
        penalty = KLPenalty(estimator or "k1")
    elif estimator not in (None, penalty.estimator):
        raise _contradiction(model, "kl_estimator", estimator, penalty.estimator)
    given = None
    if controller is not None or target is not None:
        given = kl_controller(controller or "fixed", target, horizon, dual_rate)
    if control is None:
        control = given or FixedKL()
    elif given not in (None, control):
        raise _contradiction(model, "kl_controller", given, control)
    return penalty, control


def _contradiction(model: Any, name: str, given: Any, own: Any) -> ValueError:
    agent = type(model).__name__
    return ValueError(
        f"RLHFCallback has {name}={given!r}, {agent} {own!r}: give it to {agent} alone, "
        "which RLHFCallback() follows."
    )


def check_buffer_and_policy(penalty: KLPenalty, model: Any) -> None:
    """Raise ValueError where the buffer or the policy can't do what the penalty needs."""
    buffer, policy = getattr(model, "rollout_buffer", None), model.policy
    needs_buffer = penalty.as_loss or penalty.pays_full
    if needs_buffer and not isinstance(buffer, EpisodeRolloutBuffer):
        what = "use_kl_loss=True" if penalty.as_loss else "kl_estimator='full'"
        needs = "log π_ref of the tokens" if penalty.keeps_ref_log_probs else "whole sequences"
        raise ValueError(
            f"{what} needs {needs} at the end of the rollout, which {type(buffer).__name__} does "
            "not keep: pass rollout_buffer_class=EpisodeRolloutBuffer to the algorithm, or pay "
            "'k1', 'k2' or 'k3' in the reward."
        )
    if penalty.estimator == "full" and not isinstance(policy, LMActorCriticPolicy):
        raise ValueError(
            "kl_estimator='full' compares the whole distributions of two language models, and "
            f"{type(policy).__name__} has none: use LMActorCriticPolicy, or 'k1', 'k2' or 'k3'."
        )
