"""`tokenrlhf evaluate`: measure the policy of a finished run again."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from agents.evaluation import FULL_RESPONSES, HeldOut, evaluate
from agents.policy import LMActorCriticPolicy
from agents.runs.config import EvaluateConfig
from agents.runs.folder import RunFolder
from agents.runs.progress import evaluation_progress
from agents.runs.results import summarize
from agents.runs.tables import print_end, print_summary
from tokenenv.models import load_trainable

__all__ = ["evaluate_run"]


def evaluate_run(config: EvaluateConfig, console: Console) -> None:
    """Evaluate, and print the summary.

    Raises:
        ValueError: there is no such run, or its settings can't be used.
    """
    run = RunFolder.open(config.run)
    trained = run.read_config(config.trust_code)
    # None, and nothing else, stands for the run's own; a run may have none.
    prompts, responses = config.eval_prompts, config.eval_responses
    prompts = trained.eval_prompts if prompts is None else prompts
    if responses is None:
        responses = trained.eval_responses or FULL_RESPONSES
    held_out = HeldOut.from_env_kwargs(run.environment(trained), prompts)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, held_out.settings.device)
    with evaluation_progress(console, held_out) as on_progress:
        comparison = evaluate(
            policy.actor,
            held_out,
            responses,
            config.seed,
            on_progress,
            None if trained.actor is None else load_trainable(trained.actor).model,
        )
    seeded = dataclasses.replace(trained, seed=config.seed)
    summary = summarize(seeded, held_out, comparison)
    print_summary(console, summary)
    print_end(console, config.run, seeded, summary)
