"""Which pairs are trained on, which choose the weights, and which are reported on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenenv.rewards.pairs import TokenPair
from tokenenv.rewards.reward_model import RewardModel
from tokenenv.rewards.training_settings import RewardTrainingSettings

__all__ = ["PairSplit", "check_readable", "have_prompts", "split_pairs", "units_of"]


@dataclass(frozen=True, slots=True)
class PairSplit:
    """Three parts of some pairs, without a common prompt.

    Attributes:
        training: what is trained on.
        selection: what stops the training and chooses the weights; may be empty.
        reported: what is reported on, and nothing else; may be empty.
        held_out_by: `"prompt"`, or `"pair"` where there are no two different prompts.
    """

    training: list[TokenPair]
    selection: list[TokenPair]
    reported: list[TokenPair]
    held_out_by: str

    @property
    def judged(self) -> list[TokenPair]:
        """The pairs of the report: those of the selection for want of others."""
        return self.reported or self.selection


def check_readable(pairs: list[TokenPair], reward_model: RewardModel) -> None:
    """Raise ValueError for a pair that is too long, has no token, or whose label is none."""
    for pair in pairs:
        longest = max(len(pair.chosen), len(pair.rejected))
        if not min(len(pair.chosen), len(pair.rejected)):
            raise ValueError(
                "a pair has an empty prompt and an empty response, and the tokenizer has neither "
                "BOS nor EOS: there is no token to read a reward at. Leave such pairs out."
            )
        if longest > reward_model.max_tokens:
            raise ValueError(
                f"a pair of the prompt {pair.prompt[:60]!r} has {longest} tokens, more than the "
                f"{reward_model.max_tokens} positions of the reward model: shorten or drop it."
            )
        if not 0 <= pair.preference <= 1:
            raise ValueError(
                f"a pair of the prompt {pair.prompt[:60]!r} has preference={pair.preference!r}: it "
                "must be a probability, from 0 to 1."
            )


def have_prompts(pairs: list[TokenPair]) -> bool:
    """Whether there are two different prompts, so that whole prompts can be held out."""
    return len({pair.prompt for pair in pairs}) > 1


def units_of(pairs: list[TokenPair], by_prompt: bool | None = None) -> list[str]:
    """What is held out as one, for each pair: its prompt; without one, the pair and its equals.

    Args:
        pairs: some.
        by_prompt: whether prompts are told apart; None: where there are two different ones.
    """
    by_prompt = have_prompts(pairs) if by_prompt is None else by_prompt
    return [
        pair.prompt
        if by_prompt and pair.prompt
        else f"{pair.chosen.tolist()} {pair.rejected.tolist()}"
        for pair in pairs
    ]


def split_pairs(
    pairs: list[TokenPair], settings: RewardTrainingSettings, rng: np.random.Generator
) -> PairSplit:
    """Pairs to train on, to choose the weights by and to report on, without a common prompt.

    Raises:
        ValueError: there are too few to hold one out.
    """
    of_pair = units_of(pairs)
    units = sorted(set(of_pair))
    if len(units) < 2:
        prompts = len({pair.prompt for pair in pairs})
        raise ValueError(
            f"the {len(pairs)} pairs have {prompts} prompt(s), and {len(units)} of them differ: "
            "training needs at least two different ones, to hold one out."
        )
    left = len(units) - 1  # one is trained on at least
    num_selection = num_reported = 0
    if settings.eval_fraction:
        num_selection = min(max(1, round(settings.eval_fraction * len(units))), left)
    if settings.report_fraction and (left >= 2 or not num_selection):
        num_selection = min(num_selection, left - 1)
        num_reported = max(1, round(settings.report_fraction * len(units)))
        num_reported = min(num_reported, left - num_selection)
    order = [units[i] for i in rng.permutation(len(units))]
    selection = set(order[:num_selection])
    reported = set(order[num_selection : num_selection + num_reported])
    parts: tuple[list[TokenPair], ...] = ([], [], [])
    for pair, unit in zip(pairs, of_pair, strict=True):
        parts[1 if unit in selection else 2 if unit in reported else 0].append(pair)
    held_out_by = "prompt" if have_prompts(pairs) else "pair"
    return PairSplit(parts[0], parts[1], parts[2], held_out_by)
