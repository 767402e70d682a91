"""The dynamics that single and vector environments share.

* `token_mdp`: resets, steps, rewards, endings; `public_face`: what both environments offer of it.
* `saved_state`: the state as JSON values and arrays, for checkpoints.
* `vector_infos`: info dictionaries of many rows.
"""

from tokenenv.mdp.public_face import TokenMDPMixin, check_options, settle_generators
from tokenenv.mdp.token_mdp import StepResult, TokenMDP
from tokenenv.mdp.vector_infos import add_infos, rows_of
from tokenenv.prompts import PromptBook, named_prompts

__all__ = [
    "PromptBook",
    "StepResult",
    "TokenMDP",
    "TokenMDPMixin",
    "add_infos",
    "check_options",
    "named_prompts",
    "rows_of",
    "settle_generators",
]
