"""The prompts of an environment: where they come from, their texts, their token ids."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenenv.data import (
    Prompt,
    ReadReport,
    as_prompt,
    messages_of,
    read_prompt_rows,
    shown_prompt,
    truncate_prompt,
)
from tokenenv.models import LanguageModel
from tokenenv.notes import note_once
from tokenenv.tasks import Task, is_bundled, load_task, names_code
from tokenenv.user_code import user_code

__all__ = ["PromptBook", "named_prompts", "read_origins", "training_prompts"]


def read_origins(
    source: Any,
    task: Task,
    split: str,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> list[Prompt]:
    """The prompts that an environment's argument `prompts` names, as they were given.

    Args:
        source: a file, the name of a task, or a list of prompts; None: those of the task.
        task: of the environment.
        split: `"train"` or `"eval"`.
        columns: as `named_prompts`.
        skip_bad: likewise.

    Raises:
        ValueError: there are none, or one of them is no prompt.
    """
    if isinstance(source, str):
        return named_prompts(source, split, columns, skip_bad)
    _refuse_without_file(columns, skip_bad, "no file of prompts is named")
    if source is None:
        return _prompts_of(task, split)
    if not isinstance(source, Sequence) or not source:
        raise ValueError(
            f"prompts={source!r:.80}: give a non-empty list of texts or of lists of messages, the "
            "name of a file, or the name of a task."
        )
    return _as_prompts(source, "prompts")


def named_prompts(
    source: str,
    split: str,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> list[Prompt]:
    """The prompts of a file, or of a task.

    Args:
        source: a file of any format that is read, the name of a bundled task, or
            `"package.module:TASK"`.
        split: `"train"` or `"eval"`.
        columns: what columns of a file mean → their names in it.
        skip_bad: whether to go on without rows of a file that can't be used, which is said.

    Raises:
        ValueError: there are none, or one of them is no prompt; or columns or bad rows are spoken
            of, and it is no file.
    """
    is_task = names_code(source) or (is_bundled(source) and not os.path.exists(source))
    if is_task:
        _refuse_without_file(columns, skip_bad, f"prompts={source!r} is a task")
        return _prompts_of(load_task(source, "prompts"), split)
    report = ReadReport()
    prompts = read_prompt_rows(source, split, columns, skip_bad, report)
    if report.bad.count:
        note_once(f"left out of the prompts: {report.bad.describe(source)}")
    return prompts


def _refuse_without_file(columns: Mapping[str, str] | None, skip_bad: bool, why: str) -> None:
    """Raise ValueError where settings of a file of prompts would be without effect."""
    given = [
        *(["prompt_columns (--columns)"] if columns else []),
        *(["skip_bad_prompts (--skip-bad)"] if skip_bad else []),
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)} can be used with a file of prompts alone, and {why}: leave it "
            "out, or name a file."
        )


def _as_prompts(values: Sequence[Any], what: str) -> list[Prompt]:
    return [
        as_prompt(value, f"{what}, number {n}: the prompt") for n, value in enumerate(values, 1)
    ]


def _prompts_of(task: Task, split: str) -> list[Prompt]:
    """A task's prompts; ValueError where its function raises, or gives something else."""
    with user_code(f"prompts of the task {task.name!r}", task.prompts):
        prompts = task.prompts(split)
    what = f"prompts of the task {task.name!r}"
    if not isinstance(prompts, list | tuple) or not prompts:
        raise ValueError(
            f"{what} gave {prompts!r:.80} for split={split!r}: it must return a non-empty list of "
            "texts, or of lists of messages."
        )
    return _as_prompts(prompts, what)


MOST_OTHERS = 4096
"""Prompts of callers whose ids are remembered: as options of `reset`, ever new ones may come."""


