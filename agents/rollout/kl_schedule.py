"""`KLSchedule`: β over a training: the environment has it, a controller moves it, SB3 saves it.

A controller's β is kept in the model's attribute `kl_coef`, which SB3 saves, so that the controller
of a loaded model goes on from there. What is paid is β of the environment.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from agents.settings import KLPenalty, check_controller, warn_of_bound
from tokenenv.maths import FixedKL, KLController, bounded_kl_coef

__all__ = ["KLSchedule"]


class KLSchedule:
    """β of an environment while a model trains in it.

    Args:
        model: an SB3 algorithm. Its attributes `kl_coef` (β that a controller or `multiply` has
            reached, None where β is fixed), `kl_coef_start` (β that the bounds are around) and
            `kl_coef_was_multiplied` are set, and saved with it.
        env: the environment that it trains in.
        controller: what moves β between rollouts.
    """

    def __init__(self, model: Any, env: VecEnv, controller: KLController) -> None:
        self.model, self.env, self.controller = model, env, controller

    def kl_coef(self) -> float:
        """β, from the environment."""
        return float(self.env.get_attr("kl_coef")[0])

    def begin(self, penalty: KLPenalty, kl_shaping: str) -> None:
        """Give the environment the β of a loaded model, and check what it is used for.

        Args:
            penalty: the KL penalty of the training.
            kl_shaping: the environment's.

        Raises:
            ValueError: the penalty would be paid twice or not at all, or the controller can't move
                this β.
        """
        saved = getattr(self.model, "kl_coef", None)
        # SB3 saves the model's attributes, and not those of its policy: without the mark, this
        # model was loaded. In one that was not, β is what the environment says, as always.
        policy = self.model.policy
        is_loaded = not hasattr(policy, "kl_coef_is_in_the_environment")
        policy.kl_coef_is_in_the_environment = True
        moves = not isinstance(self.controller, FixedKL) or self._was_multiplied
        if is_loaded and saved is not None and moves:
            self.env.env_method("set_kl_coef", saved)
        penalty.check_kl_shaping(kl_shaping, self.kl_coef())
        check_controller(self.controller, self.kl_coef())
        # Where the environment has another β than the model had, training starts there.
        if getattr(self.model, "kl_coef_start", None) is None or saved != self.kl_coef():
            self.model.kl_coef_start = self.kl_coef()
        self._store_in_model()

    def end_rollout(self, kl: float | None, num_episodes: int) -> None:
        """Let the controller set β for the next rollout; the rewards of this one are final by now.

        Args:
            kl: per response, the mean over the episodes that finished; None where none did.
            num_episodes: how many finished.
        """
        # The KL of an actor that has not moved yet contains no information about β.
        if kl is not None and not getattr(self.model, "actor_is_unchanged", False):
            before, start = self.kl_coef(), self.model.kl_coef_start
            kl_coef = self.controller.update(before, kl, num_episodes, start)
            if kl_coef != before:
                self.env.env_method("set_kl_coef", kl_coef)
                warn_of_bound(kl_coef, start, kl, self.controller)
        self._store_in_model()

    def multiply(self, factor: float) -> float:
        """Multiply β for the next rollout, once the rewards of this one are final; returns it.

        Where β is fixed it stays there, in a loaded model too. A controller goes on from there.

        Args:
            factor: positive; the result is `bounded_kl_coef`.
        """
        kl_coef = bounded_kl_coef(self.kl_coef() * factor, self.model.kl_coef_start)
        self.env.env_method("set_kl_coef", kl_coef)
        self.model.kl_coef_was_multiplied = True
        self._store_in_model()
        return kl_coef

    def take(self, kl_coef: float, was_multiplied: bool) -> None:
        """Let β be what it is where it was decided."""
        if kl_coef != self.kl_coef():
            self.env.env_method("set_kl_coef", kl_coef)
        self.model.kl_coef_was_multiplied = was_multiplied
        self._store_in_model()

    @property
    def _was_multiplied(self) -> bool:
        return getattr(self.model, "kl_coef_was_multiplied", False)

    def _store_in_model(self) -> None:
        """Let the model save a β that was moved; one that never was is the environment's."""
        is_fixed = isinstance(self.controller, FixedKL) and not self._was_multiplied
        self.model.kl_coef = None if is_fixed else self.kl_coef()
