"""`tokenrlhf sample-pairs`: pairs of responses, and who says which one is better."""

from __future__ import annotations

import contextlib
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from agents.console import literal, progress_bar, typed_lines
from agents.labelling.by_file import label_by_file
from agents.labelling.by_person import ask_for_labels
from agents.labelling.by_reward import label_by_reward
from agents.labelling.config import LabelsAskConfig, SamplePairsConfig
from agents.labelling.drawing import DrawnPair, draw_pairs, row_of
from agents.labelling.pair_file import PairFile, PairRow
from tokenenv.mdp import PromptBook, named_prompts
from tokenenv.models import LanguageModel, check_context, load_frozen, resolve_device
from tokenenv.rewards import resolve_reward
from tokenenv.tasks import is_bundled, load_task, model_source

__all__ = ["ask_about_file", "sample_pairs_into_file"]

CHUNK = 256
"""Pairs that are drawn before they are written."""

DEFAULT_NEW_TOKENS = 128


def sample_pairs_into_file(config: SamplePairsConfig, console: Console) -> PairFile:
    """Draw the pairs that are missing in `config.out`, and label those without a label.

    Returns:
        The file.

    Raises:
        ValueError: the settings, the file, the model or the source of labels can't be used.
        KeyboardInterrupt: by Ctrl-C or another signal; what was done is in the file.
    """
    if not config.out.parent.is_dir():
        raise ValueError(
            f"out={str(config.out)!r}: there is no folder {str(config.out.parent)!r}; make it, or "
            "give another place."
        )
    if config.labels is not None and not os.path.exists(config.labels):
        raise ValueError(f"labels={str(config.labels)!r} does not exist: give a file.")
    with PairFile.locked(config.out, config.overwrite) as file:
        work = _Work(config, file, console)
        try:
            work.draw()
            work.label()
        finally:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                work.say_what_there_is()
    return file


def ask_about_file(config: LabelsAskConfig, console: Console) -> PairFile:
    """Ask about the pairs of `config.file` that have no label.

    Returns:
        The file.

    Raises:
        ValueError: it is not there, is no file of pairs, or another process writes it.
    """
    if not config.file.is_file():
        raise ValueError(
            f"file={str(config.file)!r} does not exist: give a file of pairs, as sample-pairs or a "
            "run's refresh/ has them."
        )
    with PairFile.locked(config.file, option="file") as file:
        ask_for_labels(file, typed_lines(), console, config.seed)
        counts = file.counts()
    labels = ", ".join(f"{number:,} {label}" for label, number in counts.items() if number)
    console.print(literal(f"{len(file.rows):,} pairs in {config.file}: {labels or 'none'}"))
    return file


