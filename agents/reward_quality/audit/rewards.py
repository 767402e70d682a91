"""Scores of texts, by whatever may be a reward.

Episodes are token ids; an edited response is a text, which the policy's tokenizer need not be able
to spell. So texts reach a reward model through its own tokenizer, as in its training, and a
function as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from agents.reward_quality.audit.texts import Text
from tokenenv.data import messages_of
from tokenenv.models import LanguageModel, as_turn_messages
from tokenenv.rewards import (
    Episode,
    FunctionReward,
    RewardModel,
    characters,
    characters_as_model,
    check_rewards,
    load_reward_model,
)
from tokenenv.tasks import is_bundled, load_object, load_task, model_source, names_code
from tokenenv.user_code import user_code

__all__ = ["FunctionScores", "GoldScores", "ModelScores", "TextReward", "gold_of", "reward_of"]


class TextReward(Protocol):
    """Texts in, scores out.

    Attributes:
        name: for messages.
        precision: float type in which it computes, whose digits its scores can be trusted to.
    """

    name: str
    precision: torch.dtype

    def scores(self, texts: Sequence[Text]) -> np.ndarray:
        """(B,) float64 scores of B texts."""
        ...

    def token_counts(self, texts: Sequence[Text]) -> np.ndarray | None:
        """(B,) tokens of the responses; None where it reads no tokens."""
        ...

    def why_unreadable(self, text: Text) -> str | None:
        """Why it can't read a text as it is; None where it can."""
        ...

    def token_ids(self, text: Text) -> set[int]:
        """The tokens of a response; empty where it reads no tokens."""
        ...


class ModelScores:
    """A reward model; its scores are normalised, as in training.

    Args:
        reward_model: the model.
        language_model: whose template writes conversations where the reward model has none.
    """

    def __init__(
        self, reward_model: RewardModel, language_model: LanguageModel | None = None
    ) -> None:
        self.reward_model, self.language_model = reward_model, language_model
        self.name = f"the reward model {reward_model.name!r}"
        self.precision = reward_model.model.dtype

    def scores(self, texts: Sequence[Text]) -> np.ndarray:
        """(B,) float64: (raw − mean) / deviation, all in one length-sorted pass.

        Raises:
            ValueError: one is no finite number.
        """
        raw = self.reward_model.raw_rewards([self._encode(text) for text in texts])
        normalized = self.reward_model.normalize(raw)
        check_rewards(
            normalized,
            f"{self.name} gives, normalised,",
            lambda index: f"the response {texts[index].words[:60]!r}",
        )
        return normalized

    def token_counts(self, texts: Sequence[Text]) -> np.ndarray:
        """(B,) tokens of the responses' texts."""
        return np.array([len(self._response_ids(text)) for text in texts], dtype=np.int64)

    def why_unreadable(self, text: Text) -> str | None:
        """It is too long, or the tokenizer can't spell it."""
        tokenizer = self.reward_model.tokenizer
        try:
            ids = self._encode(text)
        except Exception as error:  # tokenizers raise nothing narrower
            return f"its tokenizer can't encode it ({' '.join(str(error).split())[:80]})"
        if not len(ids):
            return "it has no token"
        if len(ids) > self.reward_model.max_tokens:
            return f"it has more than the model's {self.reward_model.max_tokens:,} positions"
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in self._response_ids(text):
            return "its tokenizer has no token for a part of it"
        if int(ids.max()) >= self.reward_model.num_embeddings:
            return "its tokenizer gives ids that the model has no row for"
        return None

    def token_ids(self, text: Text) -> set[int]:
        """The tokens of a response's text."""
        return set(self._response_ids(text))

    def _response_ids(self, text: Text) -> list[int]:
        return list(self.reward_model.tokenizer(text.words, add_special_tokens=False)["input_ids"])

    def _encode(self, text: Text) -> np.ndarray:
        """(n,) int64 ids, as `tokenenv.rewards.as_token_pair` has them in training."""
        prompt, response = text.prompt.content, text.response
        if isinstance(prompt, str) and isinstance(response, str):
            return self.reward_model.encode(prompt, response, text.stopped)
        before = as_turn_messages(prompt, "user")
        if self.reward_model.chat.exists or self.language_model is None:
            answer = as_turn_messages(response, "assistant")
            return self.reward_model.encode_messages([*before, *answer])
        written = self.language_model.chat.prompt(before)
        return self.reward_model.encode(written, text.words, text.stopped)


