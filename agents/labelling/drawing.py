"""Pairs of responses of a language model to the same prompt, distinct where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.labelling.pair_file import PairRow
from tokenenv.data import Prompt
from tokenenv.models import LanguageModel, SampledResponse, sample_responses
from tokenenv.ranges import COUNT, POSITIVE_FINITE, SEED, check_ranges

__all__ = ["DrawnPair", "draw_pairs", "row_of"]

_RANGES = {
    **{"pairs_per_prompt": COUNT, "max_new_tokens": COUNT},
    **{"temperature": POSITIVE_FINITE, "seed": SEED},
}

TRIES = 5
"""Times that the second response of a pair is drawn again while it reads like the first."""


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """Two responses to a prompt.

    Attributes:
        prompt: its index.
        response_a: text.
        response_b: text; that of a where no other was drawn in several tries.
        stopped_a: whether response a ended with EOS, rather than by its length.
        stopped_b: likewise.
    """

    prompt: int
    response_a: str
    response_b: str
    stopped_a: bool
    stopped_b: bool

    @property
    def is_identical(self) -> bool:
        """Whether both read the same."""
        return self.response_a == self.response_b


def draw_pairs(
    language_model: LanguageModel,
    prompts: Sequence[np.ndarray],
    pairs_per_prompt: int,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    on_finished: Callable[[int], None] | None = None,
) -> list[DrawnPair]:
    """Independent pairs of responses, those of a prompt one after another.

    A second response that reads like the first is drawn again, up to `TRIES` times: given the first
    one, it is a sample of the model among all other texts.

    Args:
        language_model: responds.
        prompts: token ids of each.
        pairs_per_prompt: pairs.
        max_new_tokens: the longest response.
        temperature: divides the logits.
        seed: of the sampling.
        on_finished: called with the number of responses that are drawn.

    Raises:
        ValueError: a number is out of its range, or the model can't be decoded token by token.
    """
    counts = {"pairs_per_prompt": pairs_per_prompt, "max_new_tokens": max_new_tokens}
    check_ranges({**counts, "temperature": temperature, "seed": seed}, _RANGES)
    of_pair = [i for i in range(len(prompts)) for _ in range(pairs_per_prompt)]

    def sample(pairs: Sequence[int], stream: int, done: int) -> list[SampledResponse]:
        entropy = np.random.SeedSequence((seed, stream)).generate_state(1)[0]
        return sample_responses(
            language_model.model,
            language_model.eos_token_ids,
            [prompts[of_pair[pair]] for pair in pairs],
            max_new_tokens,
            temperature=temperature,
            seed=int(entropy),
            on_finished=None if on_finished is None else lambda new: on_finished(done + new),
        )

    everything = range(len(of_pair))
    a, b = sample(everything, 0, 0), sample(everything, 1, len(of_pair))
    texts_a = [language_model.decode(response.tokens) for response in a]
    texts_b = [language_model.decode(response.tokens) for response in b]
    for attempt in range(TRIES):
        same = [pair for pair in everything if texts_a[pair] == texts_b[pair]]
        if not same:
            break
        for pair, response in zip(same, sample(same, 2 + attempt, 2 * len(of_pair)), strict=True):
            b[pair], texts_b[pair] = response, language_model.decode(response.tokens)
    return [
        DrawnPair(of_pair[i], texts_a[i], texts_b[i], a[i].stopped, b[i].stopped)
        for i in everything
    ]


def row_of(
    name: str, origin: Prompt, pair: DrawnPair, drawn: dict[str, Any] | None = None
) -> PairRow:
    """The row of a file for a drawn pair; one of equal texts is a tie.

    Args:
        name: the row's id.
        origin: the prompt as it was given.
        pair: the responses.
        drawn: by which model and how.
    """
    return PairRow(
        id=name,
        prompt=origin.content,
        response_a=pair.response_a,
        response_b=pair.response_b,
        finish_a="stop" if pair.stopped_a else "length",
        finish_b="stop" if pair.stopped_b else "length",
        label="tie" if pair.is_identical else None,
        labelled_by="identical" if pair.is_identical else None,
        drawn=drawn,
    )
