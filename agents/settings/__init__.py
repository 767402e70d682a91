"""The settings of an agent: their ranges, names and combinations. Imports no torch.

* `ranges`: ranges of PPO's numbers, and which settings exclude one another; `estimators`: those of
  the buffer.
* `kl`: the KL penalty and the controllers of β, by name.
* `train_checks`: which settings of `tokenrlhf train` go together.
* `names`: of runs; `figure_files`: where figures may be drawn.
* `json_values`: settings read from a JSON file, checked against their dataclass.
"""

from agents.settings.estimators import DEFAULT_LAMBDA, DEFAULT_VINE_SAMPLES, check_estimator
from agents.settings.figure_files import FIGURE_FORMATS, check_figure
from agents.settings.json_values import settings_from_json
from agents.settings.kl import (
    DEFAULT_DUAL_RATE,
    DEFAULT_HORIZON,
    KLPenalty,
    check_controller,
    kl_controller,
    resolve_kl,
    warn_of_bound,
)
from agents.settings.names import run_name
from agents.settings.ranges import (
    LATER_SETTINGS,
    LOSS_AGGREGATIONS,
    PPO_CHOICES,
    PPO_RANGES,
    check_agent,
    check_rollout_length,
    check_trainable_dtype,
    normalizes_returns,
    value_loss_weight,
)
from agents.settings.sweep import parse_sweep
from agents.settings.train_checks import LR_SCHEDULES, check_train_settings

__all__ = [
    "DEFAULT_DUAL_RATE",
    "DEFAULT_HORIZON",
    "DEFAULT_LAMBDA",
    "DEFAULT_VINE_SAMPLES",
    "FIGURE_FORMATS",
    "LATER_SETTINGS",
    "LOSS_AGGREGATIONS",
    "LR_SCHEDULES",
    "PPO_CHOICES",
    "PPO_RANGES",
    "KLPenalty",
    "check_agent",
    "check_controller",
    "check_estimator",
    "check_figure",
    "check_rollout_length",
    "check_train_settings",
    "check_trainable_dtype",
    "kl_controller",
    "normalizes_returns",
    "parse_sweep",
    "resolve_kl",
    "run_name",
    "settings_from_json",
    "value_loss_weight",
    "warn_of_bound",
]
