"""Examples as token ids: what the model reads, and what of it is learned.

An episode of the environment is prompt ids · response ids · EOS, prompt and response tokenised
apart. The same sequence is learned here, so that the reference of PPO is the model that was
trained, token for token. A conversation's prompt is what the chat template writes, and its response
ends with the template's end of turn. Of a conversation with several turns of the assistant each is
an example of its own, after all turns before it: that holds for every template, also for those that
write earlier turns differently from the last one.

A document has no prompt: it is read after BOS where the tokenizer has one, else after its own first
token. One that is too long is learned in pieces, each of which begins with the last token of the
one before: every token is learned once, and EOS after the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from agents.sft.encoding_report import EncodingReport
from tokenenv.data import TRUNCATIONS, Example, Message, truncate_prompt
from tokenenv.models import LanguageModel, end_of_turn_id, seam_differences
from tokenenv.ranges import check_ranges, count

__all__ = ["EncodedExamples", "TokenExample", "encode_examples"]

MAX_TOKENS = count(2, or_what=", or None (leave it out)", is_optional=True)
"""The range of `max_tokens`: something is read, and something learned."""

LOOK = 2000
"""Examples of which it is counted how the tokenizer treats them."""


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A sequence of which the end is learned.

    Attributes:
        prefix: (p,) token ids that are read, p ≥ 1.
        targets: (n,) token ids that are learned after them, n ≥ 1; EOS where it ends.
        group: what shares its prompt or its document; a group is held out as a whole.
    """

    prefix: np.ndarray
    targets: np.ndarray
    group: int

    def __len__(self) -> int:
        """Tokens that are read or learned."""
        return len(self.prefix) + len(self.targets)


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Examples as token ids.

    Attributes:
        examples: all that can be learned from.
        report: what became of them.
    """

    examples: list[TokenExample]
    report: EncodingReport


def encode_examples(
    examples: Iterable[Example],
    language_model: LanguageModel,
    max_tokens: int | None = None,
    truncation: str = "keep-end",
) -> EncodedExamples:
    """Examples as a language model reads them.

    Args:
        examples: as `tokenenv.data.read_examples` gives them.
        language_model: whose tokenizer and chat template are used.
        max_tokens: room for prompt, response and EOS together, at least 2; None: what the model
            has positions for. Never more than that.
        truncation: of prompts with a response that are longer: `"keep-end"` cuts the beginning of
            the prompt, but its BOS, and the end of the response where it does not fit by itself;
            `"drop"` leaves them out; `"error"` refuses them. Documents are cut into pieces by
            `"keep-end"`.

    Raises:
        ValueError: an example can't be encoded, is too long and that is an error, or there is none
            that can be learned from.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(
            f"truncation={truncation!r:.60} must be one of {', '.join(map(repr, TRUNCATIONS))}."
        )
    check_ranges({"max_tokens": max_tokens}, {"max_tokens": MAX_TOKENS})
    positions = getattr(language_model.model.config, "max_position_embeddings", None)
    limits = [limit for limit in (max_tokens, positions) if limit is not None]
    encoder = _Encoder(language_model, min(limits, default=None), truncation)
    encoded = [piece for example in examples for piece in encoder.encode(example)]
    report = encoder.report
    if report.too_long and truncation == "error":
        raise ValueError(
            f"{report.too_long:,} of {report.examples + report.turns:,} examples have more than "
            f"{report.limit:,} tokens (the longest {report.longest:,}): shorten them, raise "
            "max_tokens where the model reads more, or cut or drop them (truncation: keep-end, "
            "drop)."
        )
    if not encoded:
        raise ValueError(
            f"none of the {report.examples:,} examples can be learned from: {report.dropped:,} are "
            f"longer than {report.limit} tokens, and in {report.without_target:,} there is no "
            "token to learn."
        )
    return EncodedExamples(encoded, report)


