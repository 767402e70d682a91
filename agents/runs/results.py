"""The evaluation after a training, and `summary.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from agents.config import TrainConfig
from agents.console import literal
from agents.evaluation import EvaluationSize, HeldOut, evaluate, evaluation_size
from agents.runs.outcome import gain_of
from agents.runs.progress import evaluation_progress
from tokenenv.optimum import Comparison, ExactEvaluation
from tokenenv.rewards import is_learned

__all__ = ["final_evaluation", "size_of", "summarize"]


def size_of(config: TrainConfig, held_out: HeldOut, episodes: int) -> EvaluationSize:
    """How large the evaluation after a run is.

    Args:
        config: of the run.
        held_out: the prompts that there are.
        episodes: how many responses were trained on.
    """
    if held_out.solution is not None and config.eval_responses != 0:  # nothing is sampled
        prompts, every = len(held_out.prompts), config.eval_responses or 0
        return EvaluationSize(prompts, every, prompts, every)
    settings = held_out.settings
    return evaluation_size(
        config,
        len(held_out.prompts),
        settings.max_prompt_tokens,
        held_out.max_new_tokens,
        episodes,
        has_function=not is_learned(held_out.scorer.reward),
    )


def final_evaluation(
    config: TrainConfig,
    held_out: HeldOut,
    actor: Any,
    starting_actor: Any,
    episodes: int,
    console: Console,
) -> dict[str, Any]:
    """Evaluate a trained policy; returns its part of the summary.

    Args:
        config: of the run.
        held_out: the prompts.
        actor: the trained causal LM.
        starting_actor: the untrained one, where it was not the reference.
        episodes: how many responses were trained on.
        console: where progress is shown, and what was reduced.
    """
    if config.eval_responses == 0:
        return {**_head(config, held_out), "evaluated": False}
    size = size_of(config, held_out, episodes)
    if size.is_reduced:
        console.print(literal(f"{size.note()}."))
    part = held_out.first(size.prompts)
    with evaluation_progress(console, part) as on_progress:
        comparison = evaluate(
            actor, part, size.responses, config.seed, on_progress, starting_actor=starting_actor
        )
    summary = {**summarize(config, part, comparison), "evaluated": True}
    summary["prompts_asked_for"] = held_out.asked_for
    if size.is_reduced:
        summary["evaluation_reduced_from"] = [size.full_prompts, size.full_responses]
    return summary


def summarize(
    config: TrainConfig, held_out: HeldOut, evaluation: Comparison | ExactEvaluation
) -> dict[str, Any]:
    """The part of `summary.json` that an evaluation determines.

    Args:
        config: of the run.
        held_out: the prompts that were evaluated on.
        evaluation: the numbers.
    """
    numbers: dict[str, Any] = asdict(evaluation)
    if isinstance(evaluation, Comparison):
        numbers["is_reliable"] = evaluation.is_reliable
    summary = {
        **_head(config, held_out),
        "prompts": len(held_out.texts),
        "prompts_asked_for": held_out.asked_for,
        **numbers,
    }
    gain = gain_of(summary)
    summary["below_untrained"] = None if gain is None else gain.is_fall
    return summary


def _head(config: TrainConfig, held_out: HeldOut) -> dict[str, Any]:
    return {
        "name": config.name,
        "task": config.task,
        "seed": config.seed,
        "kl_coef": held_out.settings.kl_coef,
    }
