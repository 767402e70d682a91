"""A run of several ranks: `tokenrlhf train` under `torchrun` or `accelerate launch`.

The first rank makes the run (`agents.runs.training`): it writes the folder, evaluates and speaks.
The others train with it and write nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.checkpoints import read_checkpoint
from agents.config import TrainConfig
from agents.ppo import LastGoodPolicy, is_finite
from agents.rollout import RLHFCallback
from agents.runs.agent import build_agent, choose_threads
from agents.runs.resumed_settings import resumed
from agents.runs.saving import CheckpointCallback
from agents.scaling import (
    Ranks,
    digest_of_arrays,
    digest_of_texts,
    refuse_different,
    share_of,
)
from agents.vec_env import TokenVecEnv, make_vec_env
from tokenenv.addresses import names_server
from tokenenv.rewards import learned_rewards
from tokenenv.stop_signals import stop_signals

__all__ = [
    "CheckRanks",
    "FollowingRun",
    "OneDecision",
    "environment_of",
    "join_run",
    "of_rank",
]


def of_rank(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The settings by which a rank builds its part: its share of the environments, its device.

    Raises:
        ValueError: the environments can't be shared, or a setting is for one process.
    """
    if ranks.count == 1:
        return config
    if config.refresh_every:
        raise ValueError(
            f"refresh_every={config.refresh_every} changes the reward model in one process, and "
            f"there are {ranks.count}: train with one, or leave it out."
        )
    n_envs = share_of(config.n_envs, ranks, "n_envs")
    if n_envs % config.group_size and config.group_size > 1 and n_envs < config.group_size:
        raise ValueError(
            f"n_envs={config.n_envs} gives each of {ranks.count} ranks {n_envs} environments, and "
            f"a group has {config.group_size} responses: give at least "
            f"{config.group_size * ranks.count}."
        )
    return dataclasses.replace(config, n_envs=n_envs, device=ranks.device or config.device)


def environment_of(own: TrainConfig, ranks: Ranks, environment: dict[str, Any]) -> TokenVecEnv:
    """A rank's environments: of all ranks' together, number i has the seed `seed + i`.

    Args:
        own: the settings of the rank.
        ranks: this one among others.
        environment: the keyword arguments of `TokenEnv`.
    """
    seed = own.seed + ranks.rank * own.n_envs
    return make_vec_env(n_envs=own.n_envs, seed=seed, **environment)


def join_run(config: TrainConfig, ranks: Ranks, env: TokenVecEnv, model: Any) -> None:
    """Compare what the ranks see, and let their models train together.

    Raises:
        ValueError: they see different settings, files or weights; the first difference is named,
            on all ranks.
    """
    if ranks.count == 1:
        if config.shard_actor:
            model.join(ranks, True)
        return
    refuse_different(ranks, _seen(config, env, model), "the ranks can't train together")
    ranks.agree(lambda: model.join(ranks, config.shard_actor))


def _seen(config: TrainConfig, env: TokenVecEnv, model: Any) -> dict[str, Any]:
    """What has to be the same on all ranks: settings, and digests of files and weights."""
    settings = {name: value for name, value in config.as_json().items() if name != "out"}
    scorer = env.inner.mdp.scorer
    reference = scorer.reference.language_model
    weights = {
        "the weights of the policy": model.policy,
        "the weights of the reference": reference.model,
        **{
            f"the weights of the reward model {name}".strip(): learned.reward_model.model
            for name, learned in learned_rewards(scorer.reward).items()
        },
    }
    code = {
        f"the file of {name}": _digest_of_code(value.rpartition(":")[0])
        for name, value in config.names_of_code().items()
        if not names_server(value)
    }
    texts = {
        "the prompts": env.inner.mdp.prompts,
        "the tokenizer": sorted(reference.tokenizer.get_vocab().items()),
    }
    return {
        **settings,
        **{f"the version of {name}": version(name) for name in ("torch", "transformers")},
        **{name: digest_of_texts(value) for name, value in texts.items()},
        **code,
        **{name: digest_of_arrays(m.state_dict().items()) for name, m in weights.items()},
    }


def _digest_of_code(name: str) -> str:
    """Of a file, or of a module's."""
    origin: str | None = name
    if not name.endswith(".py"):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # said by whoever imports it
            spec = None
        origin = None if spec is None else spec.origin
    if origin is None or not Path(origin).is_file():
        return "no file"
    return digest_of_texts([Path(origin).read_text(encoding="utf-8", errors="replace")])


