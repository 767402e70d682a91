"""Which token got which update, and why: the token table.

* `columns`: what the columns of a table are; `checks`: what a file of tables must be like.
* `files`: writing the tables of a step, and reading them again.
"""

from agents.credit.columns import COLUMNS, SCHEMA, TOP, WHOLE_COLUMNS
from agents.credit.files import TokenFile, read_tokens, token_files, write_tokens

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "TOP",
    "WHOLE_COLUMNS",
    "TokenFile",
    "read_tokens",
    "token_files",
    "write_tokens",
]
