"""Pure numpy: nothing here knows an environment or a model.

* `kl`: estimators of the KL divergence, its two halves in the reward, controllers of β.
* `advantages`: GAE, groups, leave-one-out and plain returns per token.
"""

from tokenenv.maths.advantages import (
    ADVANTAGE_ESTIMATORS,
    CRITIC_FREE,
    GROUPED,
    ROUNDING,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
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
    actor_half,
    bounded_kl_coef,
    full_kl,
    k1,
    k2,
    k3,
    kl_estimate,
    reference_half,
)

__all__ = [
    "ADVANTAGE_ESTIMATORS",
    "CRITIC_FREE",
    "GROUPED",
    "KL_COEF_RANGE",
    "KL_CONTROLLERS",
    "KL_ESTIMATORS",
    "KL_SHAPINGS",
    "ROUNDING",
    "AdaptiveKL",
    "DualKL",
    "FixedKL",
    "KLController",
    "actor_half",
    "bounded_kl_coef",
    "full_kl",
    "generalized_advantages",
    "group_advantages",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
    "leave_one_out_advantages",
    "reference_half",
    "sample_deviation",
    "token_advantages",
    "whiten_rewards",
]
