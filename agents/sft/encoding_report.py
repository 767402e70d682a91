"""What became of examples on the way to token ids."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["EncodingReport"]


@dataclass(slots=True)
class EncodingReport:
    """What became of examples on the way to token ids.

    Attributes:
        limit: tokens that one has room for; None: no limit.
        examples: how many came in.
        turns: examples that turns of conversations were made into, besides the first of each.
        too_long: examples with more tokens than the limit.
        longest: tokens of the longest.
        prompts_cut: those whose prompt lost its beginning.
        responses_cut: those whose response lost its end, and with it EOS.
        documents_split: documents that are learned in pieces.
        dropped: those that were left out for their length.
        without_target: those that were left out as nothing of them can be learned.
        early_ends: those with EOS in the middle of the response, where an episode would end.
        unknown_tokens: learned tokens that stand for something the tokenizer does not know.
        looked_at: prompts with a response, of the first ones, that the next number is of.
        other_seams: those whose ids are others when prompt and response are tokenised as one.
        rewritten: answers that the chat template writes otherwise than they stand in the file.
    """

    limit: int | None = None
    examples: int = 0
    turns: int = 0
    too_long: int = 0
    longest: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    documents_split: int = 0
    dropped: int = 0
    without_target: int = 0
    early_ends: int = 0
    unknown_tokens: int = 0
    looked_at: int = 0
    other_seams: int = 0
    rewritten: int = 0

    @property
    def notes(self) -> list[str]:
        """What was done and noticed, as sentences."""
        notes = []
        if self.too_long:
            many = (
                f"{self.too_long:,} of {self.examples + self.turns:,} examples have more than "
                f"{self.limit:,} tokens (the longest {self.longest:,})"
            )
            done = [
                f"{number:,} {what}"
                for number, what in (
                    (self.dropped, "were left out"),
                    (self.prompts_cut, "prompts lost their beginning"),
                    (self.responses_cut, "responses lost their end"),
                    (self.documents_split, "documents are learned in pieces"),
                )
                if number
            ]
            notes.append(f"{many}: {', '.join(done)}.")
        if self.turns:
            notes.append(
                f"every turn of the assistant is an example of its own: {self.turns:,} more than "
                "there are conversations."
            )
        for number, what in (
            (self.without_target, "examples were left out: there is no token to learn in them"),
            (self.early_ends, "responses have an EOS in the middle, where an episode would end"),
            (self.unknown_tokens, "tokens to learn are unknown to the tokenizer (<unk>)"),
            (self.rewritten, "answers are written otherwise by the chat template; learned as is"),
        ):
            if number:
                notes.append(f"{number:,} {what}.")
        if self.other_seams:
            notes.append(
                f"of the first {self.looked_at:,} examples {self.other_seams:,} have other token "
                "ids where prompt and response are tokenised as one text; they are learned as "
                "episodes have them, tokenised apart. A response that begins with the space before "
                "its first word usually avoids it."
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "notes": self.notes}
