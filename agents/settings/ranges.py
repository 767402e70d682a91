"""Which settings are valid: the same checks for the command line and for `TokenPPO`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.settings.estimators import DEFAULT_LAMBDA
from agents.settings.kl import KLPenalty, kl_controller
from tokenenv.maths import CRITIC_FREE
from tokenenv.ranges import (
    COUNT,
    COUNT_OR_0,
    FRACTION,
    OPTIONAL_COUNT,
    OPTIONAL_FRACTION,
    OPTIONAL_POSITIVE,
    OPTIONAL_POSITIVE_FINITE,
    OPTIONAL_WEIGHT,
    POSITIVE,
    WEIGHT,
    Range,
    check_ranges,
)

__all__ = [
    "LATER_SETTINGS",
    "LOSS_AGGREGATIONS",
    "PPO_CHOICES",
    "PPO_RANGES",
    "PRECISIONS",
    "check_agent",
    "check_precision",
    "check_rollout_length",
    "check_trainable_dtype",
    "normalizes_returns",
    "value_loss_weight",
]

LOSS_AGGREGATIONS = ("token", "sequence", "constant")
"""Values of `loss_aggregation`: see `agents.ppo.losses.aggregation_weights`."""

LATER_SETTINGS: dict[str, Any] = {
    "clip_range_high": None,
    "loss_aggregation": "token",
    "loss_divisor": None,
    "critic_warmup_lambda": None,
    "critic_epochs": None,
    "max_skipped_updates": 0,
}
"""Arguments of `TokenPPO` that archives of older versions lack, as they were before."""

SCHEDULES = ("learning_rate", "clip_range", "clip_range_high", "clip_range_vf")
"""Settings that may be functions of the remaining share of training."""

PPO_RANGES: dict[str, Range] = {
    "n_steps": COUNT,
    "batch_size": COUNT,
    "n_epochs": COUNT,
    "micro_batch_tokens": OPTIONAL_COUNT,
    "learning_rate": WEIGHT,
    "gamma": FRACTION,
    "gae_lambda": FRACTION,
    "clip_range": POSITIVE,
    "clip_range_high": OPTIONAL_POSITIVE_FINITE,
    "clip_range_vf": OPTIONAL_POSITIVE,
    "ent_coef": WEIGHT,
    "vf_coef": OPTIONAL_WEIGHT,
    "max_grad_norm": POSITIVE,
    "target_kl": OPTIONAL_POSITIVE,
    "kl_target": OPTIONAL_POSITIVE,
    "kl_horizon": POSITIVE,
    "kl_dual_rate": POSITIVE,
    "critic_warmup": COUNT_OR_0,
    "critic_warmup_lambda": OPTIONAL_FRACTION,
    "critic_epochs": OPTIONAL_COUNT,
    "max_skipped_updates": COUNT_OR_0,
    "loss_divisor": OPTIONAL_COUNT,
}
"""PPO's numeric hyperparameters and their ranges."""

PPO_CHOICES = (
    "normalize_returns",
    "whiten_advantages",
    "loss_aggregation",
    "precision",
    "kl_estimator",
    "use_kl_loss",
    "kl_controller",
)
"""Its other hyperparameters; `check_agent` checks their values."""


def check_rollout_length(cut: str, n_steps: int, max_new_tokens: int) -> None:
    """Refuse rollouts that could end without one finished episode where only those are used.

    Args:
        cut: what happens to the episodes that the end of a rollout cuts.
        n_steps: steps per environment and rollout.
        max_new_tokens: T.

    Raises:
        ValueError: `cut` is `"carry"` and `n_steps` is below T.
    """
    if cut == "carry" and n_steps < max_new_tokens:
        raise ValueError(
            f"cut='carry' needs n_steps ≥ max_new_tokens = {max_new_tokens}, got n_steps={n_steps}:"
            " in fewer steps no episode might finish. Raise n_steps, or use cut='bootstrap' (and "
            "an estimator with a critic)."
        )


def value_loss_weight(vf_coef: float | None, estimator: str) -> float:
    """The weight of the value loss: `vf_coef`, or 0.1 with a critic and 0 without where it is None.

    Args:
        vf_coef: the weight, or None.
        estimator: name of the advantage estimator.
    """
    if vf_coef is not None:
        return vf_coef
    return 0.0 if estimator in CRITIC_FREE else 0.1


