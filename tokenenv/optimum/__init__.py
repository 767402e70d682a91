"""How good a policy can be, and how good one is: J*, J and everything between.

- `solve` and `evaluate_exactly`: tasks small enough to enumerate, to the last decimal (`exact.py`,
  `exact_evaluation.py`).
- `plain_returns`: the same for agents that know nothing of KL (`plain_return.py`).
- `sample_mixture` and `compare`: J* bounded from samples, for every other task
  (`mixture_samples.py`, `mixture.py`); `gain_interval`: how far J rose (`gains.py`).
"""

from tokenenv.optimum.enumeration import MAX_RESPONSES, enumerate_mdp, enumerate_task
from tokenenv.optimum.exact import RankedResponse, Solution, rank_responses, solve
from tokenenv.optimum.exact_evaluation import (
    ActionValues,
    ExactEvaluation,
    evaluate_exactly,
    true_advantages,
)
from tokenenv.optimum.gains import gain_interval, objectives_of
from tokenenv.optimum.log_sums import log_mean_exp
from tokenenv.optimum.mixture import Comparison, compare, rescaled
from tokenenv.optimum.mixture_samples import MixtureSamples, sample_mixture
from tokenenv.optimum.plain_return import PlainReturns, plain_return, plain_returns
from tokenenv.optimum.policies import policy_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree
from tokenenv.optimum.tree_sampling import sample_tree_mixture

__all__ = [
    "MAX_RESPONSES",
    "ActionValues",
    "Comparison",
    "ExactEvaluation",
    "Levels",
    "MixtureSamples",
    "PlainReturns",
    "PrefixTree",
    "RankedResponse",
    "Solution",
    "compare",
    "enumerate_mdp",
    "enumerate_task",
    "evaluate_exactly",
    "gain_interval",
    "log_mean_exp",
    "objectives_of",
    "plain_return",
    "plain_returns",
    "policy_levels",
    "rank_responses",
    "rescaled",
    "sample_mixture",
    "sample_tree_mixture",
    "solve",
    "true_advantages",
]
