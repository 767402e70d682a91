"""Pure numpy: nothing here knows an environment or a model.

* `rewards`: the reward of a token, in one place, and the two halves that it is paid in.
* `kl`: estimators of the KL divergence, controllers of β.
* `advantages`: GAE, groups, leave-one-out and plain returns per token.
"""

from tokenenv.maths.advantages import (
    ADVANTAGE_ESTIMATORS,
    CRITIC_FREE,
    GROUPED,
    ROUNDING,
    UNIFORM,
    batch_baseline_advantages,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    length_adaptive_lambdas,
    sample_deviation,
    token_advantages,
    whiten_rewards,
)
from tokenenv.maths.kl import (
    KL_COEF_RANGE,
    KL_CONTROLLERS,
    KL_ESTIMATORS,
    KL_SHAPINGS,
    AdaptiveKL,
    DualKL,
    FixedKL,
    KLController,
    bounded_kl_coef,
    full_kl,
    k1,
    k2,
    k3,
    kl_estimate,
)
from tokenenv.maths.rewards import actor_half, kl_penalties, reference_half, token_rewards

__all__ = [
    "ADVANTAGE_ESTIMATORS",
    "CRITIC_FREE",
    "GROUPED",
    "KL_COEF_RANGE",
    "KL_CONTROLLERS",
    "KL_ESTIMATORS",
    "KL_SHAPINGS",
    "ROUNDING",
    "UNIFORM",
    "AdaptiveKL",
    "DualKL",
    "FixedKL",
    "KLController",
    "actor_half",
    "batch_baseline_advantages",
    "bounded_kl_coef",
    "full_kl",
    "generalized_advantages",
    "group_advantages",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
    "kl_penalties",
    "leave_one_out_advantages",
    "length_adaptive_lambdas",
    "reference_half",
    "sample_deviation",
    "token_advantages",
    "token_rewards",
    "whiten_rewards",
]
