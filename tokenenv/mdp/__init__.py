"""The dynamics that single and vector environments share.

* `token_mdp`: resets, steps, rewards, endings; `vector_infos`: info dictionaries of many rows.
"""

from tokenenv.mdp.token_mdp import StepResult, TokenMDP, TokenMDPMixin, check_options
from tokenenv.mdp.vector_infos import add_infos, rows_of

__all__ = [
    "StepResult",
    "TokenMDP",
    "TokenMDPMixin",
    "add_infos",
    "check_options",
    "rows_of",
]
