"""A reward model that lives elsewhere: its server gets texts, or token ids, and returns rewards.

The rewards are those that the model would give here: whoever serves one of our reward models says
how its tokenizer spells, whether it has a chat template and how it is normalised, and gets what
`LearnedReward` would have read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenenv.data import Prompt, messages_of, shown_prompt
from tokenenv.models import LanguageModel, decode_all, prompt_text
from tokenenv.notes import note_once
from tokenenv.remote import Item, RewardClient, vocabulary_hash
from tokenenv.rewards.raw_rewards import Episode, RawRewards, check_rewards

__all__ = ["RemoteReward"]

_LEAST_DEVIATION = 1e-8

_MEASURED: dict[tuple[str, str], tuple[Sequence[Episode], float, float]] = {}
"""Address and fingerprint → the reference's responses, and the rewards' mean and deviation."""


class RemoteReward:
    """The reward that a server gives.

    Args:
        client: of the server.
        language_model: the reference, whose tokenizer the episodes are in.
        may_abstain: whether a server may say that its reward does not apply.
        reference_episodes: gives responses of the reference, by which rewards are normalised where
            the server names no mean and deviation; None: they are left as they are then.

    Raises:
        RewardServerError: the server can't be used.
        ValueError: its rewards of the reference's responses do not vary.
    """

    def __init__(
        self,
        client: RewardClient,
        language_model: LanguageModel,
        may_abstain: bool = False,
        reference_episodes: Callable[[], Sequence[Episode]] | None = None,
    ) -> None:
        self.client, self.language_model, self.may_abstain = client, language_model, may_abstain
        info = client.info
        self.is_model = info.kind == "model"
        self.feeds_tokens = (
            info.vocabulary is not None
            and (info.vocabulary_size or 0) >= language_model.vocabulary_size
            and info.vocabulary == vocabulary_hash(language_model.tokenizer.get_vocab())
        )
        if info.vocabulary is not None and not self.feeds_tokens:
            note_once(
                f"{self.name} has another vocabulary than the reference {language_model.name!r}: "
                "it reads responses as text, tokenised again."
            )
        self.mean, self.std = 0.0, 1.0
        if info.reward_mean is not None and info.reward_std is not None:
            self.mean, self.std = info.reward_mean, info.reward_std
        elif reference_episodes is not None:
            self.mean, self.std = self._measured(reference_episodes())

    @property
    def name(self) -> str:
        """For messages."""
        return f"the reward server {self.client.address}"

    def _measured(self, episodes: Sequence[Episode]) -> tuple[float, float]:
        key = str(self.client.address), self.client.info.fingerprint
        known, mean, std = _MEASURED.get(key, ((), 0.0, 1.0))
        if known is not episodes:
            raw = self._raw(episodes)
            mean, std = float(np.nanmean(raw)), float(np.nanstd(raw))
            if not std > _LEAST_DEVIATION:
                raise ValueError(
                    f"{self.name} gives the same reward to all of {len(episodes)} responses of the "
                    f"reference (standard deviation {std:.3g}), so that it can't be normalised: "
                    "let it name 'reward_mean' and 'reward_std' (0 and 1 leave rewards as they "
                    "are)."
                )
            _MEASURED[key] = episodes, mean, std
        return mean, std

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check that prompts have the columns that the server asks for, and that JSON holds them.

        Raises:
            ValueError: one of them does not.
        """
        for name in self.client.info.required_columns:
            lacking = [origin for origin in origins if name not in origin.columns]
            if lacking:
                raise ValueError(
                    f"{self.name} asks for the column {name!r}, which {len(lacking):,} of "
                    f"{len(origins):,} prompts lack (the first: {shown_prompt(lacking[0])}). Add "
                    "it to every row of the prompts."
                )
        for origin in origins:
            try:
                content = [self._columns(origin), _messages(origin)]
                json.dumps(content, allow_nan=False, ensure_ascii=False).encode("utf-8")
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"the prompt {shown_prompt(origin)} can't be sent to {self.name} as JSON "
                    f"({' '.join(str(error).split())[:120]}): give texts, numbers, lists and "
                    "mappings of these."
                ) from error

    def check_context(self, tokens: int) -> None:
        """Check that the server can read sequences of as many tokens.

        Raises:
            ValueError: they are too long for it.
        """
        limit = self.client.info.max_tokens
        if self.feeds_tokens and limit is not None and tokens > limit:
            raise ValueError(
                f"a prompt and response may have {tokens} tokens, more than the {limit} that "
                f"{self.name} can read: lower max_prompt_tokens or max_new_tokens."
            )

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        """Rewards of `episodes`.

        Raises:
            RewardServerError: the server can't be used.
            ValueError: a reward is beyond float32, or abstains where it may not.
        """
        raw = self._raw(episodes)
        with np.errstate(over="ignore"):
            normalized = (raw - self.mean) / self.std
        applies = ~np.isnan(raw)
        self._check(normalized[applies], ", normalised,", np.flatnonzero(applies))
        return RawRewards(raw, normalized)

    def _raw(self, episodes: Sequence[Episode]) -> np.ndarray:
        """(B,) float64; NaN where the reward does not apply. Alike long ones go together."""
        order = sorted(range(len(episodes)), key=lambda i: _tokens(episodes[i]))
        given = self.client.scores([self.item(episodes[index]) for index in order])
        raw = np.full(len(episodes), math.nan)
        raw[order] = [math.nan if reward is None else reward for reward in given]
        applies = ~np.isnan(raw)
        if not self.may_abstain and not applies.all():
            raise ValueError(
                f"{self.name} says of response {int(np.flatnonzero(~applies)[0])} that its reward "
                "does not apply (null), which is for one of several rewards, and this is the only "
                "one: let it return a number."
            )
        self._check(raw[applies], "", np.flatnonzero(applies))
        return raw

    def _check(self, values: np.ndarray, how: str, places: np.ndarray) -> None:
        check_rewards(values, f"{self.name} gives{how}", lambda i: f"response {int(places[i])}")

    def item(self, episode: Episode) -> Item:
        """An episode as the server gets it."""
        info, model = self.client.info, self.language_model
        messages, columns = _messages(episode.origin), self._columns(episode.origin)
        ids = episode.response
        if episode.stopped and len(ids) and int(ids[-1]) in model.eos_token_ids:
            ids = ids[:-1]
        is_whole = info.special_tokens or messages is not None
        prompt = prompt_text(model.tokenizer, episode.prompt) if is_whole else None
        item: Item = {
            "prompt": model.decode(episode.prompt) if prompt is None else prompt,
            "response": (
                decode_all(model.tokenizer, ids.tolist())
                if info.special_tokens
                else model.decode(episode.response)
            ),
            "stopped": bool(episode.stopped),
        }
        if messages is not None:
            item["messages"] = messages
        if columns:
            item["columns"] = columns
        if self.feeds_tokens and not (messages is not None and info.chat):
            item["prompt_ids"], item["response_ids"] = episode.prompt.tolist(), ids.tolist()
        return item

    def _columns(self, origin: Prompt | None) -> dict[str, Any]:
        """The columns of a prompt that the server wants."""
        wanted, columns = self.client.info.columns, origin.columns if origin else {}
        names = columns if wanted is None else (name for name in wanted if name in columns)
        return {name: columns[name] for name in names}


def _messages(origin: Prompt | None) -> list[dict[str, Any]] | None:
    messages = messages_of(origin)
    return None if messages is None else [dict(message) for message in messages]


def _tokens(episode: Episode) -> int:
    return len(episode.prompt) + len(episode.response)
