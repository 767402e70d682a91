"""Where the score of a finished response comes from: a reward model, or a function of the user's.

Both are `RewardSource`s: finished episodes in, raw rewards out. A function takes
`(prompts: list[str], responses: list[str])` and returns one float per response, or one list of
floats per response: rewards per token. True and False count as 1 and 0. A function with a third
parameter `response_tokens` also gets the text of each token, so that it can count them as the
actor did.

Rewards end up in float32: one beyond its range would be infinite there, and the weights NaN after
the first update. So it is refused here, like one that is not finite.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from tokenenv.models import LanguageModel, decode_all, prompt_text
from tokenenv.rewards.reward_model import RewardModel, load_reward_model
from tokenenv.tasks import load_object, names_code
from tokenenv.user_code import user_code

__all__ = [
    "MAX_REWARD",
    "Episode",
    "FunctionReward",
    "LearnedReward",
    "RawRewards",
    "RewardFunction",
    "RewardSource",
    "check_rewards",
    "resolve_reward",
]

RewardFunction = Callable[..., Sequence[Any]]

MAX_REWARD = float(np.finfo(np.float32).max)
"""The greatest absolute value of a reward."""


def check_rewards(values: np.ndarray, said: str, where: Callable[[int], str]) -> None:
    """Refuse rewards that float32 can't hold.

    Args:
        values: (B,) rewards.
        said: the source, such as "f returned"; begins the message.
        where: index → the place of the reward, for the message.

    Raises:
        ValueError: one is NaN, infinite, or beyond ±`MAX_REWARD`.
    """
    is_good = np.abs(values) <= MAX_REWARD
    if is_good.all():
        return
    index = int(np.flatnonzero(~is_good)[0])
    value = float(values[index])
    if not math.isfinite(value):
        raise ValueError(f"{said} {value} for {where(index)}; a reward must be finite.")
    raise ValueError(
        f"{said} {value:.4g} for {where(index)}; a reward must lie within ±{MAX_REWARD:.2e}, the "
        "range of float32, in which advantages and losses are computed: scale it."
    )


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and a response, finished or not.

    Attributes:
        prompt: (n,) int64 token ids.
        response: (m,) int64 token ids, EOS included.
        stopped: whether the response ended with EOS.
    """

    prompt: np.ndarray
    response: np.ndarray
    stopped: bool


@dataclass(frozen=True, slots=True)
class RawRewards:
    """Rewards of B finished episodes, from a source.

    Attributes:
        raw: (B,) float64 as the source gave them (summed where they are per token).
        normalized: (B,) float64 after the reward model's normalisation; raw, for a function.
        per_token: B float64 arrays as long as the responses, or None.
    """

    raw: np.ndarray
    normalized: np.ndarray
    per_token: list[np.ndarray] | None = None


