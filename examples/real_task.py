"""A task from a real language model and texts: prompts, preferences by a lexicon, reward model.

`make_task` writes a folder that ours and other trainers read alike:

* `lm/`: the language model, as it was;
* `rm/`: a reward model on its trunk, learned from pairs of its own samples, on its raw scale: no
  mean and deviation in its config, so that every reader of `transformers` folders sees one reward;
* `prompts.jsonl`: `prompt`, `ids` (BOS included, all of one length) and `split`;
* `task.json`: how all this was made, and the report on held-out pairs.

The preferences are those of VADER's sentiment lexicon (Hutto & Gilbert 2014), which stands in for
people: cheap, public, and known afterwards as the gold reward, which a run never sees.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tokenenv.models import load_frozen, load_tokenizer, prompt_ids, sample_responses
from tokenenv.rewards import (
    RewardTrainingSettings,
    TokenPair,
    new_reward_model,
    train_reward_model,
)

Gold = Callable[[str], float]
"""A text → how good it is."""

FEWEST_EVAL = 64
"""Held-out prompts below which J is too uncertain to compare anything by it."""


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What the task is made of.

    Args:
        prompt_tokens: P; every prompt has as many, BOS included.
        response_tokens: T.
        train_prompts: at most.
        eval_prompts: held out.
        samples: of the model for each training prompt. The best and the worst of them make a pair,
            then the best and the worst of the others, and so on.
        kl_coef: β that the task is meant for.
        seed: of the samples and of the reward model.
        epochs: of the reward model's training.
        learning_rate: its peak.
    """

    prompt_tokens: int = 16
    response_tokens: int = 32
    train_prompts: int = 4000
    eval_prompts: int = 128
    samples: int = 6
    kl_coef: float = 0.05
    seed: int = 0
    epochs: int = 3
    learning_rate: float = 1e-3


def readable(text: str) -> str:
    """A response without special tokens that the model spells out in ordinary pieces."""
    return re.sub(r"<\|?[a-z_/]*\|?>?", " ", text)


@cache
def _lexicon() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise SystemExit(
            "The preferences are those of a sentiment lexicon, which is not installed: "
            "pip install vaderSentiment, or this project with its extra: pip install -e '.[real]'"
        ) from error
    return SentimentIntensityAnalyzer()


def lexicon_sentiment(text: str) -> float:
    """VADER's compound score, from −1 to 1, of a response alone."""
    return float(_lexicon().polarity_scores(readable(text))["compound"])


# Prompts -----------------------------------------------------------------------------------------


def beginnings(lines: Iterable[str], tokenizer: Any, length: int) -> list[tuple[str, list[int]]]:
    """Beginnings of lines that have `length` tokens, and end between two words; each once.

    After a whole sentence a model often ends at once: there would be nothing to learn from. What
    its own text does not encode to is left out, since other programs read texts, or ids.

    Args:
        lines: of a text.
        tokenizer: of the model.
        length: in tokens, BOS included.

    Returns:
        (text, ids) of each.
    """
    eos, found = [tokenizer.eos_token_id], {}
    for line in lines:
        ids = [int(i) for i in prompt_ids(tokenizer, line.strip(), eos)]
        text, longer = (
            tokenizer.decode(ids[:end], skip_special_tokens=True) for end in (length, length + 1)
        )
        # Pieces of a word may carry the space behind it, or the one before.
        is_between_words = text[-1:].isspace() or longer[len(text) : len(text) + 1].isspace()
        if not (is_between_words and text.rstrip()[-1:].isalnum()) or text in found:
            continue
        if list(map(int, prompt_ids(tokenizer, text, eos))) == ids[:length]:
            found[text] = ids[:length]
    return list(found.items())


def split_prompts(lines: list[str], tokenizer: Any, settings: TaskSettings) -> list[dict[str, Any]]:
    """Rows of prompts; those to evaluate on come from the last lines, so from other texts.

    Raises:
        ValueError: there are too few.
    """
    prompts = beginnings(lines, tokenizer, settings.prompt_tokens)
    held_out = prompts[-settings.eval_prompts :]
    training = prompts[: -settings.eval_prompts][: settings.train_prompts]
    if len(held_out) < FEWEST_EVAL or len(training) < FEWEST_EVAL:
        raise ValueError(
            f"{len(lines):,} lines of text have {len(prompts):,} different beginnings of "
            f"{settings.prompt_tokens} tokens that end within a sentence; at least {FEWEST_EVAL} "
            "are needed to train on, and as many to evaluate on: give more text, longer lines or "
            "shorter prompts."
        )
    return [
        {"prompt": text, "ids": ids, "split": split}
        for split, part in (("train", training), ("eval", held_out))
        for text, ids in part
    ]


