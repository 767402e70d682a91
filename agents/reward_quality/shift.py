"""Distribution shift: are the policy's responses still those that the reward model knows?

A reward model is trained on responses of some policy, and asked about those of another. Two things
say how far apart they are without any label: a two-sample test in the space of the features that
the reward is computed from, and how much several reward models disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.evaluation import HeldOut
from agents.reward_quality.two_sample import energy_test, pooled_scale
from tokenenv.data import PreferencePair
from tokenenv.models import sample_responses
from tokenenv.rewards import (
    Episode,
    LearnedReward,
    RewardModel,
    episodes_of,
    learned_rewards,
    pooled_features,
    truncated_pairs,
)

__all__ = ["RESPONSES", "Shift", "ShiftCallback", "ShiftMonitor"]

RESPONSES = 128
"""Responses of the policy in a measurement, and at most as many texts that it is compared with."""

PERMUTATIONS = 999


@dataclass(frozen=True, slots=True)
class Shift:
    """How far a policy's responses are from texts that its reward model knows.

    Attributes:
        shift: the energy distance in the space of features, less its mean under the null hypothesis
            and divided by its standard deviation under it: about 0 without a shift, 1 a standard
            deviation above that.
        p_value: of the hypothesis that there is none.
        distance: the energy distance itself.
        disagreement: mean disagreement of several reward models on the policy's responses, divided
            by that on the other texts, each model normalised on these; None of one model.
        responses: how many of the policy's were compared.
        texts: with how many.
    """

    shift: float
    p_value: float
    distance: float
    disagreement: float | None
    responses: int
    texts: int


@dataclass(frozen=True)
class _Read:
    """What K reward models make of n texts: K arrays (n, h) of features, (K, n) raw rewards."""

    features: list[np.ndarray]
    raw: np.ndarray


class ShiftMonitor:
    """Compares a policy's responses with texts that its reward model knows.

    These are the responses of the pairs that it was trained on, where they are given: of each
    prompt's first pair one side, drawn at random, so that they are independent of one another. The
    policy answers every held-out prompt at most once then, and the test is that of two samples;
    prompts that differ from those of the pairs are a part of the shift.

    Where no pairs are given, they are the reference's responses to the held-out prompts, sampled
    once. The policy answers the same prompts with fresh samples, and the labels are permuted within
    a prompt: the hypothesis is that both answer every prompt alike.

    The features are what the reward model's last layer reads, every column at mean 0 and deviation
    1 over both samples; of several reward models side by side, each of the same weight. A
    measurement samples and computes beside the training and changes nothing of it.

    Args:
        held_out: prompts and scorer.
        pairs: those that the reward model was trained on; None: they are not known.
        seed: of all draws.
        responses: how many of the policy at most.

    Attributes:
        is_paired: whether both samples answer the same prompts.

    Raises:
        ValueError: no reward is a reward model, or there are too few prompts or pairs.
    """

    def __init__(
        self,
        held_out: HeldOut,
        pairs: Sequence[PreferencePair] | None = None,
        seed: int = 0,
        responses: int = RESPONSES,
    ) -> None:
        self.held_out, self.seed = held_out, seed
        self.models = list(learned_rewards(held_out.scorer.reward).values())
        if not self.models:
            raise ValueError(
                "the shift of responses is measured by what a reward model computes of them, and "
                "the reward is a function: leave shift_every (--shift-every) out."
            )
        self.is_paired = pairs is None
        count = responses if self.is_paired else min(responses, len(held_out.prompts))
        self._rows = np.resize(np.arange(len(held_out.prompts)), count).tolist()
        if count < 2:
            raise ValueError(
                "the shift of responses can't be tested on a single held-out prompt: name a file "
                "with more prompts, raise eval_prompts, or leave shift_pairs (--shift-pairs) out."
            )
        reference = held_out.scorer.reference.language_model.model
        self._known_texts = (
            self._sequences(self._episodes(reference, self._seed_of(0)))
            if pairs is None
            else self._sequences_of(pairs, responses)
        )
        self._known, self._versions = _reading(self.models, self._known_texts), self._versions_now()

    def measure(self, actor: Any, number: int) -> Shift:
        """Compare responses of a policy.

        Args:
            actor: a causal LM.
            number: of the measurement, 1 or more: each has draws of its own.
        """
        seed = self._seed_of(number)
        now = _reading(self.models, self._sequences(self._episodes(actor, seed)))
        if (versions := self._versions_now()) != self._versions:  # a reward model has learned since
            self._known, self._versions = _reading(self.models, self._known_texts), versions
        known = self._known
        scaled = [
            [block / np.sqrt(block.shape[1]) for block in pooled_scale(*both)]
            for both in zip(now.features, known.features, strict=True)
        ]
        test = energy_test(
            np.concatenate([block[0] for block in scaled], axis=1),
            np.concatenate([block[1] for block in scaled], axis=1),
            self.is_paired,
            PERMUTATIONS,
            seed,
        )
        return Shift(
            test.standardized,
            test.p_value,
            test.distance,
            _relative_disagreement(now.raw, known.raw),
            len(self._rows),
            known.raw.shape[1],
        )

    def _seed_of(self, number: int) -> int:
        """A seed of its own for every measurement of every run; 0 is that of the other texts."""
        return int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])

    def _episodes(self, actor: Any, seed: int) -> list[Episode]:
        held_out, reference = self.held_out, self.held_out.scorer.reference
        prompts = [held_out.prompts[row] for row in self._rows]
        responses = sample_responses(
            actor,
            reference.language_model.eos_token_ids,
            prompts,
            held_out.max_new_tokens,
            temperature=reference.temperature,
            seed=seed,
        )
        return episodes_of(prompts, responses, [held_out.origins[row] for row in self._rows])

    def _versions_now(self) -> list[int]:
        return [model.reward_model.version for model in self.models]

    def _sequences(self, episodes: Sequence[Episode]) -> list[list[np.ndarray]]:
        return [model.sequences(episodes) for model in self.models]

    def _sequences_of(self, pairs: Sequence[PreferencePair], most: int) -> list[list[np.ndarray]]:
        """One response of each of `most` prompts, as every reward model reads it."""
        rng = np.random.default_rng(self._seed_of(0))
        first_of = {str(pair.prompt): pair for pair in reversed(pairs)}
        prompts = sorted(first_of)
        if len(prompts) < 2:
            raise ValueError(
                f"{len(pairs):,} pairs with {len(prompts)} different prompts are too few for a "
                "test: give the pairs that the reward model was trained on."
            )
        asked = rng.permutation(len(prompts))[:most]
        some = [first_of[prompts[index]] for index in asked]
        is_chosen = rng.random(len(some)) < 0.5
        return [
            [
                pair.chosen if chosen else pair.rejected
                for pair, chosen in zip(_readable(some, one.reward_model), is_chosen, strict=True)
            ]
            for one in self.models
        ]


def _readable(pairs: Sequence[PreferencePair], reward_model: RewardModel) -> list[Any]:
    """Pairs as token ids; what is too long loses its beginning, as in training."""
    return truncated_pairs(pairs, reward_model, reward_model.max_tokens, "keep-end")[0]


def _reading(models: Sequence[LearnedReward], sequences: Sequence[list[np.ndarray]]) -> _Read:
    read = [
        pooled_features(model.reward_model, texts)
        for model, texts in zip(models, sequences, strict=True)
    ]
    return _Read([features for features, _ in read], np.array([raw for _, raw in read]))


def _relative_disagreement(now: np.ndarray, known: np.ndarray) -> float | None:
    """Mean deviation over K models of (K, n) rewards, divided by that of (K, m) others."""
    deviation = known.std(axis=1, keepdims=True)
    if len(known) < 2 or not (deviation > 0).all():
        return None
    mean = known.mean(axis=1, keepdims=True)
    now, known = (now - mean) / deviation, (known - mean) / deviation
    usual = float(known.std(axis=0).mean())
    return float(now.std(axis=0).mean()) / usual if usual > 0 else None


class ShiftCallback(BaseCallback):
    """Logs `rlhf/shift`, `rlhf/shift_p` and, of several reward models, `rlhf/shift_disagreement`.

    Args:
        monitor: measures.
        every: updates between two measurements; the first is of the untrained policy.

    Attributes:
        last: the last measurement; None before the first.
    """

    def __init__(self, monitor: ShiftMonitor, every: int) -> None:
        super().__init__()
        self.monitor, self.every = monitor, every
        self.last: Shift | None = None
        self._rollouts = 0

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts there were; JSON. Draws and other texts are of the seed."""
        return {"rollouts": self._rollouts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._rollouts = state["rollouts"]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._rollouts % self.every == 0:
            policy: Any = self.model.policy
            self.last = self.monitor.measure(policy.actor, self._rollouts + 1)
            self.logger.record("rlhf/shift", self.last.shift)
            self.logger.record("rlhf/shift_p", self.last.p_value)
            if self.last.disagreement is not None:
                self.logger.record("rlhf/shift_disagreement", self.last.disagreement)
        self._rollouts += 1