class _Encoder:
    """Turns examples into token ids, and counts what it meets."""

    def __init__(self, language_model: LanguageModel, limit: int | None, truncation: str) -> None:
        self.language_model, self.limit, self.truncation = language_model, limit, truncation
        self.tokenizer = language_model.tokenizer
        self.report = EncodingReport(limit)
        self.bos = getattr(self.tokenizer, "bos_token_id", None)
        self.unknown = getattr(self.tokenizer, "unk_token_id", None)
        ends = language_model.eos_token_ids
        plain = getattr(self.tokenizer, "eos_token_id", None)
        self.plain_end = plain if plain in ends else ends[0]
        turn = end_of_turn_id(self.tokenizer)
        self.end_of_turn = turn if turn in ends else self.plain_end
        self._groups: dict[int, int] = {}

    def encode(self, example: Example) -> Iterator[TokenExample]:
        """What is learned of an example."""
        if not isinstance(example, Example):
            raise ValueError(f"{example!r:.80} is no example: give tokenenv.data.Example objects.")
        self.report.examples += 1
        if isinstance(example.prompt, str) and isinstance(example.response, str):
            is_document = not example.prompt
            group = self._group(example.response if is_document else example.prompt)
            prompt, response = example.prompt, example.response
            yield from self._sequences(prompt, response, self.plain_end, group, is_document)
            return
        for number, (messages, answer) in enumerate(_turns(example)):
            self.report.turns += number > 0
            prompt = self.language_model.chat.prompt(messages)
            response = self._as_written(messages, prompt, answer)
            group = self._group(repr(example.prompt))
            yield from self._sequences(prompt, response, self.end_of_turn, group, False)

    def _group(self, key: str) -> int:
        return self._groups.setdefault(hash(key), len(self._groups))

    def _as_written(self, messages: list[Message], prompt: str, answer: str) -> str:
        """The answer with the spaces that the chat template writes around it."""
        whole, inner = self.language_model.chat.whole(messages, answer), answer.strip()
        head, found, tail = whole[len(prompt) :].partition(inner)
        if not inner or not whole.startswith(prompt) or not found or head.strip():
            self.report.rewritten += bool(inner)
            return answer
        # Behind the answer the template may have kept its spaces before the end of the turn.
        after = answer[len(answer.rstrip()) :]
        return head + inner + (after if after and tail.startswith(after) else "")

    def _sequences(
        self, prompt: str, response: str, end: int, group: int, is_document: bool
    ) -> Iterator[TokenExample]:
        """The sequence of a prompt and a response, or the pieces of a document."""
        before, after = self.language_model.encode(prompt), self._response_ids(response)
        if not is_document and self.report.looked_at < LOOK:
            self.report.looked_at += 1
            self.report.other_seams += seam_differences(
                self.tokenizer, [(prompt, response)], self.language_model.eos_token_ids
            )
        ends = self.language_model.eos_token_ids
        if len(after) and after[-1] in ends:
            after = after[:-1]
        self.report.early_ends += bool(np.isin(after, ends).any())
        if self.unknown is not None:
            self.report.unknown_tokens += int((after == self.unknown).sum())
        after = np.append(after, end)
        if not len(before):  # nothing is read before it, so that its first token can't be learned
            before, after = after[:1], after[1:]
        if not len(after):
            self.report.without_target += 1
            return
        self._check_ids(before, after, prompt or response)
        length = len(before) + len(after)
        self.report.longest = max(self.report.longest, length)
        if self.limit is None or length <= self.limit:
            yield _example(before, after, group)
            return
        self.report.too_long += 1
        if self.truncation != "keep-end":
            self.report.dropped += self.truncation == "drop"
        elif is_document:
            self.report.documents_split += 1
            yield from _pieces(before, after, group, self.limit)
        else:
            yield self._cut(before, after, group, self.limit)

    def _cut(self, before: np.ndarray, after: np.ndarray, group: int, limit: int) -> TokenExample:
        room = max(1, limit - len(after))
        cut = truncate_prompt(before, room, self.bos)
        self.report.prompts_cut += len(cut) < len(before)
        self.report.responses_cut += len(after) > limit - len(cut)
        return _example(cut, after[: limit - len(cut)], group)

    def _response_ids(self, text: str) -> np.ndarray:
        try:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(
                f"the response {text[:60]!r} can't be encoded by the tokenizer of "
                f"{self.language_model.name!r} ({error}): use words of its vocabulary."
            ) from error
        return np.asarray(ids, dtype=np.int64)

    def _check_ids(self, before: np.ndarray, after: np.ndarray, text: str) -> None:
        largest = max(int(before.max()), int(after.max()))
        if largest >= self.language_model.vocabulary_size:
            raise ValueError(
                f"the tokenizer of {self.language_model.name!r} gives {text[:60]!r} the id "
                f"{largest}, and the model has {self.language_model.vocabulary_size:,} tokens: the "
                "tokenizer belongs to another model."
            )


def _example(before: np.ndarray, after: np.ndarray, group: int) -> TokenExample:
    return TokenExample(before.astype(np.int32), after.astype(np.int32), group)


def _pieces(
    before: np.ndarray, after: np.ndarray, group: int, limit: int
) -> Iterator[TokenExample]:
    """A document in pieces of at most `limit` tokens, every one of `after` learned once."""
    while True:
        yield _example(before, after[: limit - len(before)], group)
        before, after = after[limit - len(before) - 1 :][:1], after[limit - len(before) :]
        if not len(after):
            return


def _turns(example: Example) -> Iterator[tuple[list[Message], str]]:
    """Every turn of the assistant in a response, with all messages before it."""
    prompt = example.prompt
    history: list[Message] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    )
    if isinstance(example.response, str):
        yield history, example.response
        return
    for message in example.response:
        if message["role"] == "assistant":
            yield list(history), message["content"]
        history.append(message)
