"""What a reward function asks for, read off its signature, and what it gets.

Two shapes are told apart by the names of parameters:

* `(prompts, responses, …)`: texts; the first two parameters are filled by position, whatever they
  are called.
* a parameter named `completions`: the shape of TRL, called by name. Prompts and completions are
  texts; of a prompt that is a conversation, lists of messages.

Further parameters are columns of the prompts' rows, and a `**kwargs` gets all of them, but for
`messages` (the conversation that a prompt is), `response_tokens` (the text of each token) and TRL's
`completion_ids` and `prompt_ids`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenenv.data import Prompt, messages_of, shown_prompt
from tokenenv.models import LanguageModel, prompt_text
from tokenenv.rewards.raw_rewards import Episode

__all__ = ["Parameters"]

_OF_BOTH = frozenset({"messages", "response_tokens"})
_BY_NAME = _OF_BOTH | {"prompts", "responses", "completions", "completion_ids", "prompt_ids"}
_USUAL = frozenset({"prompts", "responses", "prompt", "response"})


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a reward function.

    Attributes:
        first: the names of the two that are filled by position; empty where all go by name.
        taken: those of them that a `**kwargs` can't hold, since they could go by name too.
        required: names of the others without a default.
        optional: names of the others with one.
        takes_all: whether it has a `**kwargs`.
        is_trl: whether it has the shape of TRL.
    """

    first: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    takes_all: bool = False
    is_trl: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Parameters:
        """Those of a function; one without a signature takes prompts and responses alone."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return cls(first=("prompts", "responses"))
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names = [p.name for p in named]
        is_trl = "completions" in names
        is_by_name = is_trl or (
            "responses" in names and [p.name for p in places[1:2]] != ["responses"]
        )
        first = () if is_by_name else tuple(p.name for p in places[:2])
        others = [p for p in named if p.name not in first]
        return cls(
            first=first,
            taken=frozenset(names).intersection(first),
            required=frozenset(p.name for p in others if p.default is p.empty),
            optional=frozenset(p.name for p in others if p.default is not p.empty),
            takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
            is_trl=is_trl,
        )

    @property
    def is_by_name(self) -> bool:
        """Whether prompts and responses go by name."""
        return self.is_trl or "responses" in self.required | self.optional

    @property
    def _reserved(self) -> frozenset[str]:
        """Names that are no columns."""
        return _BY_NAME if self.is_by_name else _OF_BOTH

    def columns(self, available: Iterable[str]) -> list[str]:
        """The columns that the function gets, of those that there are."""
        asked = self.required | self.optional
        return [name for name in available if self.takes_all or name in asked]

    def check(self, origins: Sequence[Prompt], name: str) -> None:
        """Check that prompts have what the function asks for.

        Args:
            origins: the prompts.
            name: of the function, for messages.

        Raises:
            ValueError: a column is missing, or has the name of something else.
        """
        available = dict.fromkeys(column for origin in origins for column in origin.columns)
        listed = ", ".join(map(repr, available)) or "none"
        for column in self.columns(available):
            if column in self._reserved:
                raise ValueError(
                    f"the prompts have a column {column!r}, and {name} would get it in the place "
                    f"of something else of that name: rename the column (there are: {listed})."
                )
        for parameter in self.first:
            if parameter in available and parameter not in _USUAL:
                raise ValueError(
                    f"{name} gets prompts and responses as its first two parameters, but calls one "
                    f"{parameter!r}, as a column of the prompts is called: write def f(prompts, "
                    f"responses, {parameter}), or def f(responses, {parameter})."
                )
            if parameter in available and parameter in self.taken and self.takes_all:
                raise ValueError(
                    f"{name} calls one of its first two parameters {parameter!r} and has a "
                    f"**kwargs, which can't hold the column of that name: rename the column, or "
                    f"end the two with a slash, def f({', '.join(self.first)}, /, …) (there are: "
                    f"{listed})."
                )
        for column in sorted(self.required - self._reserved):
            self._require(
                [column in origin.columns for origin in origins],
                origins,
                f"{name} asks for the column {column!r}",
                f"Columns: {listed}. Add it to every row of the prompts, as in "
                f'{{"prompt": …, "{column}": …}}, or give the parameter a default.',
            )
        if "messages" in self.required:
            self._require(
                [messages_of(origin) is not None for origin in origins],
                origins,
                f"{name} asks for messages",
                "Give prompts as lists of messages, or messages=None in the function.",
            )

    @staticmethod
    def _require(has: list[bool], origins: Sequence[Prompt], asked: str, remedy: str) -> None:
        if all(has):
            return
        first = origins[has.index(False)]
        many = f"{has.count(False):,} of {len(has):,} prompts lack" if any(has) else "no prompt has"
        raise ValueError(f"{asked}, which {many} (the first: {shown_prompt(first)}). {remedy}")

    def arguments(
        self, episodes: Sequence[Episode], language_model: LanguageModel, name: str
    ) -> tuple[list[Any], dict[str, Any]]:
        """What a call gets for episodes: arguments by position, and by name.

        Raises:
            ValueError: an episode's prompt lacks a column.
        """
        origins = [episode.origin for episode in episodes]
        self.check([origin or _NO_ORIGIN for origin in origins], name)
        make: dict[str, Callable[[], Any]] = {
            "prompts": lambda: [self._prompt(e, language_model) for e in episodes],
            "responses": lambda: [language_model.decode(e.response) for e in episodes],
            "completions": lambda: [self._completion(e, language_model) for e in episodes],
            "completion_ids": lambda: [e.response.tolist() for e in episodes],
            "prompt_ids": lambda: [e.prompt.tolist() for e in episodes],
            "response_tokens": lambda: [
                [language_model.decode([i]) for i in e.response] for e in episodes
            ],
            "messages": lambda: [_as_list(messages_of(origin)) for origin in origins],
        }
        asked = self.required | self.optional
        if self.takes_all and self.is_trl:
            asked = asked | {"prompts", "completion_ids"}
        elif self.takes_all and any(messages_of(origin) is not None for origin in origins):
            asked = asked | {"messages"}
        named = {key: make[key]() for key in sorted(asked & self._reserved)}
        available = dict.fromkeys(key for o in origins if o is not None for key in o.columns)
        for column in self.columns(available):
            named[column] = [None if o is None else o.columns.get(column) for o in origins]
        if self.is_by_name:
            return [], named
        return [make["prompts"](), make["responses"]()], named

    def _prompt(self, episode: Episode, language_model: LanguageModel) -> Any:
        messages = messages_of(episode.origin)
        if messages is None:
            return language_model.decode(episode.prompt)
        if self.is_trl:
            return _as_list(messages)
        return prompt_text(language_model.tokenizer, episode.prompt)

    def _completion(self, episode: Episode, language_model: LanguageModel) -> Any:
        text = language_model.decode(episode.response)
        if messages_of(episode.origin) is None:
            return text
        return [{"role": "assistant", "content": text}]


_NO_ORIGIN = Prompt("")


def _as_list(messages: Any) -> Any:
    """The messages as the lists and dictionaries that functions expect."""
    return None if messages is None else [dict(message) for message in messages]
