"""`tokenrlhf plan`: does a training fit?"""

from __future__ import annotations

from rich.console import Console

from agents.atomic_files import write_json
from agents.plan.advice import make_plan
from agents.plan.config import PlanConfig
from agents.plan.view import print_plan

__all__ = ["plan"]


def plan(config: PlanConfig, console: Console) -> None:
    """Print what the training takes, and write it where asked.

    Raises:
        ValueError: a config can't be used.
        SystemExit: with status 1, where it does not fit.
    """
    answer = make_plan(config)
    print_plan(answer, console)
    if config.json is not None:
        write_json(config.json, answer.as_json())
    if not answer.fits:
        raise SystemExit(1)
