"""One round: the policy's fresh pairs, their labels, and a reward model that has learned them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.labelling.by_reward import label_by_reward
from agents.labelling.drawing import draw_pairs, row_of
from agents.labelling.pair_file import PairFile, PairRow
from agents.reward_quality.refresh.annotators import OPTION, Annotator
from tokenenv.data import PreferencePair, Prompt, read_pairs
from tokenenv.models import LanguageModel
from tokenenv.prompts import PromptBook, training_prompts
from tokenenv.ranges import COUNT, COUNT_OR_0, POSITIVE_FINITE, SEED, check_ranges
from tokenenv.rewards import (
    EpisodeScorer,
    LearnedReward,
    RewardModel,
    RewardTrainingSettings,
    TokenPair,
    fit_reward_model,
    learned_rewards,
    reference_episodes,
    truncated_pairs,
)
from tokenenv.settings import ResolvedSettings

__all__ = ["Refresh", "RefreshSettings", "RewardRefresher"]

_RANGES = {
    **{"pairs": COUNT, "epochs": COUNT_OR_0, "learning_rate": POSITIVE_FINITE, "seed": SEED},
}


@dataclass(frozen=True)
class RefreshSettings:
    """How a reward model is refreshed.

    Args:
        pairs: fresh pairs in a round, each of another training prompt as far as there are so many.
        epochs: passes over the old pairs and all fresh ones so far; 0: nothing is learned, and the
            reward model's accuracy on the policy's own responses is measured all the same.
        learning_rate: AdamW's peak in a round.
        seed: of prompts, responses and order.
    """

    pairs: int = 256
    epochs: int = 2
    learning_rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(vars(self), _RANGES)


@dataclass(frozen=True, slots=True)
class Refresh:
    """What came of a round.

    Attributes:
        number: of the round, from 1.
        labels: fresh pairs that have a label; ties are among them.
        accuracy: of the reward on the fresh pairs before it learned them, ties left out; NaN where
            all are ties.
        accuracy_after: on the same pairs after it learned them; the same where it learned nothing.
        scale: standard deviation of the raw rewards on the reference's responses, over that before
            the round: the geometric mean of several reward models. The score does not change by it.
    """

    number: int
    labels: int
    accuracy: float
    accuracy_after: float
    scale: float


@dataclass(frozen=True)
class _Judged:
    """The pairs of a round that have a label, with their prompts as given and as token ids."""

    rows: list[PairRow]
    origins: list[Prompt]
    prompts: list[np.ndarray]


class RewardRefresher:
    """Lets the reward models of a training learn on, from pairs of the policy that they judge.

    A round draws pairs of the policy's responses to training prompts, has them labelled, measures
    how often the reward agrees with the labels, trains every reward model on the old pairs and on
    all fresh ones so far, and normalises it again: the normalised rewards of the reference's
    responses keep the mean and the deviation that they had, so that β, the price of a nat in that
    unit, means the same before and after.

    Args:
        settings: of the environment, resolved; its reward models are `OwnRewardModels`.
        scorer: of the environment. Other scorers over the same reward models follow by themselves.
        label: who labels.
        folder: of the files `round-0001.jsonl` and so on, one for each round. A round whose file is
            there goes on with its labels, if it holds the same pairs.
        how: the settings of a round.
        old_pairs: those that the reward models were trained on; without them they forget.

    Raises:
        ValueError: no reward is a reward model.
    """

    def __init__(
        self,
        settings: ResolvedSettings,
        scorer: EpisodeScorer,
        label: Annotator,
        folder: Path,
        how: RefreshSettings | None = None,
        old_pairs: Sequence[PreferencePair | TokenPair] = (),
    ) -> None:
        self.settings, self.scorer, self.label = settings, scorer, label
        self.folder, self.how = folder, how or RefreshSettings()
        self.learned = list(learned_rewards(scorer.reward).values())
        if not self.learned:
            raise ValueError(
                "the reward is a function, which learns nothing: there is no reward model to "
                "refresh."
            )
        self.old_pairs, self.fresh_pairs = list(old_pairs), list[PreferencePair]()
        self.rounds = 0
        self._book: PromptBook | None = None

    @property
    def language_model(self) -> LanguageModel:
        """Whose tokens the policy writes."""
        return self.scorer.reference.language_model

    # Pairs ---------------------------------------------------------------------------------------

    @property
    def book(self) -> PromptBook:
        """The training prompts."""
        if self._book is None:
            self._book = training_prompts(self.settings, self.language_model)
        return self._book

    def _asked(self, number: int) -> tuple[list[Prompt], list[np.ndarray]]:
        """The prompts of a round, and their token ids."""
        book, rng = self.book, np.random.default_rng((self.how.seed, number, 0))
        rows = np.resize(rng.permutation(len(book.texts)), self.how.pairs).tolist()
        return [book.origins[i] for i in rows], [book.encode_text(book.texts[i]) for i in rows]

    def _drawn(
        self, actor: Any, number: int, origins: Sequence[Prompt], prompts: Sequence[np.ndarray]
    ) -> list[PairRow]:
        entropy = np.random.SeedSequence((self.how.seed, number, 1)).generate_state(1)[0]
        pairs = draw_pairs(
            dataclasses.replace(self.language_model, model=actor),
            prompts,
            1,
            self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            seed=int(entropy),
        )
        return [
            row_of(f"{number}-{index}", origin, pair)
            for index, (origin, pair) in enumerate(zip(origins, pairs, strict=True))
        ]

    def _file(self, number: int, rows: Sequence[PairRow]) -> PairFile:
        """The file of a round; what people have filled in of the same pairs stays."""
        path = self.folder / f"round-{number:04}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            file = PairFile(path, option=OPTION)
            if [_texts(row) for row in file.rows] == [_texts(row) for row in rows]:
                return file
            path.rename(_free_name(path))  # another policy's: labels are never thrown away
        file = PairFile(path, replaces=True, option=OPTION)
        file.append(rows)
        return file

    # A round -------------------------------------------------------------------------------------

    def refresh(self, actor: Any) -> Refresh:
        """Do the next round with responses of a policy.

        Args:
            actor: a causal LM in the reference's tokens.

        Raises:
            AnnotatorError: there are no labels to be had; the pairs are kept.
            ValueError: a reward model gives one reward to all of the reference's responses after
                it; it has its old weights then.
        """
        number = self.rounds + 1
        origins, prompts = self._asked(number)
        file = self._file(number, self._drawn(actor, number, origins, prompts))
        self.label(file, origins, prompts)
        labelled = [i for i, row in enumerate(file.rows) if row.label is not None]
        judged = _Judged(
            [file.rows[i] for i in labelled],
            [origins[i] for i in labelled],
            [prompts[i] for i in labelled],
        )
        accuracy = after = self._accuracy(judged)
        pairs = [*self.fresh_pairs, *(read_pairs(file.path, skip_bad=True) if labelled else ())]
        scale = 1.0
        if self.how.epochs and labelled:
            scales = self._learn_all(number, pairs)
            scale = float(np.exp(np.mean(np.log(scales))))
            after = self._accuracy(judged)
        self.rounds, self.fresh_pairs = number, pairs
        return Refresh(number, len(labelled), accuracy, after, scale)

    def _accuracy(self, judged: _Judged) -> float:
        """How often the response with the higher reward is the better one; ½ for equal rewards."""
        rows = judged.rows
        scored = label_by_reward(
            rows, judged.origins, judged.prompts, self.scorer.reward, self.language_model
        )
        agreements = [
            0.5 if scored_row.label == "tie" else float(scored_row.label == row.label)
            for row, scored_row in zip(rows, scored, strict=True)
            if row.label != "tie"
        ]
        return float(np.mean(agreements)) if agreements else float("nan")

    def _learn_all(self, number: int, pairs: Sequence[PreferencePair]) -> list[float]:
        """Train all reward models, or leave all of them as they were, whatever comes between."""
        before = self._models_state()
        try:
            return [
                self._learn(number, member, one, pairs) for member, one in enumerate(self.learned)
            ]
        except BaseException:  # Ctrl-C as well: half of a training is no reward model
            self._load_models(before)
            raise

    def _learn(
        self, number: int, member: int, learned: LearnedReward, fresh: Sequence[PreferencePair]
    ) -> float:
        """Train a reward model and bring it to its scale; returns the change of the raw one."""
        shared = learned.reward_model
        episodes = reference_episodes(self.settings, self.scorer.reference)
        sequences = learned.sequences(episodes)
        before = shared.raw_rewards(sequences)
        normalized = shared.normalize(before)
        # The weights are shared on purpose: every scorer of the training has the same object.
        trainable = RewardModel(shared.model, shared.tokenizer)
        pairs, _ = truncated_pairs(
            [*self.old_pairs, *fresh], trainable, trainable.max_tokens, "keep-end"
        )
        record = fit_reward_model(
            pairs,
            trainable,
            RewardTrainingSettings(
                epochs=self.how.epochs,
                learning_rate=self.how.learning_rate,
                eval_fraction=0.0,
                early_stopping=False,
                # Members of an ensemble see the pairs in orders of their own.
                seed=(self.how.seed + number + 1000 * member) % 2**32,
            ),
        )
        after = shared.raw_rewards(sequences)
        if record.is_diverged or not after.std() > 1e-8:
            why = record.reason or "all of the reference's responses have one reward after it."
            raise ValueError(
                f"the refresh number {number} of the reward model {shared.name!r} failed: {why} "
                "All reward models have their old weights. Lower refresh_learning_rate "
                "(--refresh-learning-rate)."
            )
        set_scale(shared, after, float(normalized.mean()), float(normalized.std()))
        return float(after.std() / max(before.std(), 1e-12))

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Rounds, weights and scales; the pairs are in the files of the rounds."""
        return {"rounds": self.rounds, **self._models_state()}

    def _models_state(self) -> dict[str, Any]:
        models = [one.reward_model for one in self.learned]
        return {
            "scales": [[model.mean, model.std] for model in models],
            "weights": [
                {name: value.clone() for name, value in model.model.state_dict().items()}
                for model in models
            ],
        }

    @torch.no_grad()
    def _load_models(self, state: dict[str, Any]) -> None:
        stored = zip(state["weights"], state["scales"], strict=True)
        for one, (weights, (mean, std)) in zip(self.learned, stored, strict=True):
            model = one.reward_model
            model.model.load_state_dict(weights)
            model.model.requires_grad_(False)
            model.set_normalization(mean, std)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the files of its rounds are read again.

        Raises:
            ValueError: a file is missing, or the state is of other reward models.
        """
        if len(state["weights"]) != len(self.learned):
            raise ValueError(
                f"the state is of {len(state['weights'])} reward models, and here are "
                f"{len(self.learned)}: give the settings of that training."
            )
        self.fresh_pairs = []
        for number in range(1, state["rounds"] + 1):
            path = self.folder / f"round-{number:04}.jsonl"
            rows = PairFile(path, option=OPTION).rows if path.is_file() else None
            if rows is None:
                raise ValueError(f"{str(path)!r} is missing: restore it, or train again.")
            if any(row.label is not None for row in rows):
                self.fresh_pairs += read_pairs(path, skip_bad=True)
        self.rounds = state["rounds"]
        self._load_models(state)


def set_scale(model: RewardModel, raw: np.ndarray, mean: float, deviation: float) -> None:
    """Normalise a reward model so that some raw rewards get this mean and deviation.

    Args:
        model: of the rewards.
        raw: (n,) that vary.
        mean: after normalisation.
        deviation: likewise; 0 stands for 1, as of rewards that did not vary before.
    """
    std = float(raw.std()) / (deviation if deviation > 1e-8 else 1.0)
    model.set_normalization(float(raw.mean()) - mean * std, std)


def _texts(row: PairRow) -> tuple[Any, ...]:
    return row.prompt, row.response_a, row.response_b, row.finish_a, row.finish_b


def _free_name(path: Path) -> Path:
    numbers = range(1, 10_000)
    names = (path.with_name(f"{path.stem}-of-another-policy-{n}{path.suffix}") for n in numbers)
    return next(name for name in names if not name.exists())
