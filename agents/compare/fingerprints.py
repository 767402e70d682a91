"""What kind of MDP an environment is, measured by rollouts of an untrained policy.

The untrained policy is the one that learning starts from: the reference on raw token ids
(`LMActorCriticPolicy`), SB3's `MlpPolicy` everywhere else, which is nearly uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed

from agents.compare.environments import RAW_TOKENS, kind_of, token_mdp
from agents.compare.policy_gradient import GradientNoise, measure_gradients
from agents.compare.rollouts import Rollout, Start, play, replay, resume, starts
from agents.policy import LMActorCriticPolicy

__all__ = [
    "Fingerprint",
    "credit_delay",
    "measure_fingerprint",
    "transition_randomness",
    "untrained_policy",
]


@dataclass(frozen=True)
class Fingerprint:
    """The measurements; all but `actions` are of the untrained policy, undiscounted.

    Attributes:
        horizon: mean steps of an episode.
        actions: number of actions |A|.
        branching: exp of the mean entropy (nats) of the policy over the states that it visits: how
            many actions it really chooses among.
        reward_density: share of the steps that pay a reward other than 0.
        credit_delay: steps between an action and the reward that it earns, see `credit_delay`; None
            where no action changed any reward.
        influence: share of the actions whose replacement changed any reward at all.
        transition_randomness: see `transition_randomness`; 0 is a deterministic MDP.
        return_mean: mean of the return.
        return_variance: variance of the return, in units of reward squared.
        gradient: signal-to-noise of the policy gradient with and without a critic.
        episodes: that it was measured on.
    """

    horizon: float
    actions: int
    branching: float
    reward_density: float
    credit_delay: float | None
    influence: float
    transition_randomness: float
    return_mean: float
    return_variance: float
    gradient: GradientNoise
    episodes: int


class Sampler:
    """A policy that draws its actions from given uniform numbers, so that two runs can share them.

    Args:
        policy: of SB3, over discrete actions.
        seed: of the uniform numbers.

    Attributes:
        entropies: of the policy at every state where it chose, nats.
    """

    def __init__(self, policy: ActorCriticPolicy, seed: int) -> None:
        self.policy = policy
        self.entropies: list[float] = []
        assert isinstance(policy.action_space, spaces.Discrete)
        self._first = int(policy.action_space.start)
        self._seed = seed
        self.begin(0)

    def begin(self, episode: int, step: int = 0) -> None:
        """Use the numbers of an episode, from a step on."""
        self._rng = np.random.default_rng([self._seed, episode])
        self._rng.random(step)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """(A,) π(·|s), float64."""
        tensor, _ = self.policy.obs_to_tensor(np.asarray(observation)[None])
        with torch.no_grad():
            distribution: Any = self.policy.get_distribution(tensor).distribution
        probabilities = np.exp(distribution.logits[0].double().cpu().numpy())
        return probabilities / probabilities.sum()

    def __call__(self, observation: np.ndarray) -> np.int64:
        """The action of the next uniform number, by the inverse of the distribution function."""
        probabilities = self.probabilities(observation)
        positive = probabilities[probabilities > 0]
        self.entropies.append(float(-(positive * np.log(positive)).sum()))
        return self._action(probabilities)

    def other(self, observation: np.ndarray, action: np.int64) -> np.int64:
        """Another action than `action`, drawn from π(·|s) without it."""
        probabilities = self.probabilities(observation)
        probabilities[int(action) - self._first] = 0.0
        total = probabilities.sum()
        if total <= 0:  # π is certain: any other
            probabilities = np.ones(len(probabilities))
            probabilities[int(action) - self._first] = 0.0
            total = probabilities.sum()
        return self._action(probabilities / total)

    def _action(self, probabilities: np.ndarray) -> np.int64:
        last = int(np.flatnonzero(probabilities)[-1])
        index = int(np.searchsorted(probabilities.cumsum(), self._rng.random(), side="right"))
        return np.int64(min(index, last) + self._first)


def untrained_policy(env: gym.Env, seed: int = 0) -> ActorCriticPolicy:
    """The policy that learning starts from in `env`."""
    set_random_seed(seed)
    mdp = token_mdp(env)
    if mdp is not None and kind_of(env) == RAW_TOKENS:
        return LMActorCriticPolicy(
            env.observation_space,
            env.action_space,
            lambda _: 0.0,
            actor=mdp.settings.reference,
            temperature=mdp.settings.temperature,
        )
    return ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 0.0)


def measure_fingerprint(
    env: gym.Env, episodes: int, seed: int = 0, policy: ActorCriticPolicy | None = None
) -> Fingerprint:
    """The fingerprint of an environment.

    Args:
        env: with discrete actions.
        episodes: to play; n ≥ 4. One action of each is replaced for the delay.
        seed: of everything.
        policy: another than the untrained one.
    """
    policy = untrained_policy(env, seed) if policy is None else policy
    policy.set_training_mode(False)
    sampler = Sampler(policy, seed)
    begun = list(starts(env, episodes, seed))
    rollouts = []
    for number, start in enumerate(begun):
        sampler.begin(number)
        rollouts.append(play(env, sampler, start))
    branching = float(np.exp(np.mean(sampler.entropies)))
    delay, influence = credit_delay(env, sampler, begun, rollouts, seed)
    returns = np.array([rollout.plain_return for rollout in rollouts])
    assert isinstance(env.action_space, spaces.Discrete)
    return Fingerprint(
        horizon=float(np.mean([len(rollout) for rollout in rollouts])),
        actions=int(env.action_space.n),
        branching=branching,
        reward_density=float(np.mean(np.concatenate([r.rewards for r in rollouts]) != 0)),
        credit_delay=delay,
        influence=influence,
        transition_randomness=transition_randomness(env, begun, rollouts, seed),
        return_mean=float(returns.mean()),
        return_variance=float(returns.var(ddof=1)),
        gradient=measure_gradients(policy, rollouts),
        episodes=episodes,
    )


def credit_delay(
    env: gym.Env, sampler: Sampler, begun: list[Start], rollouts: list[Rollout], seed: int
) -> tuple[float | None, float]:
    """How many steps lie between an action and the reward it earns, by replacing actions.

    In each episode one action, at a step drawn uniformly, is replaced by another draw of the
    policy, and the rest is played with the same random numbers of policy and environment. Δ_d is by
    how much the reward d steps later changed (a missing one counts 0). The delay is
    Σ_d d·E|Δ_d| / Σ_d E|Δ_d|.

    Args:
        env: the environment.
        sampler: that has played.
        begun: n starts.
        rollouts: n episodes from there.
        seed: of the steps.

    Returns:
        The delay, None where no reward changed; and the share of replaced actions that changed any
        reward.
    """
    rng = np.random.default_rng(seed)
    longest = max(len(rollout) for rollout in rollouts)
    changed, influential = np.zeros(0), 0
    for number, (start, rollout) in enumerate(zip(begun, rollouts, strict=True)):
        step = int(rng.integers(len(rollout)))
        observation = replay(env, start, rollout.actions[:step])
        sampler.begin(len(rollouts) + number)
        action = sampler.other(observation, rollout.actions[step])
        sampler.begin(number, step + 1)
        replaced = resume(env, sampler, action)
        original = rollout.rewards[step:]
        size = max(len(original), len(replaced), len(changed), longest)
        difference = np.abs(_padded(original, size) - _padded(replaced, size))
        # Rewards of a deep network vary in their last digits with the shape of the batch.
        difference[difference < 1e-5] = 0.0
        changed = _padded(changed, size) + difference
        influential += bool(difference.any())
    influence = influential / len(rollouts)
    if not changed.any():
        return None, influence
    return float((np.arange(len(changed)) * changed).sum() / changed.sum()), influence


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)))


def transition_randomness(
    env: gym.Env, begun: list[Start], rollouts: list[Rollout], seed: int
) -> float:
    """The chance that one action in one state leads to two different outcomes on two tries.

    An outcome is next observation, reward and end. 0: deterministic; ½: a fair coin; 1: never twice
    the same. Measured at one step of each episode, drawn uniformly, with fresh random numbers for
    the environment (`np_random`) before each try.

    Args:
        env: the environment.
        begun: n starts.
        rollouts: n episodes from there.
        seed: of the steps and of the tries.
    """
    rng = np.random.default_rng(seed)
    different = 0
    for start, rollout in zip(begun, rollouts, strict=True):
        step = int(rng.integers(len(rollout)))
        tries = []
        for _ in range(2):
            replay(env, start, rollout.actions[:step])
            env.unwrapped.np_random = np.random.default_rng(int(rng.integers(2**31)))
            tries.append(env.step(rollout.actions[step]))
        different += _differ(*tries)
    return different / len(rollouts)


def _differ(one: Any, other: Any) -> bool:
    same = np.allclose(one[0], other[0], rtol=0, atol=1e-5) and np.isclose(one[1], other[1])
    return not (same and one[2] == other[2])
