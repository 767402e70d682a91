"""The typed settings of `tokenrlhf labels curve` and `tokenrlhf labels select`.

Every field's text is its `--help`. Importing this loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.runs.reward_model_config import RewardTrainingOptions
from tokenenv.ranges import COUNT, COUNT_OR_0, OPTIONAL_COUNT, check_ranges, count

__all__ = ["DRAWN", "LabelsCurveConfig", "LabelsSelectConfig"]

DRAWN = "reviews"
"""The task whose annotator labels any number of pairs."""

SEEDS = count(high=1000)
PPO_CONFIG = "zoo:reviews"


@dataclass(frozen=True)
class _CurvePlaces:
    pairs: str
    """File of pairs, as reward-model reads it; or reviews: pairs of that task's reference, labelled
    by its own annotator, as many as --sizes asks for."""
    base: str
    """Task name, folder or hub id of the model that reward models start from."""
    out: Path
    """Folder of the results: every point is kept there as soon as it is measured, and the same
    command goes on with those that are missing."""
    overwrite: bool = False
    """Measure anew, in the place of results that are there."""
    sizes: tuple[int, ...] = ()
    """Numbers of pairs; six of them, each twice the one before, up to all pairs that are not held
    out, unless given (of reviews: 100 to 3,200). The smaller sets are parts of the larger ones."""
    seeds: int = 5
    """Measurements of each size, with other held-out prompts, other pairs and another head."""
    held_out_pairs: int = 2000
    """Pairs to judge by where pairs are drawn; of a file they are --report-fraction of the
    prompts, the same for all sizes of a seed."""

    ppo_tokens: int = 0
    """Train TokenPPO with every reward model, on so many response tokens, and measure score, gold
    reward, KL and J on held-out prompts; 0: no PPO."""
    ppo_config: str = PPO_CONFIG
    """Settings of this PPO: zoo:NAME, or a file as train --config reads it, with a task whose gold
    reward is known. Its reward model, seed and number of tokens are set here."""
    ppo_prompts: int = 64
    """Held-out prompts that policies are measured on."""
    ppo_responses: int = 16
    """Responses to each of them."""


@dataclass(frozen=True)
class LabelsCurveConfig(RewardTrainingOptions, _CurvePlaces):
    """Measure held-out accuracy against the number of pairs, and what the next point costs."""

    def __post_init__(self) -> None:
        """Validate the settings that `RewardTrainingSettings` does not."""
        RewardTrainingOptions.__post_init__(self)
        ranges = {
            "seeds": SEEDS,
            "held_out_pairs": COUNT,
            "ppo_tokens": COUNT_OR_0,
            **dict.fromkeys(("ppo_prompts", "ppo_responses"), COUNT),
        }
        check_ranges(vars(self), ranges)
        for size in self.sizes:
            if not 2 <= size <= 10**9:
                raise ValueError(
                    f"sizes={list(self.sizes)}: {size} must be a number of pairs, 2 or more: one "
                    "is held out to choose the weights."
                )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes={list(self.sizes)} names a number twice: give each once.")
        if self.pairs != DRAWN and not self.report_fraction > 0:
            raise ValueError(
                f"report_fraction={self.report_fraction} leaves no pairs to measure accuracy on: "
                "hold some out."
            )
        if not self.ppo_tokens:
            for name in ("ppo_config", "ppo_prompts", "ppo_responses"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} is for policies: give ppo_tokens with it, "
                        "or leave it out."
                    )


@dataclass(frozen=True)
class _SelectPlaces:
    pool: str
    """File of pairs to choose from, with prompt, response_a and response_b, as sample-pairs writes
    it; rows that have a label already are left out. With --simulate a file of labelled pairs, as
    reward-model reads it, or reviews."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])]
    """How many pairs to select."""
    out: Path
    """File to write, JSON Lines like those of sample-pairs, whose column label is to be filled in;
    what is filled in already stays. With --simulate a JSON file of the results."""
    reward_models: tuple[str, ...] = ()
    """Folders or hub ids of two reward models or more, or one folder with members of an ensemble
    (reward-model --members)."""
    overwrite: bool = False
    """Replace a file that is there, instead of going on with it."""

    by: Literal["bald", "variance", "random"] = "bald"
    """How much reward models disagree about a pair: the mutual information of its label and the
    model, in nats; the variance of their probabilities; or nothing, for comparison."""
    diverse: bool = True
    """Select pairs that are not like each other. With --no-diverse those with the most disagreement
    are taken, whatever they are."""
    max_per_prompt: int | None = None
    """Pairs of one prompt at most."""
    exclude: tuple[Path, ...] = ()
    """Files of pairs that are labelled or asked for already: theirs are left out of the pool."""
    ask: bool = False
    """Ask about the selected pairs, as sample-pairs --ask does."""
    labels: Path | None = None
    """File in which people have filled in the column label of the selected pairs."""

    simulate: bool = False
    """Try it on a pool whose labels are known: hide them, train an ensemble on --start pairs,
    select K more, and compare with random ones."""
    base: str | None = None
    """With --simulate: task name, folder or hub id of the model that reward models start from."""
    start: int = 100
    """With --simulate: labelled pairs that the ensemble is trained on."""
    members: int = 4
    """With --simulate: reward models of the ensemble, 2 or more."""
    seeds: int = 5
    """With --simulate: how often it is tried, with other held-out prompts and other pairs."""
    pool_pairs: int | None = None
    """With --simulate: pairs to choose from; all there are unless given, of reviews 10 times K."""
    held_out_pairs: int = 2000
    """With --simulate: pairs to judge by where pairs are drawn; of a file --report-fraction of the
    prompts."""


@dataclass(frozen=True)
class LabelsSelectConfig(RewardTrainingOptions, _SelectPlaces):
    """Select the pairs to label next: those that reward models contradict each other about."""

    def __post_init__(self) -> None:
        """Validate the settings that `RewardTrainingSettings` does not."""
        RewardTrainingOptions.__post_init__(self)
        ranges = {
            **dict.fromkeys(("k", "start", "held_out_pairs"), COUNT),
            **dict.fromkeys(("max_per_prompt", "pool_pairs"), OPTIONAL_COUNT),
            "members": count(low=2, high=100),
            "seeds": SEEDS,
        }
        check_ranges(vars(self), ranges)
        if self.simulate:
            self._check_simulation()
        elif self.base is not None:
            raise ValueError(
                f"base={self.base!r} is for --simulate: give it too, or leave base out."
            )
        if self.ask and self.labels is not None:
            raise ValueError("ask and labels are two sources of labels: give one of them.")

    def _check_simulation(self) -> None:
        if self.base is None:
            raise ValueError(
                "simulate trains reward models: give base, the model that they start from."
            )
        others = ("reward_models", "exclude", "ask", "labels")
        named = [name for name in others if getattr(self, name)]
        if named:
            raise ValueError(
                f"{named[0]} is for pairs without labels, and --simulate hides those that are "
                f"there: leave one of the two out."
            )
        if self.by == "random":
            raise ValueError("by='random' is what --simulate compares with: give bald or variance.")
        if self.pool != DRAWN and not self.report_fraction > 0:
            raise ValueError(
                f"report_fraction={self.report_fraction} leaves no pairs to measure accuracy on: "
                "hold some out."
            )
