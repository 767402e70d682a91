"""Who labels fresh pairs: the task's gold reward, a function, a reward model, or people."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from agents.labelling.by_reward import label_by_reward
from agents.labelling.pair_file import PairFile
from tokenenv.data import Prompt
from tokenenv.rewards import Episode, EpisodeScorer, RawRewards, RewardSource, resolve_reward

__all__ = ["PEOPLE", "Annotator", "AnnotatorError", "annotator"]

GOLD, PEOPLE = "gold", "people"
"""Names of annotators; anything else names a reward."""

OPTION = "pairs"
"""What messages call the file of a round."""

CHUNK = 64
"""Pairs that are labelled before the file is written."""

TRIES = 3
PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long."""

LOOK_EVERY = 1.0
"""Seconds between two looks at a file that people fill in."""


class AnnotatorError(ValueError):
    """Labels could not be had; the pairs and the labels so far are in their file."""


class Annotator(Protocol):
    """Labels the open rows of a file of pairs."""

    def __call__(
        self, file: PairFile, origins: Sequence[Prompt], prompts: Sequence[np.ndarray]
    ) -> None:
        """Label the rows that have no label, and write them down.

        Args:
            file: the pairs.
            origins: the prompt of each row.
            prompts: its token ids.

        Raises:
            AnnotatorError: it failed, several times.
        """


def annotator(
    labels: str | None,
    scorer: EpisodeScorer,
    device: str,
    noise: float = 0.0,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Annotator:
    """The annotator of a name.

    Args:
        labels: `"gold"`, the task's gold reward; `"people"`, who fill in the file; or a reward that
            labels: `"package.module:function"`, the folder or hub id of a reward model. None: the
            gold reward.
        scorer: of the training, whose task may know the gold reward.
        device: of a reward model that labels.
        noise: τ; the label is drawn with probability σ((r_a − r_b)/τ). 0: the higher reward wins.
        seed: of that draw.
        say: called with a sentence where a call failed and is made again, or labels are waited for.

    Raises:
        ValueError: the task knows no gold reward, or the name stands for no reward.
    """
    if labels == PEOPLE:
        return _People(say)
    language_model = scorer.reference.language_model
    if labels in (None, GOLD):
        if scorer.gold_reward is None:
            raise ValueError(
                f"refresh_labels={labels!r}: the task knows no gold reward to label by. Give "
                "'module:function', the folder of a reward model that labels, or 'people', who "
                "fill in a file (--refresh-labels)."
            )
        return _Rewards(_Gold(scorer), "the gold reward", scorer, noise, seed, say)
    try:
        source = resolve_reward(labels, language_model, device, "float32")
    except ValueError as error:
        raise ValueError(f"refresh_labels={labels!r}: {error}") from error
    return _Rewards(source, f"the annotator {labels!r}", scorer, noise, seed, say)


class _Gold:
    """The gold reward of a task as a source of rewards."""

    def __init__(self, scorer: EpisodeScorer) -> None:
        self.scorer = scorer

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """It takes all prompts of the task."""

    def __call__(self, episodes: Sequence[Episode]) -> RawRewards:
        gold = self.scorer.gold_rewards(episodes)
        assert gold is not None
        return RawRewards(gold, gold)


class _Rewards:
    """Labels by rewards, in chunks that are written down one by one."""

    def __init__(
        self,
        source: RewardSource,
        name: str,
        scorer: EpisodeScorer,
        noise: float,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.source, self.name, self.noise, self.seed = source, name, noise, seed
        self.language_model, self.say = scorer.reference.language_model, say

    def __call__(
        self, file: PairFile, origins: Sequence[Prompt], prompts: Sequence[np.ndarray]
    ) -> None:
        waiting = [index for index, row in enumerate(file.rows) if row.is_open]
        for start in range(0, len(waiting), CHUNK):
            part = waiting[start : start + CHUNK]
            self._label(file, part, origins, prompts)
            file.save()

    def _label(
        self,
        file: PairFile,
        part: Sequence[int],
        origins: Sequence[Prompt],
        prompts: Sequence[np.ndarray],
    ) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                rows = label_by_reward(
                    [file.rows[i] for i in part],
                    [origins[i] for i in part],
                    [prompts[i] for i in part],
                    self.source,
                    self.language_model,
                    self.noise,
                    self.seed,
                )
                break
            except (ValueError, OSError) as error:
                if attempt == TRIES:
                    counts = file.counts()
                    raise AnnotatorError(
                        f"{self.name} failed {TRIES} times: {error} {len(file.rows):,} pairs are "
                        f"kept in {str(file.path)!r}, {counts['open']:,} of them without a label."
                    ) from error
                pause = PAUSE * 2 ** (attempt - 1)
                self.say(f"{self.name} failed: {error} It is asked again in {pause:g} s.")
                time.sleep(pause)
        for index, row in zip(part, rows, strict=True):
            file.rows[index] = row


class _People:
    """Waits until people have filled in a file."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def __call__(
        self, file: PairFile, origins: Sequence[Prompt], prompts: Sequence[np.ndarray]
    ) -> None:
        waiting = file.counts()["open"]
        if not waiting:
            return
        self.say(
            f"{waiting:,} pairs wait for labels in {file.path}: answer them with 'tokenrlhf labels "
            f"ask {file.path}' in another terminal, or fill in 'label' (a, b or tie) of each line; "
            "the training goes on as soon as none is left."
        )
        seen, said = _version(file.path), ""
        while waiting:
            time.sleep(LOOK_EVERY)
            if (now := _version(file.path)) == seen:
                continue
            seen = now
            try:
                file.rows = PairFile(file.path, option=OPTION).rows
            except (ValueError, OSError) as error:  # half-way through being written, or a mistake
                if str(error) != said:
                    said = str(error)
                    self.say(f"{said} It is read again as soon as it changes.")
                continue
            if len(file.rows) != len(origins):
                self.say(
                    f"{file.path} has {len(file.rows):,} pairs now, and had {len(origins):,}: put "
                    "back those that are missing; 'skipped': true leaves one out."
                )
                continue
            waiting = file.counts()["open"]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