# Preferences -------------------------------------------------------------------------------------


def label_pairs(
    lm: Any, rows: list[dict[str, Any]], settings: TaskSettings, gold: Gold
) -> tuple[list[TokenPair], int, np.ndarray]:
    """Pairs of the model's own samples, the better one first, as `TokenPair`; see `TaskSettings`.

    Returns:
        The pairs; how many more there would be, were they no ties; the gold of all samples.
    """
    count = settings.samples
    prompts = [np.array(row["ids"]) for row in rows for _ in range(count)]
    sampled = sample_responses(
        lm.model, lm.eos_token_ids, prompts, settings.response_tokens, seed=settings.seed
    )
    golds = np.array([gold(lm.decode(s.tokens)) for s in sampled])
    pairs, ties = [], 0
    for number, row in enumerate(rows):
        order = number * count + np.argsort(golds[number * count : (number + 1) * count])
        for worse, better in zip(order[: count // 2], order[::-1], strict=False):
            if golds[worse] == golds[better]:
                ties += 1
                continue
            chosen, rejected = (
                np.concatenate([prompts[i], sampled[i].tokens]) for i in (better, worse)
            )
            pairs.append(TokenPair(chosen, rejected, row["prompt"]))
    return pairs, ties, golds


def make_task(
    lm: Path,
    texts: Path,
    out: Path,
    settings: TaskSettings | None = None,
    gold: Gold = lexicon_sentiment,
) -> dict[str, Any]:
    """Write the task to `out`; see the module.

    Args:
        lm: folder of a causal LM with its tokenizer.
        texts: a file of text, of which lines are read.
        out: the folder.
        settings: the defaults otherwise.
        gold: what preferences are made by.

    Returns:
        The content of `task.json`.

    Raises:
        ValueError: there are too few prompts, or too few pairs that differ.
    """
    settings = settings or TaskSettings()
    language_model = load_frozen(str(lm))
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = split_prompts(lines, load_tokenizer(str(lm), "reference"), settings)
    training = [row for row in rows if row["split"] == "train"]
    pairs, ties, golds = label_pairs(language_model, training, settings, gold)
    reward_model = new_reward_model(str(lm), seed=settings.seed)
    report = train_reward_model(
        pairs,
        reward_model,
        RewardTrainingSettings(
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            patience=8,
            centering_coef=0.01,  # a mean near 0: only differences are learned
            seed=settings.seed,
        ),
    )
    mean, deviation = reward_model.mean, reward_model.std
    reward_model.model.config.reward_mean, reward_model.model.config.reward_std = 0.0, 1.0
    shutil.copytree(lm, out / "lm", dirs_exist_ok=True)
    reward_model.save_pretrained(out / "rm")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "prompts.jsonl").write_text(text, encoding="utf-8")
    content = {
        "settings": dataclasses.asdict(settings),
        "prompts": {"train": len(training), "eval": len(rows) - len(training)},
        "pairs": len(pairs),
        "ties": ties,
        "gold_of_samples": float(np.mean(golds)),
        "raw_reward": {"mean": mean, "deviation": deviation},
        "held_out": report.as_dict(),
    }
    (out / "task.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return content


def environment(folder: Path) -> dict[str, Any]:
    """The arguments of `TokenEnv` for the task in `folder`, which are those of TrainConfig too.

    Raises:
        ValueError: it is no folder of a task.
    """
    try:
        settings = json.loads((folder / "task.json").read_text(encoding="utf-8"))["settings"]
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} holds no task.json: make the task there first, with "
            "python examples/21_real_model.py --task-only --out FOLDER"
        ) from error
    return {
        "reference": str(folder / "lm"),
        "reward_model": str(folder / "rm"),
        "prompts": str(folder / "prompts.jsonl"),
        "max_prompt_tokens": settings["prompt_tokens"],
        "max_new_tokens": settings["response_tokens"],
        "kl_coef": settings["kl_coef"],
    }


def held_out_of(folder: Path, count: int = 1000, gold: Gold | None = lexicon_sentiment) -> Any:
    """The held-out prompts of the task in `folder`, for `agents.evaluation`.

    Args:
        folder: of the task.
        count: of prompts, at most.
        gold: response → gold reward; None: J is measured without it.
    """
    from agents.evaluation import HeldOut

    arguments = {**environment(folder), "scoring": "deferred", "device": "cpu"}
    held_out = HeldOut.from_env_kwargs(arguments, count)
    if gold is not None:
        held_out.scorer.gold_reward = lambda prompt, response, stopped: gold(response)
    return held_out
