"""The last policy whose numbers were finite, for an update or a run that ends in NaN.

A learning rate that is much too high ruins the weights in one step, and the next step, or the next
rollout, shows it. The weights that are in use by then are finite perhaps, and no good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents.rollout import NonFiniteRollout, refuse_non_finite_rollout
from agents.scaling import ALONE
from tokenenv.models import NonFiniteNumbers

__all__ = ["LastGoodPolicy", "NonFiniteWeights", "is_finite"]


class NonFiniteWeights(NonFiniteNumbers):
    """Weights of the policy are NaN or infinite."""


class LastGoodPolicy(BaseCallback):
    """Keeps a copy of what is trained, in the memory of the host, from before every update.

    What sampled a rollout of finite numbers is good. With adapters, they alone are copied.

    Attributes:
        tokens: trained on before the copy was taken; None: there is none yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: int | None = None
        self._copies: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """The copy: a rollout may show later that the present weights are ruined."""
        return {"tokens": self.tokens, "copies": [copy.clone() for copy in self._copies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold the copy that `state_dict` gave."""
        self.tokens, self._copies = state["tokens"], []
        for stored in state["copies"]:
            self._copies.append(_on_host(stored).copy_(stored))

    def _on_training_start(self) -> None:
        """Let an update that is skipped put the weights of before it back."""
        self.model.put_back_weights = self.restore  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Every rollout but the first starts after an update."""
        self._before_rollout = self.num_timesteps

    def _on_rollout_end(self) -> None:
        """The rollout is complete, and its update comes next."""
        try:
            model: Any = self.model
            refuse_non_finite_rollout(model.rollout_buffer, getattr(model, "ranks", ALONE))
        except NonFiniteRollout:
            return
        tensors = self._tensors()
        if not self._copies:
            self._copies = [_on_host(tensor) for tensor in tensors]
        with torch.no_grad():
            for copy, tensor in zip(self._copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        if self.tokens is None or not getattr(self.model, "skipped_in_a_row", 0):
            self.tokens = self._before_rollout  # else no update was made since

    def _tensors(self) -> list[torch.Tensor]:
        """Everything that an update changes: trained weights, and the state of the critic's head.

        The order is that of the modules, the same each time.
        """
        return _trained(self.model.policy)

    def refuse_non_finite(self) -> None:
        """Raise NonFiniteWeights where the last update left weights that are not finite."""
        if is_finite(self.model.policy):
            return
        raise NonFiniteWeights(
            "weights of the policy are not finite after the last update: lower the learning rate."
        )

    def restore(self) -> bool:
        """Put the copy back in place of the present weights; False where there is none."""
        if self.tokens is None:
            return False
        tensors = self._tensors()
        if tensors[0].is_cuda:
            torch.cuda.synchronize(tensors[0].device)
        with torch.no_grad():
            for tensor, copy in zip(tensors, self._copies, strict=True):
                tensor.copy_(copy)
        return True


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Room for a copy that a GPU writes to while it goes on computing."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _trained(policy: Any) -> list[torch.Tensor]:
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    head = getattr(policy, "critic_head", None)
    return [*weights, *([] if head is None else head.buffers())]


def is_finite(policy: Any) -> bool:
    """Whether everything that an update changes of a policy is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _trained(policy))
