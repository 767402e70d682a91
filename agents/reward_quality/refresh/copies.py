"""Reward models of a run's own: what it trains, nobody else reads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenenv.addresses import names_server
from tokenenv.rewards import load_reward_model
from tokenenv.settings import EnvSettings
from tokenenv.tasks import load_task, names_code

__all__ = ["OwnRewardModels"]


class OwnRewardModels:
    """Copies of an environment's reward models, in a temporary folder until `close`.

    Loaded reward models are shared by name over the whole process, so that one that learns would
    change every environment that uses it. These have names that nobody else knows.

    Args:
        environment: keyword arguments of `TokenEnv`; `reward_model` may be left to the task.

    Attributes:
        environment: the same, with the copies as `reward_model`; functions stay what they are.

    Raises:
        ValueError: the arguments can't be used, none of the rewards is a reward model, several of
            them are summed up with weights, or weights are not stored in float32.
    """

    def __init__(self, environment: dict[str, Any]) -> None:
        settings = EnvSettings(**environment)
        resolved = settings.resolved(load_task(settings.task))
        rewards = resolved.reward_model
        several = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
        if not any(_is_model(one) for one in several):
            raise ValueError(
                "a reward model is refreshed by labels of fresh pairs, and the reward is a "
                "function, which learns nothing, or on a server, where nothing here can teach it: "
                "leave refresh_every (--refresh-every) out."
            )
        models = sum(map(_is_model, several))
        weights = resolved.reward_weights or [1.0] * len(several)
        is_paid = all(w > 0 for one, w in zip(several, weights, strict=True) if _is_model(one))
        if (models > 1 and resolved.reward_combine == "sum") or not is_paid:
            raise ValueError(
                f"{models} reward models in a weighted sum (weights {list(weights)!r:.60}) mean "
                "different things, and the labels of a refresh say which response is the better "
                "one as a whole: all of them would learn the same. Refresh one reward model, with "
                "a positive weight, or several that --combine takes the mean or the worst of."
            )
        if resolved.dtype != "float32":
            raise ValueError(
                f"dtype={resolved.dtype!r}: a reward model that is refreshed learns in float32; "
                "leave dtype out, or refresh_every."
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tokenrlhf-reward-models-")
        try:
            copies = [
                self._copy(str(one), resolved.device) if _is_model(one) else one for one in several
            ]
        except BaseException:
            self.close()
            raise
        self.environment = {
            **environment,
            "reward_model": copies if isinstance(rewards, list | tuple) else copies[0],
            "reward_combine": resolved.reward_combine,
        }

    def _copy(self, name: str, device: str) -> str:
        """The folder of a copy, with the last part of the name, by which rewards are logged."""
        model, root = load_reward_model(name, device), Path(self._folder.name)
        last = Path(name).resolve().name if Path(name).exists() else name.rpartition("/")[2]
        folder = root / str(sum(1 for _ in root.iterdir())) / (last or "reward_model")
        model.save_pretrained(folder)
        return str(folder)

    def close(self) -> None:
        """Remove the folder; models that are loaded stay what they are."""
        self._folder.cleanup()

    def __enter__(self) -> OwnRewardModels:
        """The copies."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder."""
        self.close()


def _is_model(reward: Any) -> bool:
    return isinstance(reward, str) and not names_code(reward) and not names_server(reward)
