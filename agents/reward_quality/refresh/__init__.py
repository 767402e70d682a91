"""The reward model learns on while the policy moves: fresh pairs, labels, training, normalisation.

- `copies.py`: reward models of a run's own, which may be trained without another run noticing.
- `annotators.py`: who labels: the task's gold reward, a function, a reward model, or people.
- `refresher.py`: one round, from pairs to a reward model on the old scale.
- `callback.py`: the rounds of a training.
"""

from agents.reward_quality.refresh.annotators import PEOPLE, annotator
from agents.reward_quality.refresh.callback import RefreshCallback
from agents.reward_quality.refresh.copies import OwnRewardModels
from agents.reward_quality.refresh.refresher import Refresh, RefreshSettings, RewardRefresher

__all__ = [
    "PEOPLE",
    "OwnRewardModels",
    "Refresh",
    "RefreshCallback",
    "RefreshSettings",
    "RewardRefresher",
    "annotator",
]
