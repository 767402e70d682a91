"""What one optimiser step does to each token's log-probability: predicted, and what really happens.

To first order the step Δθ changes log π(a|s) by ⟨∇ log π(a|s), Δθ⟩. Adam moves every weight by
about the learning rate whatever the gradient's size, and with momentum, so that Δθ is no multiple
of the gradient: the prediction takes the step that the optimiser takes. All of it in float64, on
copies of the policy and its optimiser.

Axes: `B` responses, `n` tokens of all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.credit.exact_strength import (
    check_size,
    differentiable_log_probs,
    token_gradients,
    trainable,
)
from agents.policy import LMActorCriticPolicy

__all__ = ["StepEffect", "step_effect"]


@dataclass(frozen=True, slots=True)
class StepEffect:
    """The change of n tokens' log-probabilities by one step of the optimiser.

    Attributes:
        predicted: (n,) float64, ⟨∇ log π(a|s), Δθ⟩ at the weights before the step.
        actual: (n,) float64, log π after the step less log π before it.
    """

    predicted: np.ndarray
    actual: np.ndarray

    @property
    def correlation(self) -> float:
        """Pearson's, of the two; NaN where one of them does not vary."""
        if not (np.ptp(self.predicted) > 0 and np.ptp(self.actual) > 0):
            return float("nan")
        return float(np.corrcoef(self.predicted, self.actual)[0, 1])


def step_effect(
    policy: LMActorCriticPolicy,
    prefixes: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    weights: np.ndarray,
    learning_rate: float | None = None,
) -> StepEffect:
    """The effect of one step on −Σ_t w_t·log π(a_t|s_t)/n, the policy's loss with w held fixed.

    Args:
        policy: with its optimiser, whose momentum is used; neither is changed.
        prefixes: B arrays of the token ids before each response.
        responses: B arrays of token ids, n in all.
        weights: (n,) w_t: whitened advantage × ratio, 0 where the clip stops the gradient.
        learning_rate: of the step; None: the optimiser's present one.

    Raises:
        ValueError: the actor is too large for a gradient of every token.
    """
    check_size(policy)
    twin, optimizer = _in_float64(policy, learning_rate)
    before = [parameter.detach().clone() for parameter in trainable(twin)]
    start = differentiable_log_probs(twin, prefixes, responses)
    loss = -(torch.as_tensor(weights, device=start.device) * start).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    change = torch.cat(
        [
            (after.detach() - old).reshape(-1)
            for after, old in zip(trainable(twin), before, strict=True)
        ]
    )
    with torch.no_grad():
        end = differentiable_log_probs(twin, prefixes, responses)
        for parameter, old in zip(trainable(twin), before, strict=True):
            parameter.copy_(old)
    # One response after another: all gradients together would not fit.
    predicted = torch.cat([block @ change for block in token_gradients(twin, prefixes, responses)])
    actual = end - start.detach()
    return StepEffect(predicted.cpu().numpy(), actual.cpu().numpy())


def _in_float64(
    policy: LMActorCriticPolicy, learning_rate: float | None
) -> tuple[LMActorCriticPolicy, torch.optim.Optimizer]:
    """A copy of the policy in float64, and of its optimiser for it."""
    twin = copy.deepcopy(policy).double()
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "fused": None, "foreach": None}
        for group in policy.optimizer.param_groups
    ]
    optimizer = type(policy.optimizer)(twin.parameters(), lr=groups[0]["lr"])  # type: ignore[call-arg]
    state = copy.deepcopy(policy.optimizer.state_dict())
    optimizer.load_state_dict(state)  # its moments become float64, as the parameters are
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)
        if learning_rate is not None:
            group["lr"] = learning_rate
    return twin, optimizer