class OneDecision(BaseCallback):
    """Lets all ranks do what the first decides at a rollout's end: β, and whether training ends.

    Args:
        ranks: that train together.
        metrics: this rank's.
        stops: on the first rank: whether training is to end.
    """

    def __init__(
        self, ranks: Ranks, metrics: RLHFCallback, stops: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self.ranks, self.metrics, self._stops = ranks, metrics, stops
        self.stops = False

    def _on_step(self) -> bool:
        return not self.stops

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        was_multiplied = getattr(model, "kl_coef_was_multiplied", False)
        own = float(self.training_env.get_attr("kl_coef")[0]), was_multiplied, self._stops()
        kl_coef, was_multiplied, self.stops = self.ranks.of_first(own)
        if not self.ranks.is_first:
            self.metrics.take_kl_coef(kl_coef, was_multiplied)


class CheckRanks(BaseCallback):
    """Compares the weights of all ranks after every few updates.

    Args:
        ranks: that train together.
        every: updates between two; 0 for none.
    """

    def __init__(self, ranks: Ranks, every: int) -> None:
        super().__init__()
        self.ranks, self.every = ranks, every

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        model: Any = self.model
        model.between_rollouts.append(self._look)

    def _look(self) -> None:
        model: Any = self.model
        if not self.every or model.num_updates % self.every:
            return
        weights = digest_of_arrays(model.policy.state_dict().items())
        refuse_different(
            self.ranks,
            {"the weights of the policy": weights},
            f"after update {model.num_updates} the ranks have gone different ways, and what they "
            "learn from now on is of no use (memory that is at fault, or a function that changes "
            "weights on one rank alone); --resume goes on from the last checkpoint",
        )


class _Helping(CheckpointCallback):
    """Sends the first rank what its checkpoints need of this one, and writes nothing."""

    def _on_training_start(self) -> None:
        model: Any = self.model
        model.between_rollouts.append(self._after_rollout)
        if model.pending is not None and (name := CheckpointCallback.__name__) in (
            parts := model.pending.parts
        ):
            self.load_state_dict(parts[name])

    def save_state(self) -> bool:
        """Help where the first rank writes a checkpoint; see `CheckpointCallback.save_state`."""
        model: Any = self.model
        if not is_finite(model.policy):
            return False
        model.help_checkpoint()
        self.tried = model.num_timesteps
        return True

    def save(self, name: str) -> Path:
        """Nothing: the first rank does."""
        return self.folder


class FollowingRun:
    """A run on another rank than the first.

    Args:
        config: the same as the first rank's.
        ranks: this one among others.

    Raises:
        ValueError: on some rank the configuration can't be used; all raise it.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        ranks.agree(self._build)
        join_run(self.config, ranks, self.env, self.model)
        ranks.agree(lambda: None)  # the first rank opens the folder
        folder = ranks.of_first(None)
        self.goes_on_after: int | None = None
        ranks.agree(lambda: None if folder is None else self._go_on_from(Path(folder)))

    def _build(self) -> None:
        if self.config.resume is not None:
            self.config = resumed(self.config)
        own = of_rank(self.config, self.ranks)
        self.env = environment_of(own, self.ranks, own.environment())
        self.model = build_agent(own, self.env)
        choose_threads(own, self.model)

    def _go_on_from(self, folder: Path) -> None:
        try:
            checkpoint = read_checkpoint(folder)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error} Every rank reads the checkpoint: the run has to lie where all hosts see "
                "it."
            ) from error
        self.model.go_on_from(checkpoint)
        self.model.other_parts = frozenset(checkpoint.parts)
        self.goes_on_after = checkpoint.tokens

    def train(self) -> None:
        """Train with the others until the first rank has all it needs."""
        config, metrics = self.config, RLHFCallback()
        helping = _Helping(Path(), config.checkpoint_every)
        with stop_signals(), self.ranks.talking():
            self.model.learn(
                config.total_tokens - (self.goes_on_after or 0),
                callback=[
                    metrics,
                    LastGoodPolicy(),  # it speaks with the first rank's, before that one decides
                    OneDecision(self.ranks, metrics),
                    CheckRanks(self.ranks, config.check_ranks_every),
                    helping,
                ],
                reset_num_timesteps=self.goes_on_after is None,
            )
            self.ranks.barrier()
