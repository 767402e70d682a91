"""J on held-out prompts.

* `measuring`: fresh samples, or the exact value where a task can be enumerated.
* `held_out`: the prompts, the scorer and, where there is one, the solution.
"""

from agents.evaluation.held_out import HeldOut, exact_solution
from agents.evaluation.measuring import (
    EvaluationCallback,
    ResponseReport,
    evaluate,
    measure,
    respond,
)

__all__ = [
    "EvaluationCallback",
    "HeldOut",
    "ResponseReport",
    "evaluate",
    "exact_solution",
    "measure",
    "respond",
]