class _Work:
    """One call of the command; the model is loaded where it is needed."""

    def __init__(self, config: SamplePairsConfig, file: PairFile, console: Console) -> None:
        self.config, self.file, self.console = config, file, console
        self.origins = named_prompts(config.prompts, config.split)[: config.max_prompts]
        self.max_new_tokens = self._max_new_tokens()
        self.drawn: dict[str, Any] = {
            "model": config.model,
            "temperature": config.temperature,
            "seed": config.seed,
            "max_new_tokens": self.max_new_tokens,
        }
        self._language_model: LanguageModel | None = None
        self._book: PromptBook | None = None
        self._check_rows()

    def _max_new_tokens(self) -> int:
        config = self.config
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        named = [name for name in (config.model, config.prompts) if is_bundled(name)]
        return load_task(named[0]).max_new_tokens if named else DEFAULT_NEW_TOKENS

    def _check_rows(self) -> None:
        """Refuse to go on with pairs of another model, other prompts or other settings."""
        if len(self.file.rows) > len(self.origins) * self.config.n:
            raise self._other(f"{len(self.file.rows):,} pairs, more than were asked for")
        for position, row in enumerate(self.file.rows):
            origin = self.origins[position // self.config.n]
            if row.id != _id(position, self.config.n) or row.prompt != origin.content:
                raise self._other("pairs of other prompts, or another number for each")
            if row.drawn != self.drawn:
                raise self._other(f"pairs that were drawn otherwise ({row.drawn})")

    def _other(self, what: str) -> ValueError:
        return ValueError(
            f"out={str(self.config.out)!r} holds {what}: repeat the settings of the first call, "
            "choose another file, or pass --overwrite."
        )

    @property
    def language_model(self) -> LanguageModel:
        """The model that responds, in whose tokens rewards read."""
        if self._language_model is None:
            name = model_source(self.config.model, "reference")
            self._language_model = load_frozen(name, resolve_device(self.config.device))
        return self._language_model

    @property
    def book(self) -> PromptBook:
        """The token ids of the prompts."""
        if self._book is None:
            new_tokens = self.max_new_tokens
            model = self.language_model.model
            limit = getattr(model.config, "max_position_embeddings", None)
            longest = self.config.max_prompt_tokens
            if longest is None:
                longest = 10**9 if limit is None else max(1, limit - new_tokens)
            else:
                check_context(model, longest + new_tokens, "model")
            if limit is not None:
                check_context(model, 1 + new_tokens, "model")
            self._book = PromptBook(self.origins, self.language_model, longest, "keep-end")
        return self._book

    # Drawing -------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Append the pairs that are missing, a chunk of prompts at a time."""
        n, total = self.config.n, len(self.origins) * self.config.n
        if len(self.file.rows) == total:
            return
        prompts = self._prompts_of(range(len(self.origins)))
        size = max(1, CHUNK // n)
        with progress_bar(self.console) as bar:
            task = bar.add_task("drawing", total=total, completed=len(self.file.rows), note="")
            # A chunk has a seed of its own: what is drawn does not depend on interruptions.
            for start in range(len(self.file.rows) // n // size * size, len(prompts), size):
                part = prompts[start : start + size]
                drawn = draw_pairs(
                    self.language_model,
                    part,
                    n,
                    self.max_new_tokens,
                    temperature=self.config.temperature,
                    seed=_seed(self.config.seed, start),
                    on_finished=partial(_show_drawn, bar, task, start * n, total),
                )
                rows = [self._row(start * n + i, pair) for i, pair in enumerate(drawn)]
                self.file.append(rows[len(self.file.rows) - start * n :])
                bar.update(task, completed=len(self.file.rows))

    def _row(self, position: int, pair: DrawnPair) -> PairRow:
        origin = self.origins[position // self.config.n]
        return row_of(_id(position, self.config.n), origin, pair, self.drawn)

    def _prompts_of(self, indices: Any) -> list[np.ndarray]:
        book = self.book
        return [book.encode_text(book.texts[i]) for i in indices]

    # Labelling -----------------------------------------------------------------------------------

    def label(self) -> None:
        """Label the rows that have no label, by the source that was asked for."""
        if self.config.labels is not None:
            self._label_by_file(self.config.labels)
        elif self.config.reward is not None:
            self._label_by_reward(self.config.reward)
        elif self.config.ask:
            ask_for_labels(self.file, typed_lines(), self.console, self.config.seed)

    def _label_by_file(self, path: Path) -> None:
        found = label_by_file(self.file.rows, path)
        for index, row in found.labelled.items():
            self.file.rows[index] = row
        self.file.save()
        self.console.print(literal(f"{len(found.labelled):,} pairs have a label from {path}."))
        for number, what in (
            (found.without_label, "have no label yet"),
            (found.unknown, "are about pairs that are not here"),
        ):
            if number:
                self.console.print(f"note: {number:,} rows of it {what}.")

    def _label_by_reward(self, name: str) -> None:
        waiting = [index for index, row in enumerate(self.file.rows) if row.is_open]
        if not waiting:
            return
        source = model_source(name, "reward_model")
        device = resolve_device(self.config.device)
        reward = resolve_reward(source, self.language_model, device, "float32")
        reward.check_prompts(self.origins)
        of_prompt = [index // self.config.n for index in waiting]
        prompts = self._prompts_of(of_prompt)
        try:
            with progress_bar(self.console) as bar:
                task = bar.add_task("labelling", total=len(waiting), note="")
                for start in range(0, len(waiting), CHUNK):
                    part = slice(start, start + CHUNK)
                    rows = label_by_reward(
                        [self.file.rows[index] for index in waiting[part]],
                        [self.origins[i] for i in of_prompt[part]],
                        prompts[part],
                        reward,
                        self.language_model,
                        self.config.label_noise,
                        self.config.seed,
                    )
                    for index, row in zip(waiting[part], rows, strict=True):
                        self.file.rows[index] = row
                    bar.update(task, advance=len(rows))
        finally:
            self.file.save()

    # Afterwards ----------------------------------------------------------------------------------

    def say_what_there_is(self) -> None:
        """The labels so far, and what to do next."""
        counts = self.file.counts()
        if not self.file.rows:
            return
        labels = ", ".join(f"{number:,} {label}" for label, number in counts.items() if number)
        out = shlex.quote(str(self.config.out))
        self.console.print(literal(f"{len(self.file.rows):,} pairs in {self.config.out}: {labels}"))
        total = len(self.origins) * self.config.n
        if len(self.file.rows) < total:
            self.console.print(
                f"{total - len(self.file.rows):,} pairs are still to be drawn: the same command "
                "goes on."
            )
        rewards = [
            r for row in self.file.rows for r in (row.reward_a, row.reward_b) if r is not None
        ]
        if rewards:
            mean, deviation = float(np.mean(rewards)), float(np.std(rewards))
            self.console.print(f"mean reward {mean:.4f}, standard deviation {deviation:.4f}")
        identical = sum(row.labelled_by == "identical" for row in self.file.rows)
        if identical:
            self.console.print(
                f"note: {identical:,} pairs have the same text twice, whatever was drawn; they are "
                "ties, and teach nothing."
            )
        if counts["open"]:
            self.console.print(
                "open pairs: the same command with --ask, --reward or --labels labels them; or "
                "fill in 'label' with a, b or tie."
            )
        elif len(self.file.rows) == total:
            skip = " --skip-bad" if counts["skipped"] else ""
            model = shlex.quote(self.config.model)
            use = f"tokenrlhf reward-model --pairs {out} --base {model} --out reward-model{skip}"
            self.console.print(literal(f"use it with: {use}"))


def _show_drawn(bar: Progress, task: TaskID, before: int, total: int, responses: int) -> None:
    """Show how many pairs are drawn; the responses that are drawn again come after all others."""
    bar.update(task, completed=min(total, before + responses // 2))


def _seed(seed: int, start: int) -> int:
    """The seed of a chunk, by its first prompt."""
    return int(np.random.SeedSequence((seed, start)).generate_state(1)[0])


def _id(position: int, n: int) -> str:
    return f"{position // n}-{position % n}"
