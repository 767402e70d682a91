"""Several reward models as one reward: their mean, the worst of them, or their mean less doubt."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenenv.combinations import Combination
from tokenenv.data import Prompt
from tokenenv.models import Reference, sample_responses
from tokenenv.prompts import training_prompts
from tokenenv.rewards.raw_rewards import (
    Episode,
    RawRewards,
    RewardSource,
    check_rewards,
    episodes_of,
)
from tokenenv.settings import ResolvedSettings

__all__ = [
    "REFERENCE_EPISODES",
    "CombinedRewards",
    "combine_rewards",
    "disagreement_of",
    "reference_episodes",
]

REFERENCE_EPISODES = 256
"""Responses of the reference that an ensemble is normalised on. The standard deviation of as many
normal numbers is known to 1/√(2·256) = 4 %."""

_LEAST_DEVIATION = 1e-8


def combine_rewards(
    values: np.ndarray, combination: Combination, weights: Sequence[float] | None = None
) -> np.ndarray:
    """(B,) of (K, B) normalised rewards of K reward models.

    With m and s, the mean and the standard deviation over the models of one response's rewards:

    * `"mean"`: m, or the mean with weights;
    * `"min"`: the least of them, worst-case optimisation;
    * `"uncertainty"`: m − c·s, uncertainty-weighted optimisation.

    Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization",
    https://arxiv.org/abs/2310.02743, section 3. The paper subtracts λ times the variance; the
    standard deviation is subtracted here, which has the unit of the rewards, so that c means the
    same whatever their scale.

    Args:
        values: (K, B).
        combination: any but `"sum"`.
        weights: of the mean, 0 or greater; None: equal ones.
    """
    if combination.name == "min":
        return values.min(axis=0)
    if combination.name == "uncertainty":
        return values.mean(axis=0) - combination.coefficient * disagreement_of(values)
    assert combination.name == "mean"
    return np.average(values, axis=0, weights=weights)


def disagreement_of(values: np.ndarray) -> np.ndarray:
    """(B,) standard deviation over K reward models of their (K, B) normalised rewards.

    Of these K, so that the squares are divided by K.
    """
    return values.std(axis=0)


@dataclass(frozen=True)
class _Scale:
    """Mean and standard deviation on the reference's responses, of each member and of the whole."""

    means: np.ndarray
    deviations: np.ndarray
    mean: float
    deviation: float


