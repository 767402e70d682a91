"""Rewards: models learned from preferences, functions, and the scoring of episodes.

* `reward_model`: the classifier and its normalisation; `features`: what its head reads.
* `pairs`: preferences as token ids; `pair_truncation`: those that are too long; `pair_split`: which
  of them are held out.
* `preferences`: training on pairs and reporting on it; `training_settings`: how; `preference_loss`,
  `pair_forward`, `pair_training`: the loss, both sides of a pair in one forward, the steps;
  `preference_report`, `preference_groups`: how well rewards agree with preferences, and where;
  `reference_samples`: scores of a reference's responses; `ensembles`: the report on several.
* `raw_rewards`: episodes in, rewards out; `functions` and `parameters`: functions of the user's;
  `texts`: texts in the place of episodes, for them; `remote`: reward models on a server;
  `combined`: several reward models as one; `sources`: whatever `reward_model=` may be; `scoring`:
  `EpisodeScorer`, scores and log π_ref.
"""

from tokenenv.rewards.combined import CombinedRewards, reference_episodes
from tokenenv.rewards.ensembles import ensemble_report, held_out_scores
from tokenenv.rewards.features import pooled_features
from tokenenv.rewards.functions import response_length
from tokenenv.rewards.pair_split import PairSplit, split_pairs
from tokenenv.rewards.pair_training import PairEvaluation, TrainingRecord
from tokenenv.rewards.pair_truncation import TruncationReport, truncated_pairs
from tokenenv.rewards.pairs import (
    PreferencePair,
    TokenPair,
    as_token_pair,
    read_pairs,
    seam_differences_of,
)
from tokenenv.rewards.preference_groups import accuracy_interval, distribution
from tokenenv.rewards.preference_report import HeldOutReport, evaluate_preferences
from tokenenv.rewards.preferences import (
    RewardTrainingError,
    fit_reward_model,
    train_reward_model,
)
from tokenenv.rewards.raw_rewards import NonFiniteReward, episodes_of
from tokenenv.rewards.reference_samples import check_shared_tokenizer, reference_rewards
from tokenenv.rewards.remote import RemoteReward
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
from tokenenv.rewards.texts import characters, characters_as_model
from tokenenv.rewards.training_settings import RewardTrainingSettings

__all__ = [
    "MAX_REWARD",
    "CombinedRewards",
    "Episode",
    "EpisodeScorer",
    "EpisodeScores",
    "FunctionReward",
    "HeldOutReport",
    "LearnedReward",
    "NonFiniteReward",
    "PairEvaluation",
    "PairSplit",
    "PreferencePair",
    "RawRewards",
    "RemoteReward",
    "RewardFunction",
    "RewardModel",
    "RewardSource",
    "RewardTrainingError",
    "RewardTrainingSettings",
    "TokenPair",
    "TrainingRecord",
    "TruncationReport",
    "WeightedRewards",
    "accuracy_interval",
    "as_token_pair",
    "build_reference",
    "build_scorer",
    "characters",
    "characters_as_model",
    "check_rewards",
    "check_shared_tokenizer",
    "distribution",
    "ensemble_report",
    "episodes_of",
    "evaluate_preferences",
    "fit_reward_model",
    "held_out_scores",
    "is_learned",
    "learned_rewards",
    "load_reward_model",
    "new_reward_model",
    "pooled_features",
    "read_pairs",
    "reference_episodes",
    "reference_rewards",
    "resolve_reward",
    "response_length",
    "seam_differences_of",
    "split_pairs",
    "train_reward_model",
    "truncated_pairs",
]
