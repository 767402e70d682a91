"""Where the score of a finished response comes from: whatever `reward_model=` may be.

A reward model, a function of the user's, several of them with weights, or several reward models
combined: all are `RewardSource`s, finished episodes in, raw rewards out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from tokenenv.addresses import names_server, parse_address
from tokenenv.combinations import Combination
from tokenenv.data import Prompt, messages_of
from tokenenv.models import LanguageModel, decode_all, prompt_text
from tokenenv.notes import note_once
from tokenenv.remote import reward_client
from tokenenv.rewards.combined import CombinedRewards, disagreement_of
from tokenenv.rewards.functions import FunctionReward, RewardFunction
from tokenenv.rewards.raw_rewards import (
    MAX_REWARD,
    Episode,
    RawRewards,
    RewardSource,
    check_rewards,
)
from tokenenv.rewards.remote import RemoteReward
from tokenenv.rewards.reward_model import RewardModel, load_reward_model
from tokenenv.tasks import load_object, names_code

__all__ = [
    "MAX_REWARD",
    "Episode",
    "FunctionReward",
    "LearnedReward",
    "RawRewards",
    "RemoteReward",
    "RewardFunction",
    "RewardSource",
    "WeightedRewards",
    "check_rewards",
    "is_learned",
    "learned_rewards",
    "remote_rewards",
    "resolve_reward",
]


class LearnedReward:
    """A reward model: fed token ids where it shares the actor's tokenizer, text where it does not.

    A prompt that is a conversation reaches it as its own chat template writes it, with the response
    as the assistant's turn; where it has none, as the actor's template writes it.

    Args:
        reward_model: the reward model.
        language_model: the reference, whose tokenizer the episodes are in.
        response_tokens: T, in the reference's tokens.
    """

    def __init__(
        self, reward_model: RewardModel, language_model: LanguageModel, response_tokens: int = 0
    ) -> None:
        self.reward_model = reward_model
        self.language_model = language_model
        self.response_tokens = response_tokens
        self.feeds_tokens = reward_model.shares_tokenizer(
            language_model.tokenizer, language_model.vocabulary_size
        )
        if not self.feeds_tokens:
            note_once(
                f"the reward model {reward_model.name!r} has another vocabulary than the reference "
                f"{language_model.name!r}: it reads responses as text, tokenised again."
            )

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check that the chat template takes the conversations among the prompts.

        Raises:
            ValueError: it does not.
        """
        limit, name = self.reward_model.max_tokens, self.reward_model.name
        for messages in filter(None, map(messages_of, origins)):
            if not self.reward_model.chat.exists:
                note_once(
                    f"the reward model {name!r} has no chat template: it reads conversations as "
                    "the reference's template writes them."
                )
                return
            tokens = len(self.reward_model.encode_messages(messages, ""))
            if tokens + self.response_tokens > limit:
                raise ValueError(
                    f"the conversation that ends with {messages[-1]['content'][-60:]!r} has "
                    f"{tokens} tokens in the chat template of the reward model {name!r}, which "
                    f"reads whole conversations, and at most {limit} tokens with the response's "
                    f"{self.response_tokens}: leave it out or shorten it, or take a reward model "
                    "that reads more."
                )

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`, in one length-sorted pass."""
        raw = self.reward_model.raw_rewards(self.sequences(episodes))
        with np.errstate(over="ignore"):
            normalized = self.reward_model.normalize(raw)

        def response(index: int) -> str:
            return f"the response {self.language_model.decode(episodes[index].response)[:60]!r}"

        model = f"the reward model {self.reward_model.name!r}"
        check_rewards(raw, f"{model} gives", response)
        check_rewards(normalized, f"{model} gives, normalised,", response)
        return RawRewards(raw, normalized)

    def sequences(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """The token ids of episodes as the reward model reads them, (n,) int64 each."""
        return [self._sequence(episode) for episode in episodes]

    def _sequence(self, episode: Episode) -> np.ndarray:
        """(n,) int64 ids of an episode as the reward model reads them."""
        prompt, response = episode.prompt, episode.response
        messages = messages_of(episode.origin)
        is_conversation = messages is not None and self.reward_model.chat.exists
        if self.feeds_tokens and not is_conversation:
            ends = self.language_model.eos_token_ids  # the reward model may know fewer of them
            if episode.stopped and len(response) and int(response[-1]) in ends:
                response = response[:-1]
            return self.reward_model.join(prompt, response, episode.stopped)
        # As text, special tokens included, as training from text has them.
        tokenizer = self.language_model.tokenizer
        text = decode_all(tokenizer, (response[:-1] if episode.stopped else response).tolist())
        if is_conversation:
            assert messages is not None
            return self.reward_model.encode_messages(messages, text)
        return self.reward_model.encode(prompt_text(tokenizer, prompt), text, episode.stopped)


class WeightedRewards:
    """Several rewards with weights: the score is the weighted sum of the normalised rewards.

    A function's None, "does not apply", counts as 0 in the sum; at least one has to apply.

    Args:
        sources: the rewards by their names.
        weights: one for each.
    """

    def __init__(self, sources: dict[str, RewardSource], weights: Sequence[float]) -> None:
        self.sources, self.weights = sources, tuple(weights)

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check prompts by each of the rewards.

        Raises:
            ValueError: one of them can't use a prompt.
        """
        for source in self.sources.values():
            source.check_prompts(origins)

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """The weighted sums, with each reward's raw numbers as `parts`.

        Raises:
            ValueError: no reward applies to an episode, or a sum is beyond float32.
        """
        found = {name: source(episodes) for name, source in self.sources.items()}
        values = np.array([rewards.normalized for rewards in found.values()])  # (sources, B)
        nowhere = np.flatnonzero(np.isnan(values).all(axis=0))
        if len(nowhere):
            raise ValueError(
                f"{', '.join(found)} returned None, all of them, for response {nowhere[0]}: at "
                "least one reward has to apply to every response. Return a number, 0 for instance."
            )
        total = np.array(self.weights) @ np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)
        check_rewards(total, "the weighted rewards have a sum of", lambda i: f"response {i}")
        return RawRewards(
            total,
            total,
            self._per_token(list(found.values()), episodes),
            {name: rewards.raw for name, rewards in found.items()},
            self._disagreement(values),
        )

    def _disagreement(self, values: np.ndarray) -> np.ndarray | None:
        """(B,) of the reward models among the (sources, B) normalised rewards, if 2 or more."""
        is_model = [
            isinstance(source, LearnedReward)
            or (isinstance(source, RemoteReward) and source.is_model)
            for source in self.sources.values()
        ]
        return disagreement_of(values[is_model]) if sum(is_model) > 1 else None

    def _per_token(
        self, found: list[RawRewards], episodes: Sequence[Episode]
    ) -> list[np.ndarray] | None:
        """The weighted sums of the rewards per token; what is not per token is on no token yet."""
        if all(rewards.per_token is None for rewards in found):
            return None
        sums = [np.zeros(len(episode.response)) for episode in episodes]
        for weight, rewards in zip(self.weights, found, strict=True):
            for row, per_token in zip(sums, rewards.per_token or (), strict=False):
                row += weight * per_token
        return sums


def learned_rewards(reward: RewardSource) -> dict[str, LearnedReward]:
    """The reward models among the rewards of a source, by name; "" where there is one reward."""
    sources = _sources_of(reward)
    return {name: part for name, part in sources.items() if isinstance(part, LearnedReward)}


def remote_rewards(reward: RewardSource) -> dict[str, RemoteReward]:
    """The rewards of servers among those of a source, by name; "" where there is one reward."""
    sources = _sources_of(reward)
    return {name: part for name, part in sources.items() if isinstance(part, RemoteReward)}


def is_learned(reward: RewardSource) -> bool:
    """Whether a source is a reward model, or several and nothing else; here, not on a server."""
    return len(learned_rewards(reward)) == len(_sources_of(reward))


def _sources_of(reward: RewardSource) -> dict[str, RewardSource]:
    """The rewards that a source is made of, by name; "" where it is one reward."""
    if isinstance(reward, WeightedRewards | CombinedRewards):
        return reward.sources
    return {"": reward}


def resolve_reward(
    reward_model: Any,
    language_model: LanguageModel,
    device: str,
    dtype: str,
    weights: Sequence[float] | None = None,
    response_tokens: int = 0,
    combination: Combination | None = None,
    reference_episodes: Callable[[], Sequence[Episode]] | None = None,
) -> RewardSource:
    """The source that an argument `reward_model` stands for.

    Args:
        reward_model: a callable, `"package.module:function"`, a folder, a hub id or the address of
            a reward server; or a list of these.
        language_model: the reference.
        device: of reward models.
        dtype: of reward models.
        weights: of the rewards of a list; None: 1 each.
        response_tokens: T.
        combination: of the rewards of a list; None: their weighted sum.
        reference_episodes: gives responses of the reference, which a combination other than the sum
            is normalised on, and a server's reward, where it names no normalisation.

    Raises:
        ValueError: it is none of them, or they can't be combined.
    """
    if not isinstance(reward_model, list | tuple):
        if weights is None:
            return _resolve_one(
                reward_model, language_model, device, dtype, response_tokens, reference_episodes
            )
        reward_model = [reward_model]
    sources: dict[str, RewardSource] = {}
    for one in reward_model:
        source = _resolve_one(
            one,
            language_model,
            device,
            dtype,
            response_tokens,
            reference_episodes,
            may_abstain=True,
        )
        sources[_free(_name_of(one), sources)] = source
    if combination is not None and combination.name != "sum":
        if reference_episodes is None:
            raise ValueError(
                f"the combination {combination.name!r} is normalised on responses of the "
                "reference: give reference_episodes, a function that returns episodes."
            )
        return CombinedRewards(sources, combination, weights, reference_episodes())
    return WeightedRewards(sources, [1.0] * len(sources) if weights is None else weights)


MOST_CHARACTERS = 20
"""Of a reward's name, as it is logged: SB3 cuts longer keys, and takes two with one beginning for
the same."""


def _name_of(reward_model: Any) -> str:
    """The name of one of several rewards: a function's, the end of a path or hub id, a host."""
    if names_server(reward_model):
        name = parse_address(reward_model).place
    elif isinstance(reward_model, str):
        name = reward_model.rpartition(":")[2] if names_code(reward_model) else reward_model
        name = os.path.basename(os.path.abspath(name))
    else:
        name = getattr(reward_model, "__name__", type(reward_model).__name__)
    return name.strip("<>_ ")[-MOST_CHARACTERS:] or "reward"  # infos keep "_…" for their masks


def _free(name: str, known: dict[str, RewardSource]) -> str:
    """The name, with a number where there is one like it."""
    names: Iterator[str] = (f"{name}-{number}" for number in range(2, len(known) + 3))
    return name if name not in known else next(other for other in names if other not in known)


def _resolve_one(
    reward_model: Any,
    language_model: LanguageModel,
    device: str,
    dtype: str,
    response_tokens: int,
    reference_episodes: Callable[[], Sequence[Episode]] | None,
    may_abstain: bool = False,
) -> RewardSource:
    if names_server(reward_model):
        client = reward_client(reward_model)
        return RemoteReward(client, language_model, may_abstain, reference_episodes)
    if isinstance(reward_model, nn.Module):
        raise ValueError(
            f"reward_model is a {type(reward_model).__name__}, a torch module: save it, and give "
            "its folder; or give a function of (prompts, responses)."
        )
    function, name = reward_model, getattr(reward_model, "__name__", type(reward_model).__name__)
    if isinstance(reward_model, str) and names_code(reward_model):
        function, name = load_object(reward_model, "reward_model"), reward_model
        if not callable(function):
            raise ValueError(f"reward_model={reward_model!r} names no function.")
    if callable(function):
        return FunctionReward(function, f"reward function {name!r}", language_model, may_abstain)
    learned = load_reward_model(reward_model, device, dtype)
    return LearnedReward(learned, language_model, response_tokens)