class RewardSource(Protocol):
    """Finished episodes in, raw rewards out."""

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`, in their order."""
        ...


class LearnedReward:
    """A reward model: fed token ids where it shares the actor's tokenizer, text where it does not.

    Args:
        reward_model: the reward model.
        language_model: the reference, whose tokenizer the episodes are in.
    """

    def __init__(self, reward_model: RewardModel, language_model: LanguageModel) -> None:
        self.reward_model = reward_model
        self.language_model = language_model
        self.feeds_tokens = reward_model.shares_tokenizer(
            language_model.tokenizer, language_model.vocabulary_size
        )

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`, in one length-sorted pass."""
        sequences = [self._sequence(e) for e in episodes]
        raw = self.reward_model.raw_rewards(sequences)
        with np.errstate(over="ignore"):
            normalized = self.reward_model.normalize(raw)

        def response(index: int) -> str:
            return f"the response {self.language_model.decode(episodes[index].response)[:60]!r}"

        model = f"the reward model {self.reward_model.name!r}"
        check_rewards(raw, f"{model} gives", response)
        check_rewards(normalized, f"{model} gives, normalised,", response)
        return RawRewards(raw, normalized)

    def _sequence(self, episode: Episode) -> np.ndarray:
        """(n,) int64 ids of an episode as the reward model reads them."""
        prompt, response = episode.prompt, episode.response
        if self.feeds_tokens:
            return self.reward_model.join(prompt, response, episode.stopped)
        # As text, special tokens included, as training from text has them.
        tokenizer = self.language_model.tokenizer
        return self.reward_model.encode(
            prompt_text(tokenizer, prompt),
            decode_all(tokenizer, (response[:-1] if episode.stopped else response).tolist()),
            episode.stopped,
        )


class FunctionReward:
    """A plain Python function as reward.

    Args:
        function: see the module's text.
        name: its name in error messages.
        language_model: turns token ids into text.
    """

    def __init__(self, function: RewardFunction, name: str, language_model: LanguageModel) -> None:
        self.function = function
        self.name = name
        self.language_model = language_model
        self._wants_tokens = _takes_response_tokens(function)

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`.

        Raises:
            ValueError: the function returned something else.
            UserCodeError: it raised; a ValueError too.
        """
        decode = self.language_model.decode
        texts = [decode(e.prompt) for e in episodes], [decode(e.response) for e in episodes]
        extra = {}
        if self._wants_tokens:
            extra["response_tokens"] = [[decode([i]) for i in e.response] for e in episodes]
        with user_code(self.name, self.function):
            returned = self.function(*texts, **extra)
            if isinstance(returned, Iterator):  # its code (a generator's, a map's) runs only now
                returned = list(returned)
        rewards = self._as_list(returned, len(episodes))
        is_list = [isinstance(r, list | tuple) for r in rewards]
        if not any(is_list):
            raw = np.array([self._number(r, f"response {i}") for i, r in enumerate(rewards)])
            return RawRewards(raw, raw)
        if not all(is_list):
            raise ValueError(
                f"{self.name} mixed floats and lists: return one float per response, or one list "
                "of floats per response."
            )
        per_token = [
            self._token_rewards(r, e, i)
            for i, (r, e) in enumerate(zip(rewards, episodes, strict=True))
        ]
        raw = np.array([r.sum() for r in per_token])
        check_rewards(raw, f"{self.name} returned", lambda i: f"all tokens of response {i}")
        return RawRewards(raw, raw, per_token)

    def _as_list(self, returned: Any, count: int) -> list[Any]:
        try:
            if _is_unordered(returned):
                raise TypeError("its elements are no rewards in the order of the responses")
            rewards = list(returned)
        except TypeError as error:
            raise ValueError(
                f"{self.name} returned {_kind(returned)}; it must return a list with one "
                f"reward per response, here {count}, in their order."
            ) from error
        if len(rewards) != count:
            raise ValueError(
                f"{self.name} returned {len(rewards)} rewards for {count} responses; it must "
                "return one per response."
            )
        # NumPy's and torch's arrays and scalars become Python's.
        return [r.tolist() if hasattr(r, "tolist") else r for r in rewards]

    def _number(self, reward: Any, where: str) -> float:
        if hasattr(reward, "tolist"):
            reward = reward.tolist()
        if not isinstance(reward, numbers.Real):
            raise ValueError(
                f"{self.name} returned {_shortened(reward)} ({type(reward).__name__}) for {where}; "
                "a reward is a float."
            )
        try:
            value = float(reward)
        except OverflowError as error:
            raise ValueError(
                f"{self.name} returned {_shortened(reward)} for {where}; a reward must lie within "
                f"±{MAX_REWARD:.2e}: scale it."
            ) from error
        if not abs(value) <= MAX_REWARD:
            check_rewards(np.array([value]), f"{self.name} returned", lambda _: where)
        return value

    def _token_rewards(self, rewards: Any, episode: Episode, index: int) -> np.ndarray:
        numbers_ = [
            self._number(r, f"token {t} of response {index}") for t, r in enumerate(rewards)
        ]
        length = len(episode.response)
        if episode.stopped and len(numbers_) == length - 1:
            numbers_.append(0.0)
        if len(numbers_) != length:
            raise ValueError(
                f"{self.name} returned {len(numbers_)} token rewards for response {index}, which "
                f"has {length} tokens (EOS counted; its reward may be left out). A third parameter "
                "'response_tokens' gives your function the tokens."
            )
        return np.array(numbers_)


def _is_unordered(returned: Any) -> bool:
    """Whether iterating gives keys, or letters, or nothing that has the responses' order."""
    return (
        isinstance(returned, Mapping | Set | str | bytes | bytearray | memoryview)
        or hasattr(returned, "columns")  # a data frame iterates over the names of its columns
    )


def _kind(returned: Any) -> str:
    """The type of a returned value, with the value where that helps."""
    if isinstance(returned, Mapping | Set | str | bytes | bytearray):
        return f"{_shortened(returned)} ({type(returned).__name__})"
    return type(returned).__name__


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _takes_response_tokens(function: RewardFunction) -> bool:
    try:
        return "response_tokens" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def resolve_reward(
    reward_model: str | RewardFunction, language_model: LanguageModel, device: str, dtype: str
) -> RewardSource:
    """The source that a callable, `"package.module:function"`, a folder or a hub id stands for.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(reward_model, nn.Module):
        raise ValueError(
            f"reward_model is a {type(reward_model).__name__}, a torch module: save it, and give "
            "its folder; or give a function of (prompts, responses)."
        )
    if callable(reward_model):
        name = getattr(reward_model, "__name__", type(reward_model).__name__)
        return FunctionReward(reward_model, f"reward function {name!r}", language_model)
    if isinstance(reward_model, str) and names_code(reward_model):
        function = load_object(reward_model, "reward_model")
        if not callable(function):
            raise ValueError(f"reward_model={reward_model!r} names no function.")
        return FunctionReward(function, f"reward function {reward_model!r}", language_model)
    return LearnedReward(load_reward_model(reward_model, device, dtype), language_model)
