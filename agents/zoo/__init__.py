"""Files of settings, and the zoo: those that were tuned, a file each.

- `settings_files.py`: the settings of `tokenrlhf train` from any file.
- `train_settings.py`: the files of the zoo for `tokenrlhf train --config zoo:NAME`.
- `environments.py` `learners.py`: its files for `tokenrlhf compare`, ENVIRONMENT.yaml, and what may
  stand in them about an agent.
- `command.py` `config.py`: `tokenrlhf zoo`, which shows them.
"""

from agents.zoo.environments import EnvironmentSettings, environment_settings
from agents.zoo.train_settings import require_task, settings_at, train_names, train_settings

__all__ = [
    "EnvironmentSettings",
    "environment_settings",
    "require_task",
    "settings_at",
    "train_names",
    "train_settings",
]
