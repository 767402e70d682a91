"""Rewards: models learned from preferences, functions, and the scoring of episodes.

* `reward_model`: the classifier and its normalisation; `pairs`: preferences as token ids;
  `pair_truncation`: those that are too long; `preferences`: training on them; `preference_report`:
  how well rewards agree with them.
* `raw_rewards`: episodes in, rewards out; `functions` and `parameters`: functions of the user's;
  `sources`: whatever `reward_model=` may be; `scoring`: `EpisodeScorer`, scores and log π_ref.
"""

from tokenenv.rewards.pair_truncation import TruncationReport, truncated_pairs
from tokenenv.rewards.pairs import (
    PreferencePair,
    TokenPair,
    as_token_pair,
    read_pairs,
    seam_differences_of,
)
from tokenenv.rewards.preference_report import evaluate_preferences
from tokenenv.rewards.preferences import RewardTrainingSettings, train_reward_model
from tokenenv.rewards.raw_rewards import episodes_of
from tokenenv.rewards.reward_model import RewardModel, load_reward_model, new_reward_model
from tokenenv.rewards.scoring import (
    EpisodeScorer,
    EpisodeScores,
    build_reference,
    build_scorer,
)
from tokenenv.rewards.sources import (
    MAX_REWARD,
    Episode,
    FunctionReward,
    LearnedReward,
    RawRewards,
    RewardFunction,
    RewardSource,
    WeightedRewards,
    check_rewards,
    is_learned,
    learned_rewards,
    resolve_reward,
)

__all__ = [
    "MAX_REWARD",
    "Episode",
    "EpisodeScorer",
    "EpisodeScores",
    "FunctionReward",
    "LearnedReward",
    "PreferencePair",
    "RawRewards",
    "RewardFunction",
    "RewardModel",
    "RewardSource",
    "RewardTrainingSettings",
    "TokenPair",
    "TruncationReport",
    "WeightedRewards",
    "as_token_pair",
    "build_reference",
    "build_scorer",
    "check_rewards",
    "episodes_of",
    "evaluate_preferences",
    "is_learned",
    "learned_rewards",
    "load_reward_model",
    "new_reward_model",
    "read_pairs",
    "resolve_reward",
    "seam_differences_of",
    "train_reward_model",
    "truncated_pairs",
]
