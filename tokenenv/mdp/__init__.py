"""The dynamics that single and vector environments share.

* `token_mdp`: resets, steps, rewards, endings; `public_face`: what both environments offer of it.
* `prompts`: where prompts come from, and their token ids; `vector_infos`: info dictionaries of many
  rows.
"""

from tokenenv.mdp.prompts import PromptBook, named_prompts
from tokenenv.mdp.public_face import TokenMDPMixin, check_options, settle_generators
from tokenenv.mdp.token_mdp import StepResult, TokenMDP
from tokenenv.mdp.vector_infos import add_infos, rows_of

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
