"""What people bring: files of prompts, of preference pairs and of examples, in many formats.

- `rows`: the rows of a file of any format, one at a time; `formats` recognises them, `text_lines`,
  `json_rows`, `csv_rows` and `table_rows` read them; `row`: a row, and the account of bad ones.
- `prompts`: prompts, as text or as messages, with the columns that rewards ask for;
  `prompt_values`: what may be given for one in Python.
- `pairs`: preference pairs, and `pair_layouts`, `implicit_prompts` and `labels`, what rows hold of
  them; `preference_pair`: one pair.
- `examples`: what a model is to write, for supervised training.
- `kinds`: whether a file holds prompts, pairs or examples.
- `truncation`: what is cut of prompts and pairs that are too long.
- `messages`: conversations; `turns`: texts and messages as rows hold them; `columns`: what columns
  mean; `reading`: one pass over a file, and the report of what was understood of it.
"""

from __future__ import annotations

from tokenenv.data.columns import check_columns, parse_columns
from tokenenv.data.examples import Example, read_examples
from tokenenv.data.formats import FileFormat
from tokenenv.data.kinds import KINDS, guess_kind
from tokenenv.data.labels import preference_of
from tokenenv.data.messages import Message, is_messages
from tokenenv.data.pairs import MOST_MARGIN, PreferencePair, iterate_pairs, read_pairs
from tokenenv.data.prompt_values import (
    as_prompt,
    messages_of,
    prompt_of_state,
    prompt_state,
    shown_prompt,
)
from tokenenv.data.prompts import (
    EVAL_EVERY,
    Prompt,
    iterate_prompts,
    read_prompt_rows,
    read_prompts,
    split_of,
)
from tokenenv.data.reading import ReadReport
from tokenenv.data.row import BadRows, Row
from tokenenv.data.rows import find_format, read_rows
from tokenenv.data.truncation import TRUNCATIONS, truncate_pair, truncate_prompt
from tokenenv.data.turns import Turns

__all__ = [
    "EVAL_EVERY",
    "KINDS",
    "MOST_MARGIN",
    "TRUNCATIONS",
    "BadRows",
    "Example",
    "FileFormat",
    "Message",
    "PreferencePair",
    "Prompt",
    "ReadReport",
    "Row",
    "Turns",
    "as_prompt",
    "check_columns",
    "find_format",
    "guess_kind",
    "is_messages",
    "iterate_pairs",
    "iterate_prompts",
    "messages_of",
    "parse_columns",
    "preference_of",
    "prompt_of_state",
    "prompt_state",
    "read_examples",
    "read_pairs",
    "read_prompt_rows",
    "read_prompts",
    "read_rows",
    "shown_prompt",
    "split_of",
    "truncate_pair",
    "truncate_prompt",
]
