"""Pairs as token ids that a reward model can read: those that are too long are cut or left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tokenenv.data import TRUNCATIONS, PreferencePair, truncate_pair
from tokenenv.rewards.pairs import TokenPair, as_token_pair
from tokenenv.rewards.reward_model import RewardModel

__all__ = ["TruncationReport", "truncated_pairs"]


@dataclass(frozen=True, slots=True)
class TruncationReport:
    """What became of pairs that were too long.

    Attributes:
        limit: tokens that a prompt and a response have room for together.
        pairs: how many there were.
        too_long: those of which a side did not fit.
        prompts_cut: those of which the prompt lost its beginning.
        responses_cut: those of which a response lost its end.
        dropped: those that were left out.
        longest: tokens of the longest side, before anything was cut.
    """

    limit: int
    pairs: int
    too_long: int
    prompts_cut: int
    responses_cut: int
    dropped: int
    longest: int

    @property
    def notes(self) -> list[str]:
        """What was done, as sentences; empty where all pairs fit."""
        if not self.too_long:
            return []
        many = (
            f"{self.too_long:,} of {self.pairs:,} pairs have a side of more than {self.limit:,} "
            f"tokens (the longest {self.longest:,})"
        )
        if self.dropped:
            return [f"{many} and were left out."]
        cut = f"{many}: {self.prompts_cut:,} prompts lost their beginning"
        if self.responses_cut:
            cut += f", {self.responses_cut:,} pairs the end of a response"
        return [f"{cut}."]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def truncated_pairs(
    pairs: Sequence[PreferencePair | TokenPair],
    reward_model: RewardModel,
    limit: int,
    truncation: str = "keep-end",
    on_pair: Callable[[int], None] | None = None,
) -> tuple[list[TokenPair], TruncationReport]:
    """Pairs as the reward model reads them, none of them longer than `limit`.

    Args:
        pairs: as text, as messages, or as tokens.
        reward_model: whose tokenizer reads them.
        limit: tokens of a prompt and a response together, 1 or more.
        truncation: `"keep-end"` cuts as `tokenenv.data.truncate_pair` does; `"drop"` leaves pairs
            out; `"error"` refuses them.
        on_pair: called with the number of pairs that are done.

    Raises:
        ValueError: the truncation is unknown; pairs are too long and it is `"error"`, or it is
            `"drop"` and none is left.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(
            f"truncation={truncation!r:.60} must be one of {', '.join(map(repr, TRUNCATIONS))}."
        )
    limit = min(limit, reward_model.max_tokens)
    read: list[TokenPair] = []
    too_long = prompts_cut = responses_cut = longest = 0
    for number, pair in enumerate(pairs, 1):
        token_pair = as_token_pair(pair, reward_model)
        length = max(len(token_pair.chosen), len(token_pair.rejected))
        longest = max(longest, length)
        if length > limit:
            too_long += 1
            if truncation == "keep-end":
                token_pair, of_prompt, of_responses = _cut(token_pair, reward_model, limit)
                prompts_cut += of_prompt > 0
                responses_cut += of_responses > 0
        if length <= limit or truncation == "keep-end":
            read.append(token_pair)
        if on_pair is not None:
            on_pair(number)
    dropped = len(pairs) - len(read)
    report = TruncationReport(
        limit, len(pairs), too_long, prompts_cut, responses_cut, dropped, longest
    )
    if too_long and truncation == "error":
        raise ValueError(
            f"{too_long:,} of {len(pairs):,} pairs have a side of more than {limit:,} tokens (the "
            f"longest {longest:,}): shorten them, raise --max-tokens where the model reads more, "
            "or cut or drop them (--truncation keep-end, drop)."
        )
    if dropped and not read:
        raise ValueError(
            f"all {len(pairs)} pairs are longer than {limit} tokens: cut them (--truncation "
            "keep-end), shorten them, raise --max-tokens, or take a base that reads more."
        )
    return read, report


def _cut(
    token_pair: TokenPair, reward_model: RewardModel, limit: int
) -> tuple[TokenPair, int, int]:
    """The pair cut to the limit, and the tokens that its prompt and its responses have lost."""
    chosen, rejected = token_pair.chosen, token_pair.rejected
    start = _prompt_length(token_pair)
    cut = truncate_pair(
        chosen[:start],
        chosen[start:],
        rejected[start:],
        limit,
        getattr(reward_model.tokenizer, "bos_token_id", None),
    )
    shorter = replace(
        token_pair,
        chosen=np.concatenate([cut.prompt, cut.chosen]),
        rejected=np.concatenate([cut.prompt, cut.rejected]),
        prompt_tokens=len(cut.prompt),
    )
    return shorter, cut.lost_of_prompt, cut.lost_of_responses


def _prompt_length(pair: TokenPair) -> int:
    """Tokens of the prompt: its own where they are known, of those that both sides begin with."""
    size = min(len(pair.chosen), len(pair.rejected))
    differs = np.flatnonzero(pair.chosen[:size] != pair.rejected[:size])
    shared = int(differs[0]) if len(differs) else size
    return shared if pair.prompt_tokens is None else min(pair.prompt_tokens, shared)