class FunctionScores:
    """A reward function; it gets texts as they are.

    Args:
        function: see `tokenenv.rewards.parameters`.
        name: its name.
        language_model: whose tokens it gets, where it asks for them; and whose template writes
            conversations.

    Raises:
        ValueError: it asks for tokens, and there is no language model.
    """

    precision = torch.float32

    def __init__(
        self, function: Any, name: str, language_model: LanguageModel | None = None
    ) -> None:
        self.name = f"reward function {name!r}"
        self.language_model = language_model
        of_signature = FunctionReward(function, self.name, characters_as_model()).parameters
        asked = of_signature.required | of_signature.optional
        self.wants_tokens = bool(asked & {"response_tokens", "completion_ids", "prompt_ids"})
        if self.wants_tokens and language_model is None:
            raise ValueError(
                f"{self.name} asks for tokens: give --reference, the model whose tokenizer is "
                "meant."
            )
        reads = language_model if self.wants_tokens else characters_as_model()
        assert reads is not None
        self.reward = FunctionReward(function, self.name, reads)

    def scores(self, texts: Sequence[Text]) -> np.ndarray:
        """(B,) float64: what one call of the function returns for them.

        Raises:
            ValueError: the function fails, or returns no rewards.
        """
        return self.reward([self._episode(text) for text in texts]).raw

    def token_counts(self, texts: Sequence[Text]) -> np.ndarray | None:
        """(B,) tokens in the language model's tokenizer, where there is one."""
        if self.language_model is None:
            return None
        tokenizer = self.language_model.tokenizer
        return np.array(
            [len(tokenizer(text.words, add_special_tokens=False)["input_ids"]) for text in texts]
        )

    def why_unreadable(self, text: Text) -> str | None:
        """The tokenizer whose tokens it asks for can't give the text back; several turns."""
        if not isinstance(text.response, str):
            return "it has several turns, and a function reads one"
        if self.wants_tokens and self.language_model is not None:
            try:
                self.language_model.encode_response(text.response)
            except ValueError as error:
                return str(error)[:160]
        return None

    def token_ids(self, text: Text) -> set[int]:
        """None: what it has seen is not known."""
        return set()

    def _episode(self, text: Text) -> Episode:
        prompt = text.before
        messages = messages_of(text.prompt)
        if messages is not None:
            prompt = "\n\n".join(str(message["content"]) for message in messages)
            if self.language_model is not None:
                prompt = self.language_model.chat.prompt(messages)
        if not self.wants_tokens:
            ids = characters(prompt), characters(text.words)
            return Episode(*ids, text.stopped, text.prompt)
        assert self.language_model is not None
        response = self.language_model.encode_response(text.words)
        if text.stopped:
            response = np.append(response, self.language_model.eos_token_ids[0])
        return Episode(self.language_model.encode(prompt), response, text.stopped, text.prompt)


class GoldScores(FunctionScores):
    """The gold reward of a task.

    Args:
        name: of the task.
    """

    def __init__(self, name: str) -> None:
        task = load_task(name, "gold")
        if task.gold_reward is None:
            raise ValueError(f"gold={name!r}: this task has no gold reward; leave it out.")
        self.name = f"the gold reward of {name!r}"
        self.gold_reward = task.gold_reward
        self.language_model, self.wants_tokens = None, False

    def scores(self, texts: Sequence[Text]) -> np.ndarray:
        """(B,) float64 gold rewards.

        Raises:
            ValueError: one is no finite number, or the task's function fails.
        """
        with user_code(self.name, self.gold_reward):
            gold = [self.gold_reward(text.before, text.words, text.stopped) for text in texts]
        values = np.asarray(gold, dtype=np.float64)
        check_rewards(values, f"{self.name} is", lambda i: f"{texts[i].words[:60]!r}")
        return values


def reward_of(
    name: str, device: str, language_model: LanguageModel | None = None, role: str = "reward_model"
) -> TextReward:
    """The reward that a name stands for: code, a folder, a hub id or a task.

    Args:
        name: the name.
        device: of a reward model.
        language_model: see `FunctionScores`.
        role: the setting that named it, for messages.

    Raises:
        ValueError: it is none of them.
    """
    source = model_source(name, "reward_model")
    if not names_code(source):
        return ModelScores(load_reward_model(source, device), language_model)
    function = load_object(source, role)
    if not callable(function):
        raise ValueError(f"{role}={name!r} names no function.")
    return FunctionScores(function, source, language_model)


def gold_of(name: str, device: str, language_model: LanguageModel | None = None) -> TextReward:
    """The reward that is taken for the truth: a task's gold reward, or as `reward_of`.

    Raises:
        ValueError: it is none.
    """
    if is_bundled(name):
        return GoldScores(name)
    try:
        return reward_of(name, device, language_model, "gold")
    except ValueError as error:
        raise ValueError(f"gold={name!r:.200}: {error}") from error
