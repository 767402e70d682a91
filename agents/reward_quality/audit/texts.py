"""What an audit looks at: responses with their prompts, from pairs or from samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.reward_quality.audit.config import LEAST_TEXTS, AuditConfig
from tokenenv.data import Message, PreferencePair, Prompt, parse_columns, read_pairs
from tokenenv.mdp import PromptBook, named_prompts
from tokenenv.models import (
    LanguageModel,
    as_turn_messages,
    check_context,
    load_frozen,
    sample_responses,
)
from tokenenv.tasks import is_bundled, load_task, model_source

__all__ = ["Labels", "Text", "Texts", "load_reference", "texts_of_pairs", "texts_of_samples"]

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Text:
    """A response and its prompt.

    Attributes:
        prompt: what it answers.
        response: a text, or the messages of several turns.
        stopped: whether it is complete, rather than cut off.
    """

    prompt: Prompt
    response: str | tuple[Message, ...]
    stopped: bool

    @property
    def words(self) -> str:
        """The response as one text, for its features."""
        if isinstance(self.response, str):
            return self.response
        return "\n\n".join(str(message["content"]) for message in self.response)

    @property
    def before(self) -> str:
        """The text that the response goes on with; empty where it is a turn of its own."""
        return self.prompt.content if isinstance(self.prompt.content, str) else ""

    @property
    def last(self) -> str:
        """The text of the response, or of its last turn: what edits change."""
        if isinstance(self.response, str):
            return self.response
        return str(self.response[-1]["content"])

    def with_last(self, text: str) -> Text:
        """The same with another text of its last turn."""
        if isinstance(self.response, str):
            return replace(self, response=text)
        last: Any = {**self.response[-1], "content": text}
        return replace(self, response=(*self.response[:-1], last))


@dataclass(frozen=True, slots=True)
class Labels:
    """Who won each of M pairs among the texts.

    Attributes:
        chosen: (M,) index of a text.
        rejected: (M,) index of the other.
        preference: (M,) probability that the first is the better one; 0.5 for a tie.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    preference: np.ndarray


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of an audit, those of a prompt one after another.

    Attributes:
        texts: n of them.
        of_prompt: (n,) int64 number of the prompt, in ascending order.
        labels: of pairs; None of samples.
        source: what is said of where they come from, for JSON.
    """

    texts: list[Text]
    of_prompt: np.ndarray
    labels: Labels | None
    source: dict[str, Any]

    def subset(self, is_left: np.ndarray) -> Texts:
        """Those that are left, and pairs of which both are.

        Args:
            is_left: (n,) bool.
        """
        place = np.cumsum(is_left) - 1
        labels = self.labels
        if labels is not None:
            pairs = is_left[labels.chosen] & is_left[labels.rejected]
            labels = Labels(
                place[labels.chosen[pairs]],
                place[labels.rejected[pairs]],
                labels.preference[pairs],
            )
        _, of_prompt = np.unique(self.of_prompt[is_left], return_inverse=True)
        left = [text for text, is_in in zip(self.texts, is_left, strict=True) if is_in]
        return Texts(left, of_prompt.astype(np.int64), labels, self.source)

    def check(self) -> None:
        """Raise ValueError where there are too few for an audit."""
        prompts = len(np.unique(self.of_prompt))
        if len(self.texts) < LEAST_TEXTS or prompts < LEAST_TEXTS // 2:
            raise ValueError(
                f"there are {len(self.texts)} texts of {prompts} prompts to audit the reward on; "
                f"it takes at least {LEAST_TEXTS} of {LEAST_TEXTS // 2}, or what holds by chance "
                "would be taken for a bias: give more pairs or prompts."
            )


def texts_of_pairs(config: AuditConfig) -> Texts:
    """The responses of the pairs of a file, two for each pair.

    Raises:
        ValueError: the file can't be used, or has too few pairs.
    """
    assert config.pairs is not None
    pairs = read_pairs(config.pairs, parse_columns(config.columns), config.skip_bad)
    total = len(pairs)
    if 2 * total > config.max_texts:
        rng = np.random.default_rng(config.seed)
        pairs = [pairs[i] for i in np.sort(rng.permutation(total)[: max(1, config.max_texts // 2)])]
    order, of_pair = _by_prompt(pairs)
    pairs = [pairs[i] for i in order]
    texts = [
        Text(Prompt(_prompt_of(pair, side)), side, stopped)
        for pair in pairs
        for side, stopped in (
            (pair.chosen, pair.chosen_stopped),
            (pair.rejected, pair.rejected_stopped),
        )
    ]
    first = np.arange(0, len(texts), 2)
    labels = Labels(first, first + 1, np.array([pair.preference for pair in pairs]))
    source = {"pairs": str(config.pairs), "pairs_in_file": total, "pairs_audited": len(pairs)}
    found = Texts(texts, np.repeat(of_pair, 2), labels, source)
    found.check()
    return found


def _prompt_of(pair: PreferencePair, side: Any) -> Any:
    """The prompt as a reward reads it: messages where either part is one."""
    if isinstance(pair.prompt, str) and not isinstance(side, str):
        return tuple(as_turn_messages(pair.prompt, "user"))
    return pair.prompt


def _by_prompt(pairs: Sequence[PreferencePair]) -> tuple[list[int], np.ndarray]:
    """Pairs in an order in which those of a prompt stand together, and the prompts' numbers.

    Without two different prompts each pair is a prompt of its own.
    """
    keys = [repr(pair.prompt) for pair in pairs]
    if len(set(keys)) < 2:
        return list(range(len(pairs))), np.arange(len(pairs))
    numbers: dict[str, int] = {}
    of_pair = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    order = np.argsort(of_pair, kind="stable")
    return order.tolist(), of_pair[order]


def load_reference(config: AuditConfig, device: str) -> LanguageModel | None:
    """The model that is sampled from, in whose tokens functions read; None where none is named.

    Raises:
        ValueError: it can't be loaded, or prompts are given without one.
    """
    name = config.reference
    if name is None and config.prompts is not None:
        if not is_bundled(config.prompts):
            raise ValueError(
                f"prompts={config.prompts!r:.60} are to be answered, and no reference is named: "
                "give --reference, the model whose responses the reward is to judge."
            )
        name = config.prompts
    return None if name is None else load_frozen(model_source(name, "reference"), device)


def texts_of_samples(config: AuditConfig, reference: LanguageModel) -> Texts:
    """Responses that a reference samples to prompts, several to each.

    Raises:
        ValueError: the prompts or the model can't be used, or there are too few prompts.
    """
    assert config.prompts is not None
    prompts = named_prompts(config.prompts, config.split)
    most = max(1, config.max_texts // config.responses)
    if len(prompts) > most:
        order = np.random.default_rng(config.seed).permutation(len(prompts))[:most]
        prompts = [prompts[i] for i in np.sort(order)]
    new_tokens = _max_new_tokens(config)
    book = PromptBook(prompts, reference, _longest(config, reference, new_tokens), "keep-end")
    of_prompt = np.repeat(np.arange(len(prompts)), config.responses)
    found = Texts(
        [Text(prompts[i], "", True) for i in of_prompt],
        of_prompt,
        None,
        {
            "prompts": config.prompts,
            "split": config.split,
            "reference": reference.name,
            "responses_per_prompt": config.responses,
            "max_new_tokens": new_tokens,
            "temperature": config.temperature,
        },
    )
    found.check()  # before a model is asked for what would be refused
    ids = [book.encode_text(text) for text in book.texts]
    responses = sample_responses(
        reference.model,
        reference.eos_token_ids,
        [ids[i] for i in of_prompt],
        new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    texts = [
        replace(text, response=reference.decode(response.tokens), stopped=response.stopped)
        for text, response in zip(found.texts, responses, strict=True)
    ]
    return replace(found, texts=texts)


def _max_new_tokens(config: AuditConfig) -> int:
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    named = [name for name in (config.prompts, config.reference) if name and is_bundled(name)]
    return load_task(named[0]).max_new_tokens if named else DEFAULT_NEW_TOKENS


def _longest(config: AuditConfig, reference: LanguageModel, new_tokens: int) -> int:
    """The longest prompt, P: what is asked for, or what the model's positions leave room for."""
    limit = getattr(reference.model.config, "max_position_embeddings", None)
    if config.max_prompt_tokens is not None:
        check_context(reference.model, config.max_prompt_tokens + new_tokens, "reference")
        return config.max_prompt_tokens
    if limit is None:
        return 10**9
    check_context(reference.model, 1 + new_tokens, "reference")
    return max(1, int(limit) - new_tokens)