class CombinedRewards:
    """An ensemble of reward models: one reward from several estimates of the same.

    Every member is brought to mean 0 and standard deviation 1 on the same responses of the
    reference, whatever its own scale, tokenizer and stored normalisation; then they are combined;
    then the combination is brought to mean 0 and standard deviation 1 on the same responses.

    The last step is there for β, which is the price of a nat of KL in standard deviations of the
    score on the reference. The mean of K members that correlate by ρ has a deviation of
    √((1 + (K−1)ρ)/K), less than 1, and the worst of them and mean − c·deviation have others:
    without that step β would weigh more or less with every choice of the combination, of K and of
    c. It keeps the order of responses, since it is one increasing affine map. A weighted sum is
    left as it is (`WeightedRewards`): there the weights say what its scale is to be.

    Args:
        sources: the reward models by their names, 2 or more.
        combination: any but `"sum"`.
        weights: of the mean; None: equal ones.
        episodes: the reference's responses.

    Attributes:
        sources: as above.

    Raises:
        ValueError: the rewards of a member, or the combination's, do not vary on these responses.
    """

    def __init__(
        self,
        sources: Mapping[str, RewardSource],
        combination: Combination,
        weights: Sequence[float] | None,
        episodes: Sequence[Episode],
    ) -> None:
        self.sources, self.combination, self.weights = dict(sources), combination, weights
        self._episodes, self._versions = list(episodes), self._versions_now()
        self._scale = self._measured(episodes)

    def _versions_now(self) -> tuple[int, ...]:
        models = [getattr(source, "reward_model", None) for source in self.sources.values()]
        return tuple(getattr(model, "version", 0) for model in models)

    def _current_scale(self) -> _Scale:
        """The scale, measured anew where a member has learned since."""
        if (versions := self._versions_now()) != self._versions:
            self._scale, self._versions = self._measured(self._episodes), versions
        return self._scale

    def _measured(self, episodes: Sequence[Episode]) -> _Scale:
        raw = np.array([source(episodes).raw for source in self.sources.values()])  # (K, n)
        deviations = raw.std(axis=1)
        for name, deviation in zip(self.sources, deviations, strict=True):
            _refuse_constant(f"the reward model {name!r}", float(deviation), len(episodes))
        means = raw.mean(axis=1)
        values = (raw - means[:, None]) / deviations[:, None]
        whole = combine_rewards(values, self.combination, self.weights)
        name = f"the combination {self.combination.name!r} of {', '.join(self.sources)}"
        _refuse_constant(name, float(whole.std()), len(episodes))
        return _Scale(means, deviations, float(whole.mean()), float(whole.std()))

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check prompts by each of the members.

        Raises:
            ValueError: one of them can't use a prompt.
        """
        for source in self.sources.values():
            source.check_prompts(origins)

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """The combination, before (`raw`) and after it is normalised; each raw reward as a part."""
        parts = {name: source(episodes).raw for name, source in self.sources.items()}
        scale = self._current_scale()
        raw = np.array(list(parts.values()))
        values = (raw - scale.means[:, None]) / scale.deviations[:, None]
        whole = combine_rewards(values, self.combination, self.weights)
        normalized = (whole - scale.mean) / scale.deviation
        check_rewards(
            normalized, "the combined rewards, normalised, are", lambda i: f"response {i}"
        )
        return RawRewards(whole, normalized, None, parts, disagreement_of(values))


def _refuse_constant(what: str, deviation: float, count: int) -> None:
    if not deviation > _LEAST_DEVIATION:
        raise ValueError(
            f"{what} gives the same reward to all of {count} responses of the reference (standard "
            f"deviation {deviation:.3g}), so that it can't be normalised: leave it out, or train "
            "it on pairs that it can tell apart."
        )


_SAMPLED: OrderedDict[Any, tuple[Reference, list[Episode]]] = OrderedDict()
"""The last reference episodes: every environment, evaluation and buffer asks for the same."""

_MOST_SAMPLED = 4


def reference_episodes(
    settings: ResolvedSettings, reference: Reference, count: int = REFERENCE_EPISODES
) -> list[Episode]:
    """Responses of the reference to the training prompts of an environment.

    They are the same for the same settings, whatever the split: prompts are taken in an order of
    a fixed seed, all of them before one comes again, and each is answered once with the seed 0.

    Args:
        settings: the environment's.
        reference: its reference.
        count: how many.

    Raises:
        ValueError: there are no prompts, or one of them can't be used.
    """
    key = (id(reference.language_model), count, _prompts_key(settings))
    if key not in _SAMPLED:
        while len(_SAMPLED) >= _MOST_SAMPLED:
            _SAMPLED.popitem(last=False)
        _SAMPLED[key] = reference, _sampled(settings, reference, count)  # holds what has the id
    return _SAMPLED[key][1]


def _prompts_key(settings: ResolvedSettings) -> str:
    """What prompts and responses depend on, as text."""
    source = settings.prompts
    version = None
    if isinstance(source, str) and os.path.isfile(source):
        status = os.stat(source)
        version = (status.st_mtime_ns, status.st_size)
    names = (
        *("task", "prompts", "prompt_truncation", "prompt_columns", "skip_bad_prompts"),
        *("max_prompt_tokens", "max_new_tokens", "temperature"),
    )
    values = [getattr(settings, name) for name in names]
    return json.dumps([version, *values], default=repr)


def _sampled(settings: ResolvedSettings, reference: Reference, count: int) -> list[Episode]:
    language_model = reference.language_model
    book = training_prompts(settings, language_model)
    order = np.random.default_rng(0).permutation(len(book.texts))
    rows = np.resize(order, count).tolist()
    prompts = [book.encode_text(book.texts[row]) for row in rows]
    responses = sample_responses(
        language_model.model,
        language_model.eos_token_ids,
        prompts,
        settings.max_new_tokens,
        temperature=reference.temperature,
        seed=0,
    )
    return episodes_of(prompts, responses, [book.origins[row] for row in rows])
