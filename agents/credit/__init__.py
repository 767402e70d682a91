"""Which token got which update, and why: the token table.

* `table`: `token_table` of responses that no update has used; `rollout`: `rollout_table` of those
  that one has; `token_columns`: their numbers; `columns`: what the columns are.
* `text_table`: `table_of_texts`, from prompts and responses as text (`episodes`).
* `settings`: how an agent turns rewards into updates; `advantages`: rewards → advantages;
  `truth`: true advantages, where a task can be enumerated; `vine`: values from continuations.
* `states`: what actor, critic and reference say of tokens; `texts`: tokens as text.
* `output_layer`: the strength of an update in closed form; `exact_strength`: over all parameters;
  `effect`: what one optimiser step does; `concentration`: how unequal the strengths are.
* `rank_accuracy`: how often a critic orders two next tokens as the true Q does.
* `files`: files of token tables, with every check (`checks`).

Names that need torch are loaded when they are asked for: a page is made of files without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agents.credit.columns import COLUMNS, SCHEMA, TOP, WHOLE_COLUMNS
from agents.credit.concentration import by_decile, by_position, gini, lorenz
from agents.credit.files import TokenFile, read_tokens, token_files, write_tokens
from agents.credit.rank_accuracy import rank_accuracy

if TYPE_CHECKING:
    from agents.credit.effect import StepEffect, step_effect
    from agents.credit.episodes import given_response, sampled_responses
    from agents.credit.exact_strength import MAX_PARAMETERS, exact_norms_and_shares
    from agents.credit.output_layer import output_layer_norms, output_layer_shares
    from agents.credit.rollout import rollout_table
    from agents.credit.settings import UpdateSettings, Whitening
    from agents.credit.states import evaluate_states
    from agents.credit.table import TokenTable, token_table
    from agents.credit.text_table import table_of_texts
    from agents.credit.token_columns import clip_sides
    from agents.credit.truth import Truth, has_truth

__all__ = [
    "COLUMNS",
    "MAX_PARAMETERS",
    "SCHEMA",
    "TOP",
    "WHOLE_COLUMNS",
    "StepEffect",
    "TokenFile",
    "TokenTable",
    "Truth",
    "UpdateSettings",
    "Whitening",
    "by_decile",
    "by_position",
    "clip_sides",
    "evaluate_states",
    "exact_norms_and_shares",
    "gini",
    "given_response",
    "has_truth",
    "lorenz",
    "output_layer_norms",
    "output_layer_shares",
    "rank_accuracy",
    "read_tokens",
    "rollout_table",
    "sampled_responses",
    "step_effect",
    "table_of_texts",
    "token_files",
    "token_table",
    "write_tokens",
]

_HOMES = {
    "MAX_PARAMETERS": "agents.credit.exact_strength",
    "StepEffect": "agents.credit.effect",
    "TokenTable": "agents.credit.table",
    "Truth": "agents.credit.truth",
    "has_truth": "agents.credit.truth",
    "UpdateSettings": "agents.credit.settings",
    "Whitening": "agents.credit.settings",
    "clip_sides": "agents.credit.token_columns",
    "given_response": "agents.credit.episodes",
    "sampled_responses": "agents.credit.episodes",
    "table_of_texts": "agents.credit.text_table",
    "evaluate_states": "agents.credit.states",
    "exact_norms_and_shares": "agents.credit.exact_strength",
    "output_layer_norms": "agents.credit.output_layer",
    "output_layer_shares": "agents.credit.output_layer",
    "rollout_table": "agents.credit.rollout",
    "step_effect": "agents.credit.effect",
    "token_table": "agents.credit.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents.credit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
