"""J on held-out prompts.

* `measuring`: fresh samples, or the exact value where a task can be enumerated.
* `held_out`: the prompts, the scorer and, where there is one, the solution.
* `size`: how many of the prompts, and how many responses to each, after a training.
"""

from agents.evaluation.held_out import HeldOut, exact_solution
from agents.evaluation.measuring import (
    EvaluationCallback,
    ResponseReport,
    evaluate,
    measure,
    respond,
)
from agents.evaluation.size import FULL_RESPONSES, EvaluationSize, evaluation_size

__all__ = [
    "FULL_RESPONSES",
    "EvaluationCallback",
    "EvaluationSize",
    "HeldOut",
    "ResponseReport",
    "evaluate",
    "evaluation_size",
    "exact_solution",
    "measure",
    "respond",
]