def normalizes_returns(normalize_returns: bool | None, vf_coef: float) -> bool:
    """Whether a critic learns normalised returns: as set, or by default where a critic learns.

    Args:
        normalize_returns: the setting, or None.
        vf_coef: weight of the value loss.
    """
    return vf_coef > 0 if normalize_returns is None else normalize_returns


PRECISIONS = ("float32", "bfloat16", "auto")
"""Values of `precision`; `"auto"` measures once and takes the faster."""


def check_precision(precision: str, dtype: str) -> None:
    """Raise ValueError unless `precision` is known and fits weights of `dtype`."""
    if precision not in PRECISIONS:
        allowed = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision={precision!r} is unknown: choose one of {allowed}.")
    if precision != "float32" and dtype != "float32":
        raise ValueError(
            f"precision={precision!r} computes the update of float32 weights in another precision, "
            f"but dtype={dtype!r} are the weights': leave precision at 'float32' (an update then "
            "computes in that of the weights), or leave dtype out of policy_kwargs."
        )


def check_trainable_dtype(dtype: str, is_adapted: bool) -> None:
    """Raise ValueError where weights would be trained that are too coarse to move.

    A weight in bfloat16 has 8 significant bits: an update of less than 1/256 of it, which Adam's
    are at usual learning rates, is rounded away. (Copies of the weights in float32 for the
    optimiser would cost the memory that the coarse ones save.)

    Args:
        dtype: of the actor's weights.
        is_adapted: whether adapters (LoRA) alone are trained, which are in float32.
    """
    if dtype in ("bfloat16", "float16") and not is_adapted:
        raise ValueError(
            f"dtype={dtype!r} are the weights that would be trained, and too coarse for it: most "
            "updates are less than half a unit in the last place of a weight, and are rounded "
            "away. Train adapters in float32 over frozen weights in it (lora_rank; in Python "
            "policy_kwargs={'lora': {'rank': 16}, …}), or keep float32 weights and compute in "
            "bfloat16 (precision='bfloat16')."
        )


def check_agent(settings: Mapping[str, Any]) -> None:
    """Check the settings of `TokenPPO`, each and in combination.

    The command line, the constructor and `load` all call this, so that they accept the same ones.

    Args:
        settings: name → value of its arguments. Schedules are not checked: their values are known
            only in training.

    Raises:
        ValueError: it says which, and what to do.
    """
    scheduled = {name for name in SCHEDULES if callable(settings[name])}
    check_ranges(settings, {n: r for n, r in PPO_RANGES.items() if n not in scheduled})
    if settings["normalize_advantage"] and settings["whiten_advantages"]:
        raise ValueError(
            "normalize_advantage (per minibatch) and whiten_advantages (per rollout) do the "
            "same thing twice: choose one."
        )
    policy_kwargs = settings["policy_kwargs"] or {}
    dtype = policy_kwargs.get("dtype", "float32")
    check_precision(settings["precision"], dtype)
    check_trainable_dtype(dtype, is_adapted=policy_kwargs.get("lora") is not None)
    KLPenalty(settings["kl_estimator"], settings["use_kl_loss"])
    names = ("kl_controller", "kl_target", "kl_horizon", "kl_dual_rate")
    kl_controller(*(settings[name] for name in names))
    _check_aggregation(settings["loss_aggregation"], settings["loss_divisor"])
    buffer_kwargs = settings["rollout_buffer_kwargs"] or {}
    estimator = buffer_kwargs.get("advantage_estimator", "gae")
    value_head = policy_kwargs.get("value_head", "shared")
    _check_critic(estimator, value_head, settings)
    _check_lambdas(estimator, buffer_kwargs, settings)


def _check_aggregation(aggregation: str, divisor: int | None) -> None:
    """Refuse an aggregation of the loss that does not exist, and a divisor that nothing uses."""
    if aggregation not in LOSS_AGGREGATIONS:
        allowed = ", ".join(map(repr, LOSS_AGGREGATIONS))
        raise ValueError(f"loss_aggregation={aggregation!r} is unknown: choose one of {allowed}.")
    if divisor is not None and aggregation != "constant":
        raise ValueError(
            f"loss_divisor={divisor!r} is without effect with loss_aggregation={aggregation!r}: "
            "leave it out, or use loss_aggregation='constant'."
        )


