"""`tokenrlhf audit`: what a reward pays for besides what was meant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from agents.atomic_files import json_text, write_json
from agents.console import literal
from agents.reward_quality.audit.bands import LEVEL
from agents.reward_quality.audit.config import AuditConfig
from agents.reward_quality.audit.edits import load_sentences
from agents.reward_quality.audit.evidence import Audit, as_json, audit
from agents.reward_quality.audit.features import LEAST_VARYING
from agents.reward_quality.audit.figure import draw_audit
from agents.reward_quality.audit.files import VERSION, place_of
from agents.reward_quality.audit.probes import LEAST_EDITED
from agents.reward_quality.audit.rewards import TextReward, gold_of, reward_of
from agents.reward_quality.audit.texts import load_reference, texts_of_pairs, texts_of_samples
from agents.reward_quality.audit.verdicts import GRADES, LEAST
from agents.reward_quality.audit.view import print_audit
from agents.reward_quality.text_features import load_word_lists
from tokenenv.models import LanguageModel, resolve_device
from tokenenv.tasks import is_bundled, load_task

__all__ = ["audit_reward"]


def audit_reward(config: AuditConfig, console: Console) -> Audit:
    """Audit a reward; print, keep and draw what was found.

    Raises:
        ValueError: the settings, the texts, a model or a reward can't be used.
    """
    word_lists = load_word_lists(config.word_lists)
    sentences = load_sentences(config.probe_sentences)
    device = resolve_device(config.device)
    reference = load_reference(config, device)
    reward = reward_of(config.reward_model, device, reference)
    gold = _gold(config, device, reference)
    with _progress(console, config.json) as on_part:
        on_part("reading pairs" if config.pairs is not None else "sampling")
        if config.pairs is not None:
            texts = texts_of_pairs(config)
        else:
            assert reference is not None
            texts = texts_of_samples(config, reference)
        found = audit(
            texts,
            reward,
            gold=gold,
            word_lists=word_lists,
            sentences=sentences,
            probed=config.probed,
            resamples=config.resamples,
            seed=config.seed,
            on_part=on_part,
        )
    if config.figure is not None:
        draw_audit(found, config.reward_model, config.figure)
    content = _content(config, found, None if gold is None else gold.name)
    if config.out is not None:
        write_json(place_of(config.out), content)
    if config.json:
        console.out(json_text(content, indent=2), highlight=False)
        return found
    print_audit(found, config.reward_model, console)
    if config.out is not None:
        console.print(Text.assemble("written to ", literal(place_of(config.out), "bold")))
    return found


def _content(config: AuditConfig, found: Audit, gold: str | None) -> dict[str, Any]:
    """The audit for JSON, with what was asked."""
    return {
        "version": VERSION,
        "reward_model": config.reward_model,
        "gold": gold,
        "seed": config.seed,
        "thresholds": {
            "level_of_all_intervals_together": LEVEL,
            "least_strength": LEAST,
            "grades": {words: least for least, words in GRADES.items()},
            "least_varying": LEAST_VARYING,
            "least_edited": LEAST_EDITED,
        },
        **as_json(found),
    }


def _gold(config: AuditConfig, device: str, reference: LanguageModel | None) -> TextReward | None:
    """The gold reward that is named, or that of the task whose prompts are answered."""
    if config.gold is not None:
        return gold_of(config.gold, device, reference)
    if config.prompts is not None and is_bundled(config.prompts):
        has_gold = load_task(config.prompts).gold_reward is not None
        return gold_of(config.prompts, device) if has_gold else None
    return None


@contextlib.contextmanager
def _progress(console: Console, is_quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal."""
    if is_quiet or not console.is_terminal:
        yield lambda part: None
        return
    with console.status("") as status:
        yield lambda part: status.update(f"{part} …")
