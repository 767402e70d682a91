"""One update of PPO.

* `ppo`: `TokenPPO`: its settings, and what it changes of SB3's PPO; `parts`: which policy and which
  buffer they need; `learning_rates`: how the rate falls.
* `checkpointed`: checkpoints of a training, which SB3's PPO has not: `whole_state`, what they hold
  and how a training goes on; `stored_settings`, the arguments as JSON.
* `update`: one update, top down, beside SB3's `PPO.train`.
* `last_good`: the policy of before the last update; `skipping`: updates that are left out.
* `many_ranks`: an update of several processes together; `minibatches`, which they take together;
  `states_of_ranks`, their checkpoints.
* `losses`: PPO's losses, the KL loss, whitening; `precision`: autocast, and what ratios divide by.
"""

from agents.ppo.last_good import LastGoodPolicy, NonFiniteWeights, is_finite
from agents.ppo.learning_rates import Decay
from agents.ppo.losses import aggregation_weights
from agents.ppo.ppo import TokenPPO
from agents.ppo.precision import computing_in
from agents.ppo.update import NonFiniteStep, Update

__all__ = [
    "Decay",
    "LastGoodPolicy",
    "NonFiniteStep",
    "NonFiniteWeights",
    "TokenPPO",
    "Update",
    "aggregation_weights",
    "computing_in",
    "is_finite",
]
