"""What people bring: files of prompts, of preference pairs and of examples, in many formats.

- `rows`: the rows of a file of any format, one at a time; `formats` recognises them, `text_lines`,
  `json_rows`, `csv_rows` and `table_rows` read them; `row`: a row, and the account of bad ones.
- `prompts`: prompts, as text or as messages, with the columns that rewards ask for.
- `pairs`: preference pairs.
"""

from __future__ import annotations

from tokenenv.data.formats import FileFormat
from tokenenv.data.messages import Message
from tokenenv.data.pairs import MOST_MARGIN, PreferencePair, read_pairs
from tokenenv.data.prompts import Prompt, read_prompts
from tokenenv.data.row import BadRows, Row
from tokenenv.data.rows import find_format, read_rows

__all__ = [
    "MOST_MARGIN",
    "BadRows",
    "FileFormat",
    "Message",
    "PreferencePair",
    "Prompt",
    "Row",
    "find_format",
    "read_pairs",
    "read_prompts",
    "read_rows",
]
