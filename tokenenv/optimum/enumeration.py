"""Writing down a token MDP: every state with its log π_ref, every response with its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenenv.data import Prompt
from tokenenv.mdp import TokenMDP
from tokenenv.optimum.policies import model_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, count_responses
from tokenenv.rewards import Episode
from tokenenv.settings import EnvSettings

__all__ = ["MAX_RESPONSES", "count_mdp_responses", "enumerate_mdp", "enumerate_task"]

MAX_RESPONSES = 300_000
"""Finished responses, over all prompts, that are enumerated unless more is asked for."""


def enumerate_task(
    task: str, *, max_responses: int = MAX_RESPONSES, **environment: Any
) -> PrefixTree:
    """The tree of a task, over the prompts of its `eval` split.

    Args:
        task: name of a task.
        max_responses: refuse a task with more.
        **environment: further arguments of `TokenEnv`; `split` among them.

    Raises:
        ValueError: the task is too large to enumerate, or an argument can't be used.
    """
    settings = EnvSettings(**{"split": "eval", **environment, "task": task})
    return enumerate_mdp(TokenMDP(settings, num_envs=1), max_responses=max_responses)


def count_mdp_responses(mdp: TokenMDP, prompts: int) -> int:
    """Finished responses of a token MDP to that many prompts."""
    language_model = mdp.language_model
    eos = len(set(language_model.eos_token_ids))
    return count_responses(prompts, language_model.vocabulary_size, eos, mdp.max_new_tokens)


def enumerate_mdp(
    mdp: TokenMDP, prompts: Sequence[Any] | None = None, max_responses: int = MAX_RESPONSES
) -> PrefixTree:
    """The tree of a token MDP.

    Args:
        mdp: the token MDP.
        prompts: X texts, or prompts as `tokenenv.data.as_prompt` takes them; None: those of its
            split.
        max_responses: refuse more.

    Raises:
        ValueError: it is too large to enumerate, or a prompt can't be used.
    """
    language_model = mdp.language_model
    origins = mdp.origins if prompts is None else [mdp.origin_of(prompt) for prompt in prompts]
    texts = [mdp.book.text_of(origin) for origin in origins]
    count = count_mdp_responses(mdp, len(texts))
    if count > max_responses:
        raise ValueError(
            f"task {mdp.task.name!r} has {_about(count)} finished responses ({len(texts)} "
            f"prompts, {language_model.vocabulary_size} token ids, up to {mdp.max_new_tokens} of "
            f"them), more than the {max_responses:,} that are enumerated: estimate its optimum "
            "from samples instead, with tokenenv.optimum.sample_mixture and compare (`tokenrlhf "
            "evaluate` does it for a run), or take a task like 'exact'."
        )
    eos = np.array(sorted(set(language_model.eos_token_ids)))
    tree = PrefixTree(
        mdp.settings,
        language_model,
        texts,
        [mdp.encode_prompt(prompt) for prompt in texts],
        np.setdiff1d(np.arange(language_model.vocabulary_size), eos),
        eos,
        ref_log_probs=[],
        scores=[],
        gold_rewards=None,
    )
    scores, gold = _score_all(tree, mdp, origins)
    log_probs = model_levels(language_model.model, tree)
    return replace(tree, ref_log_probs=log_probs, scores=scores, gold_rewards=gold)


def _about(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"about 10^{len(str(count)) - 1}"


def _score_all(
    tree: PrefixTree, mdp: TokenMDP, origins: Sequence[Prompt]
) -> tuple[Levels, Levels | None]:
    """Scores of every finished response, as levels."""
    responses, stopped = tree.responses(), tree.response_stopped.tolist()
    episodes = [
        Episode(prompt, response, ended, origin)
        for prompt, origin in zip(tree.prompt_tokens, origins, strict=True)
        for response, ended in zip(responses, stopped, strict=True)
    ]
    scores = mdp.scorer.score(episodes)
    gold = scores.gold_reward
    return _as_levels(tree, scores.score), None if gold is None else _as_levels(tree, gold)


def _as_levels(tree: PrefixTree, finished: np.ndarray) -> Levels:
    """The inverse of `PrefixTree.finished`; NaN at actions that go on."""
    rows = finished.reshape(len(tree.prompts), -1)
    levels, start = [], 0
    for t in range(tree.depth):
        level, ends = np.full(tree.shape(t), np.nan), tree.ending(t)
        size = level.shape[1] * int(ends.sum())
        level[:, :, ends] = rows[:, start : start + size].reshape(*level.shape[:2], -1)
        levels.append(level)
        start += size
    return levels
