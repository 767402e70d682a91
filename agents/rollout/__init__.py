"""From steps to advantages: what happens between `env.step` and the update.

* `buffer`: `EpisodeRolloutBuffer`, whole sequences; `segments`: one environment's steps of an
  episode in a rollout; `groups`: responses to one prompt that wait for one another.
* `rewards`: the agent's side of the reward: deferred scores, and KL penalties other than k1.
* `vine`: values without a critic, from continuations of every state.
* `callback`: `RLHFCallback`, which completes rewards, binds buffer and environment, and logs.
* `kl_schedule`: `KLSchedule`, β between rollouts: controller, environment, saved model.
* `metrics`: records of finished episodes, and the `rlhf/` metrics computed from them.
* `compatibility`: do environment, buffer and policy fit? `agreement`: do policy and environment
  still see the same episode? `sampling_check`: do sampling and full forwards agree?
* `spread`: do scores vary? `numbers`: what a rollout's numbers must be before an update;
  `call_stack`: which method of an algorithm is running.
"""

from agents.rollout.buffer import EpisodeRolloutBuffer
from agents.rollout.callback import RLHFCallback, has_rlhf_callback
from agents.rollout.compatibility import check_plain_environment, find_env_settings
from agents.rollout.numbers import (
    NonFiniteRollout,
    advantage_magnitude,
    refuse_non_finite_rollout,
)
from agents.rollout.vine import VineValues

__all__ = [
    "EpisodeRolloutBuffer",
    "NonFiniteRollout",
    "RLHFCallback",
    "VineValues",
    "advantage_magnitude",
    "check_plain_environment",
    "find_env_settings",
    "has_rlhf_callback",
    "refuse_non_finite_rollout",
]