def _check_critic(estimator: str, value_head: str, settings: Mapping[str, Any]) -> None:
    """Refuse a critic that nothing uses, and settings without effect."""
    name, warmup = f"advantage_estimator={estimator!r}", settings["critic_warmup"]
    vf_coef = value_loss_weight(settings["vf_coef"], estimator)
    if estimator in CRITIC_FREE and value_head == "separate":
        raise ValueError(
            f"value_head='separate' is a critic, but {name} needs none: leave value_head out (on "
            "the command line, leave --value-head out), or use an estimator with a critic."
        )
    if estimator in CRITIC_FREE and vf_coef > 0:
        raise ValueError(
            f"vf_coef={vf_coef!r} trains a critic, but {name} needs none: use vf_coef=0, which is "
            "the default here, or an estimator with a critic."
        )
    if estimator in CRITIC_FREE and settings["normalize_returns"]:
        raise ValueError(
            f"normalize_returns=True is for a critic, but {name} needs none: leave "
            "normalize_returns out, or use an estimator with a critic."
        )
    if estimator in CRITIC_FREE and warmup:
        raise ValueError(
            f"critic_warmup={warmup} with {name}, which needs no critic: use critic_warmup=0, or "
            "an estimator with a critic."
        )
    epochs = settings["critic_epochs"]
    if epochs is not None and value_head != "separate":
        raise ValueError(
            f"critic_epochs={epochs} is for a critic with a trunk of its own: one on the actor's "
            "trunk learns from the actor's passes. Use value_head='separate', or leave "
            "critic_epochs out."
        )
    if epochs is not None and epochs > settings["n_epochs"]:
        raise ValueError(
            f"critic_epochs={epochs} with n_epochs={settings['n_epochs']}: the critic learns in "
            "the first of these passes. Give a number up to n_epochs, or leave critic_epochs out."
        )
    if settings["normalize_returns"] and vf_coef == 0:
        raise ValueError(
            "normalize_returns=True with vf_coef=0: no critic learns them. Leave normalize_returns "
            "out, or give vf_coef a positive weight."
        )
    if warmup and vf_coef == 0:
        raise ValueError(
            f"critic_warmup={warmup} with vf_coef=0: nothing would learn in these updates. Give "
            "vf_coef a positive weight, or use critic_warmup=0."
        )


def _check_lambdas(
    estimator: str, buffer_kwargs: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse a λ that nothing uses, or that another one replaces."""
    gae_lambda, alpha = settings["gae_lambda"], buffer_kwargs.get("gae_lambda_alpha")
    if estimator != "gae" and gae_lambda != DEFAULT_LAMBDA:
        raise ValueError(
            f"gae_lambda={gae_lambda!r} is without effect with advantage_estimator={estimator!r}: "
            f"leave it at its default of {DEFAULT_LAMBDA}, or use advantage_estimator='gae'."
        )
    if alpha is not None and gae_lambda != DEFAULT_LAMBDA:
        raise ValueError(
            f"gae_lambda={gae_lambda!r} is without effect with gae_lambda_alpha={alpha!r}, which "
            f"makes λ of a response's length: leave gae_lambda at its default of {DEFAULT_LAMBDA}, "
            "or leave gae_lambda_alpha out."
        )
    value_lambda, has_critic = buffer_kwargs.get("gae_lambda_value"), estimator not in CRITIC_FREE
    if value_lambda is not None and has_critic and settings["vf_coef"] == 0:
        raise ValueError(
            f"gae_lambda_value={value_lambda!r} with vf_coef=0: no critic learns these targets. "
            "Leave gae_lambda_value out, or give vf_coef a positive weight."
        )
    warmup_lambda = settings["critic_warmup_lambda"]
    if warmup_lambda is not None and not settings["critic_warmup"]:
        raise ValueError(
            f"critic_warmup_lambda={warmup_lambda!r} with critic_warmup=0: there are no updates "
            "that would use it. Give critic_warmup a number of updates, or leave "
            "critic_warmup_lambda out."
        )
