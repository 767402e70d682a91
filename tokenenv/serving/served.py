"""What a reward server serves: one of our reward models, or a reward function."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from tokenenv.addresses import names_server
from tokenenv.data import Prompt, as_prompt, messages_of
from tokenenv.remote import Item, ServerInfo, vocabulary_hash
from tokenenv.rewards import (
    Episode,
    FunctionReward,
    RewardModel,
    characters,
    characters_as_model,
    check_rewards,
    load_reward_model,
)
from tokenenv.tasks import load_object, model_source, names_code

__all__ = ["Served", "ServedFunction", "ServedModel", "served_reward"]


class Served(Protocol):
    """A reward behind a server."""

    def info(self, max_batch: int) -> ServerInfo:
        """What clients are told of it."""
        ...

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """A reward for each item; None where it does not apply.

        Raises:
            ValueError: an item can't be scored, or the reward failed.
        """
        ...


class ServedModel:
    """A reward model; rewards are raw, and clients are told how to normalise them.

    Args:
        reward_model: the model.
        name: what it is called.
    """

    def __init__(self, reward_model: RewardModel, name: str) -> None:
        self.reward_model, self.name = reward_model, name
        self.fingerprint = _fingerprint_of_model(reward_model)

    def info(self, max_batch: int) -> ServerInfo:
        """With the hash of its vocabulary, by which clients know whether to send token ids."""
        model = self.reward_model
        return ServerInfo(
            model=self.name,
            fingerprint=self.fingerprint,
            max_batch=max_batch,
            reward_mean=model.mean,
            reward_std=model.std,
            special_tokens=True,
            vocabulary=vocabulary_hash(model.tokenizer.get_vocab()),
            vocabulary_size=model.num_embeddings,
            max_tokens=None if model.max_tokens == sys.maxsize else model.max_tokens,
            chat=model.chat.exists,
        )

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """The raw rewards of items.

        Raises:
            ValueError: an item has too many tokens, ids that the model does not know, or messages
                that its template refuses; or a reward is not finite.
        """
        raw = self.reward_model.raw_rewards([self._sequence(item) for item in items])
        check_rewards(raw, f"the reward model {self.name!r} gives", lambda i: f"item {i}")
        return raw.tolist()

    def _sequence(self, item: Item) -> np.ndarray:
        """(n,) int64 ids, as `tokenenv.rewards.LearnedReward` has them."""
        model, prompt_ids = self.reward_model, item.get("prompt_ids")
        response_ids, messages = item.get("response_ids"), item.get("messages")
        if messages and model.chat.exists:
            return model.encode_messages(_conversation(messages), item["response"])
        if prompt_ids is None or response_ids is None:
            return model.encode(item["prompt"], item["response"], item["stopped"])
        ids = [*prompt_ids, *response_ids]
        if ids and not (0 <= min(ids) and max(ids) < model.num_embeddings):
            raise ValueError(
                f"an item has the token id {min(ids) if min(ids) < 0 else max(ids)}; the model "
                f"{self.name!r} knows 0 … {model.num_embeddings - 1}."
            )
        return model.join(prompt_ids, response_ids, item["stopped"])


class ServedFunction:
    """A reward function (`tokenenv.rewards.parameters`); it gets texts, messages and columns.

    Args:
        function: the function.
        name: what it is called.

    Raises:
        ValueError: it asks for tokens.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self.reward = FunctionReward(
            _without_ids(function), f"reward function {name!r}", characters_as_model(), True
        )
        self.parameters = self.reward.parameters
        asked = self.parameters.required | self.parameters.optional
        of_tokens = sorted(asked & {"response_tokens", "completion_ids", "prompt_ids"})
        if of_tokens:
            raise ValueError(
                f"the reward function {name!r} asks for {', '.join(of_tokens)}, and a reward server"
                " gets texts: use it where the tokens are, as --reward-model of the training."
            )
        self.fingerprint = _fingerprint_of_function(function, name)

    def info(self, max_batch: int) -> ServerInfo:
        """With the columns that it asks for; its rewards are left as they are."""
        reserved = {"prompts", "responses", "completions", "messages"}
        asked = self.parameters.required | self.parameters.optional
        return ServerInfo(
            model=self.name,
            fingerprint=self.fingerprint,
            max_batch=max_batch,
            kind="function",
            reward_mean=0.0,
            reward_std=1.0,
            columns=None if self.parameters.takes_all else tuple(sorted(asked - reserved)),
            required_columns=tuple(sorted(self.parameters.required - reserved)),
        )

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """What the function returns for items.

        Raises:
            ValueError: it returns something else than a reward for each, or one for each token.
            UserCodeError: it raised.
        """
        rewards = self.reward([_episode(item) for item in items])
        if rewards.per_token is not None:
            raise ValueError(
                f"the reward function {self.name!r} returns rewards per token, which no server "
                "passes on: use it as --reward-model of the training."
            )
        return [None if math.isnan(reward) else reward for reward in rewards.raw.tolist()]


def served_reward(name: str, device: str, dtype: str) -> Served:
    """What a name stands for: a task, a folder, a hub id, or `"module:function"`.

    Args:
        name: the name.
        device: of a reward model.
        dtype: of its weights.

    Raises:
        ValueError: it is none of them, or can't be served.
    """
    source = model_source(name, "reward_model")
    if not names_code(source):
        if not names_server(source):
            return ServedModel(load_reward_model(source, device, dtype), name)
        raise ValueError(
            "reward_model is the address of a server, which serves already: give a folder, a hub "
            "id or 'module:function'."
        )
    function = load_object(source, "reward_model")
    if not callable(function):
        raise ValueError(f"reward_model={name!r} names no function.")
    return ServedFunction(function, name)


def _conversation(messages: Any) -> Any:
    content = as_prompt(messages)
    return messages_of(content)


def _episode(item: Item) -> Episode:
    """An item as an episode of characters."""
    content = _conversation(item["messages"]) if item.get("messages") else item["prompt"]
    return Episode(
        characters(item["prompt"]),
        characters(item["response"]),
        bool(item["stopped"]),
        Prompt(content, item.get("columns") or {}),
    )


def _without_ids(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without token ids, which a `**kwargs` would get: those here are of no model."""

    @functools.wraps(function)
    def called(*texts: Any, **named: Any) -> Any:
        named.pop("completion_ids", None)
        return function(*texts, **named)

    return called


def _fingerprint_of_model(reward_model: RewardModel) -> str:
    """The same for the same weights, normalisation and vocabulary."""
    digest = hashlib.sha256(vocabulary_hash(reward_model.tokenizer.get_vocab()).encode())
    digest.update(f"{reward_model.mean!r} {reward_model.std!r}".encode())
    for name, weight in sorted(reward_model.model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _fingerprint_of_function(function: Any, name: str) -> str:
    """The same for the same name and the same text of its file."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
    unwrapped = inspect.unwrap(function)
    for found in (unwrapped, type(unwrapped)):
        try:
            with open(inspect.getsourcefile(found) or "", "rb") as file:
                digest.update(file.read())
            break
        except (OSError, TypeError):
            continue
    return digest.hexdigest()[:32]