class PromptBook:
    """The prompts of a token MDP, and the ids of every prompt that was asked for.

    Args:
        origins: the prompts as they were given.
        language_model: whose tokenizer and chat template are used.
        max_prompt_tokens: P.
        truncation: what is done with longer ones: `"error"`, `"keep-end"` or `"drop"`.
        encodes_all: whether all are encoded now, so that one that can't be used is refused now;
            conversations always are, and where long ones are cut or dropped.

    Attributes:
        origins: the prompts as they were given.
        texts: the same as text; of a conversation, what its chat template writes.

    Raises:
        ValueError: a prompt can't be used.
    """

    def __init__(
        self,
        origins: list[Prompt],
        language_model: LanguageModel,
        max_prompt_tokens: int,
        truncation: str = "error",
        encodes_all: bool = True,
    ) -> None:
        self.language_model = language_model
        self.max_prompt_tokens, self.truncation = max_prompt_tokens, truncation
        self._ids: dict[str, np.ndarray] = {}  # of these prompts
        self._others: dict[str, np.ndarray] = {}  # of the last that callers asked for
        self.origins, self.texts = origins, [self.text_of(origin) for origin in origins]
        if truncation != "error":
            self._truncate()
        elif encodes_all or any(messages_of(origin) is not None for origin in origins):
            for text in self.texts:
                self._ids[text] = self._encoded(text)
        self._places: dict[str, list[int]] = {}
        for index, text in enumerate(self.texts):
            self._places.setdefault(text, []).append(index)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the model, which the token MDP loads again by its name."""
        return {key: value for key, value in self.__dict__.items() if key != "language_model"}

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptBook:
        """A copy that shares the prompts, which never change."""
        return copy.copy(self)

    @functools.cached_property
    def digest(self) -> str:
        """Hexadecimal digest of the prompts in their order, with their columns."""
        digest = hashlib.sha256()
        for text, origin in zip(self.texts, self.origins, strict=True):
            row = json.dumps([text, dict(origin.columns)], default=str, sort_keys=True)
            digest.update(row.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:32]

    def _truncate(self) -> None:
        """Cut or drop prompts of more than P tokens, and say how many."""
        lengths = []
        for text in self.texts:
            ids = self.language_model.encode(text)
            lengths.append(len(ids))
            if not len(ids):
                self._encoded(text)  # raises
            if len(ids) <= self.max_prompt_tokens:
                self._ids[text] = ids
            elif self.truncation == "keep-end":
                self._ids[text] = self._cut(ids)
        is_long = [length > self.max_prompt_tokens for length in lengths]
        if not any(is_long):
            return
        many = (
            f"{sum(is_long):,} of {len(is_long):,} prompts have more than max_prompt_tokens="
            f"{self.max_prompt_tokens} tokens (the longest {max(lengths):,})"
        )
        if self.truncation == "keep-end":
            note_once(f"{many}: their beginnings were cut off (prompt_truncation='keep-end').")
            return
        if all(is_long):
            raise ValueError(
                f"{many}, and prompt_truncation='drop' would leave none: raise max_prompt_tokens, "
                "or use prompt_truncation='keep-end'."
            )
        note_once(f"{many}: they were left out (prompt_truncation='drop').")
        kept = [i for i, is_out in enumerate(is_long) if not is_out]
        self.origins = [self.origins[i] for i in kept]
        self.texts = [self.texts[i] for i in kept]

    def text_of(self, origin: Prompt) -> str:
        """The text of a prompt.

        Raises:
            ValueError: it is a conversation that there is no chat template for.
        """
        messages = messages_of(origin)
        return (
            str(origin.content) if messages is None else self.language_model.chat.prompt(messages)
        )

    def origin_of(self, prompt: Any) -> Prompt:
        """The `Prompt` that a value stands for, with the columns that it has among the prompts.

        Raises:
            ValueError: it is no prompt; or it is there several times with different columns.
        """
        origin = as_prompt(prompt)
        if origin.columns:
            return origin
        places = self._places.get(self.text_of(origin), [])
        known = [self.origins[place] for place in places]
        if any(other.columns != known[0].columns for other in known):
            raise ValueError(
                f"the prompt {shown_prompt(origin)} is {len(known)} times among the prompts, "
                "with different columns: give the row, "
                '{"prompt": …, "column": …}, so that the reward gets the right ones.'
            )
        return known[0] if known else origin

    def encode(self, prompt: Any) -> np.ndarray:
        """(n,) int64 token ids of anything that `as_prompt` takes, 1 ≤ n ≤ P.

        Raises:
            ValueError: it is no prompt, is empty, or is longer than P tokens.
        """
        if isinstance(prompt, str) and prompt in self._ids:
            return self._ids[prompt]
        return self.encode_text(self.text_of(as_prompt(prompt)))

    def encode_text(self, text: str) -> np.ndarray:
        """(n,) int64 token ids of a prompt's text, 1 ≤ n ≤ P; see `encode`."""
        if text in self._places:
            if text not in self._ids:
                self._ids[text] = self._encoded(text)
            return self._ids[text]
        if text not in self._others:
            if len(self._others) >= MOST_OTHERS:
                del self._others[next(iter(self._others))]
            self._others[text] = self._encoded(text)
        return self._others[text]

    def _encoded(self, text: str) -> np.ndarray:
        """As `encode_text`, nothing remembered."""
        ids = self.language_model.encode(text)
        if not len(ids):
            raise ValueError(f"the prompt {text[:60]!r} is empty to the tokenizer: no token.")
        if len(ids) > self.max_prompt_tokens:
            if self.truncation != "keep-end":
                raise ValueError(
                    f"the prompt {text[:60]!r} has {len(ids)} tokens, more than max_prompt_tokens="
                    f"{self.max_prompt_tokens}: shorten it, raise max_prompt_tokens, or set "
                    "prompt_truncation to 'keep-end' (cut its beginning off) or 'drop' (leave long "
                    "prompts out)."
                )
            ids = self._cut(ids)
        return ids

    def _cut(self, ids: np.ndarray) -> np.ndarray:
        """The last P tokens; BOS stays at the front."""
        bos = getattr(self.language_model.tokenizer, "bos_token_id", None)
        return truncate_prompt(ids, self.max_prompt_tokens, bos)


def training_prompts(settings: Any, language_model: LanguageModel) -> PromptBook:
    """The training prompts of an environment, encoded as they are asked for.

    Args:
        settings: the environment's `ResolvedSettings`.
        language_model: in whose tokens.

    Raises:
        ValueError: there are none, or one of them can't be used.
    """
    origins = read_origins(
        settings.prompts,
        load_task(settings.task),
        "train",
        settings.prompt_columns,
        settings.skip_bad_prompts,
    )
    return PromptBook(
        origins,
        language_model,
        settings.max_prompt_tokens,
        settings.prompt_truncation,
        encodes_all=False,
    )
