"""`CheckpointedPPO`: SB3's PPO that can be saved between two rollouts, and goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from agents.checkpoints import Checkpoint, read_checkpoint
from agents.ppo.many_ranks import StepsOfRanks, join
from agents.ppo.stored_settings import arguments_of
from agents.ppo.whole_state import Resumption, go_on_from, help_checkpoint, save_checkpoint
from agents.scaling import ALONE, Ranks
from agents.scaling.trained import Trained

__all__ = ["CheckpointedPPO"]


class CheckpointedPPO(PPO):
    """What `TokenPPO` adds to SB3's PPO for checkpoints; its arguments are PPO's.

    Attributes:
        num_rollouts: of this `learn`, and of those that it goes on with.
        on_updated: called with the `Update` after each one, while the buffer still holds its
            rollout; None for nothing. It is not saved.
        on_skipped: likewise, called with the `Update` that is left out and the error.
        put_back_weights: a function that gives the policy the weights of before the last update;
            `LastGoodPolicy` lends it.
        between_rollouts: functions that are called after every update, or the rollout that had
            nothing to learn from: then a checkpoint can be taken. Empty at the start of `learn`.
        callback: of the last `learn`.
        pending: a checkpoint that the next `learn(reset_num_timesteps=False)` goes on from.
        other_parts: names of parts of it that belong to neither the model nor a callback.
        ranks: that train it together; `ALONE` unless `join` was called.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.num_rollouts = 0
        self.on_updated: Callable[[Any], None] | None = None
        self.on_skipped: Callable[[Any, Exception], None] | None = None
        self.put_back_weights: Callable[[], bool] | None = None
        self.between_rollouts: list[Callable[[], None]] = []
        self.callback: BaseCallback | None = None
        self.pending: Checkpoint | None = None
        self.other_parts: frozenset[str] = frozenset()
        self.ranks: Ranks = ALONE
        self.trained_by_ranks: Trained | None = None
        self.rollouts_go_on = True
        super().__init__(*args, **kwargs)

    # Many processes ------------------------------------------------------------------------------

    def join(self, ranks: Ranks, shard: bool = False) -> None:
        """Train together with the other ranks from now on: each of them calls this.

        Every rank has an environment of its own, and what one rank would do with all of them comes
        out: statistics, gradients, β and metrics are over all ranks, and steps are counted over
        all. The first rank's weights are taken by all; the generators of every rank are seeded
        anew, each in another way, but for the first's.

        Args:
            ranks: from `agents.scaling.launched_ranks`.
            shard: let `fully_shard` (FSDP2) shard the training's weights, gradients and the
                optimiser's state; a copy of the weights stays whole on every rank, for sampling.

        Raises:
            ValueError: policy or buffer are others than `LMActorCriticPolicy` and
                `EpisodeRolloutBuffer`, or a setting can't be combined with `shard`.
        """
        join(self, ranks, shard)

    @property
    def trained(self) -> Trained:
        """What an update trains: the policy, alone or with the other ranks."""
        policy: Any = self.policy
        return self.trained_by_ranks or Trained(policy, policy.optimizer)

    # The parts of `learn` ------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        """SB3's; a training that begins anew goes on from nothing."""
        self.num_rollouts, self.between_rollouts, self.put_back_weights = 0, [], None
        if reset_num_timesteps:
            self.pending = None
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """SB3's; the last of the callbacks lets the others go on from a checkpoint."""
        if self.pending is not None:
            callbacks = callback if isinstance(callback, list) else [callback] if callback else []
            callback = [*callbacks, Resumption(self.pending)]
        if self.ranks.count > 1:
            callbacks = callback if isinstance(callback, list) else [callback] if callback else []
            callback = [StepsOfRanks(self.ranks), *callbacks]
        self.callback = super()._init_callback(callback, progress_bar)
        return self.callback

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """SB3's, counted."""
        self.num_rollouts += 1
        return super().collect_rollouts(*args, **kwargs)

    def end_rollout(self) -> None:
        """Call what is to be called between two rollouts."""
        for call in self.between_rollouts:
            call()

    def dump_logs(self, iteration: int = 0) -> None:
        """SB3's; iterations are counted on where `learn` goes on from a checkpoint."""
        super().dump_logs(self.num_rollouts if iteration else 0)

    # Files ---------------------------------------------------------------------------------------

    def save_checkpoint(self, folder: str | Path, parts: Mapping[str, Any] | None = None) -> None:
        """Write everything that a training goes on from into a folder; nothing of it is pickled.

        Between two rollouts, as `CheckpointCallback` calls it. `TokenPPO.load(folder, env)` and
        `learn(…, reset_num_timesteps=False)` go on from it, on a CPU to the bit.

        Args:
            folder: it holds all of it, or is as it was.
            parts: name → state of what else is to be in it.

        Raises:
            ValueError: a rollout is under way; or environment, buffer or policy are others than
                `agents.make_vec_env`'s, `EpisodeRolloutBuffer` and `LMActorCriticPolicy`.
            OSError: it can't be written.
        """
        save_checkpoint(self, Path(folder), parts or {})

    def help_checkpoint(self) -> None:
        """On every rank but the first: send it what its `save_checkpoint` waits for."""
        help_checkpoint(self)

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's state over; the next `learn(reset_num_timesteps=False)` goes on.

        It may be of any number of ranks. As many go on to the bit; others begin their rollouts
        afresh, with everything that was learned, which is said. After `join`, where there are
        several.

        Args:
            checkpoint: of a model with the same settings, in an environment of the same arguments.

        Raises:
            ValueError: policy, optimiser, environment or buffer are others; it is named.
        """
        go_on_from(self, checkpoint)

    @classmethod
    def load(
        cls,
        path: Any,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Any:
        """A model from the folder of a checkpoint, or from SB3's archive.

        Args:
            path: a checkpoint's folder, of which nothing is unpickled: `env`, which must be made as
                the one that it was saved with, then goes on with its episodes, and so does
                `learn(…, reset_num_timesteps=False)`. Or an archive, which is unpickled and can run
                any code: see SB3's `load` for it and for the arguments below.
            env: needed for a checkpoint.
            device: a torch device or "auto".
            custom_objects: of an archive.
            print_system_info: of an archive.
            force_reset: of an archive.
            **kwargs: settings in the place of those that were saved.

        Raises:
            ValueError: the checkpoint is not whole, has another version, or does not fit `env`.
        """
        if not (isinstance(path, str | Path) and Path(path).is_dir()):
            return super().load(
                path, env, device, custom_objects, print_system_info, force_reset, **kwargs
            )
        checkpoint = read_checkpoint(Path(path))
        if env is None:
            raise ValueError(
                f"the checkpoint {str(path)!r} goes on with the episodes of its environment: pass "
                "env=…, made with the arguments that it had (agents.make_vec_env)."
            )
        settings = checkpoint.parts["model"]["settings"]
        arguments = arguments_of(settings, kwargs, f"the checkpoint {str(path)!r}")
        model = cls(env=env, device=device, **arguments)
        model.go_on_from(checkpoint)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a copy's updates are nobody's business."""
        return {**self.__dict__, **_lent()}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_lent()]


def _lent() -> dict[str, Any]:
    """Attributes of a model that neither archives nor copies have, as a new model has them."""
    nothing = dict.fromkeys(("on_updated", "on_skipped", "put_back_weights", "callback", "pending"))
    alone = {"ranks": ALONE, "trained_by_ranks": None, "rollouts_go_on": True}
    return {**nothing, **alone, "between_rollouts": [], "other_parts": frozenset()}
