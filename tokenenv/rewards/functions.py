"""A function of the user's as reward: it gets texts and columns, and returns numbers.

It returns one float per response, or one list of floats per response: rewards per token. True and
False count as 1 and 0. Which arguments it gets is in `tokenenv.rewards.parameters`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from tokenenv.data import Prompt
from tokenenv.models import LanguageModel
from tokenenv.rewards.parameters import Parameters
from tokenenv.rewards.raw_rewards import MAX_REWARD, Episode, RawRewards, check_rewards
from tokenenv.user_code import user_code

__all__ = ["FunctionReward", "RewardFunction", "response_length"]

RewardFunction = Callable[..., Sequence[Any]]


def response_length(
    prompts: Sequence[str], responses: Sequence[str], response_tokens: Sequence[Sequence[str]]
) -> list[float]:
    """The tokens of each response, EOS included: with a negative weight a penalty of length.

    `reward_model=[MODEL, "tokenenv.rewards:response_length"], reward_weights=[1.0, -0.05]` takes
    0.05 standard deviations of the model's score for every token.

    Args:
        prompts: B texts.
        responses: B texts.
        response_tokens: of each response the texts of its tokens.
    """
    return [float(len(tokens)) for tokens in response_tokens]


class FunctionReward:
    """A plain Python function as reward.

    Args:
        function: see `tokenenv.rewards.parameters`.
        name: its name in error messages.
        language_model: turns token ids into text.
        may_abstain: whether None stands for "does not apply", a reward of NaN then; alone, a
            function has to give every response a reward.
    """

    def __init__(
        self,
        function: RewardFunction,
        name: str,
        language_model: LanguageModel,
        may_abstain: bool = False,
    ) -> None:
        self.function = function
        self.name = name
        self.language_model = language_model
        self.may_abstain = may_abstain
        self.parameters = Parameters.of(function)

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check that prompts have what the function asks for.

        Raises:
            ValueError: they have not.
        """
        self.parameters.check(origins, self.name)

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`.

        Raises:
            ValueError: the function returned something else, or a prompt lacks a column that it
                asks for.
            UserCodeError: it raised; a ValueError too.
        """
        texts, named = self.parameters.arguments(episodes, self.language_model, self.name)
        with user_code(self.name, self.function):
            returned = self.function(*texts, **named)
            if isinstance(returned, Iterator):  # its code (a generator's, a map's) runs only now
                returned = list(returned)
        rewards = self._as_list(returned, len(episodes))
        is_list = [isinstance(r, list | tuple) for r in rewards]
        if not any(is_list):
            raw = np.array([self._number(r, f"response {i}") for i, r in enumerate(rewards)])
            return RawRewards(raw, raw)
        abstains = [self.may_abstain and reward is None for reward in rewards]
        if not all(map(max, is_list, abstains)):
            raise ValueError(
                f"{self.name} mixed floats and lists: return one float per response, or one list "
                "of floats per response."
            )
        per_token = [
            np.zeros(len(e.response)) if is_none else self._token_rewards(r, e, i)
            for i, (r, e, is_none) in enumerate(zip(rewards, episodes, abstains, strict=True))
        ]
        raw = np.array([r.sum() for r in per_token])
        check_rewards(raw, f"{self.name} returned", lambda i: f"all tokens of response {i}")
        raw[abstains] = np.nan
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
        if reward is None and self.may_abstain:
            return math.nan
        if not isinstance(reward, numbers.Real):
            raise ValueError(
                f"{self.name} returned {_shortened(reward)} ({type(reward).__name__}) for {where}; "
                "a reward is a float."
                + " None is for one of several rewards, and this is the only one."
                * (reward is None)
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
