"""Which token got which update, and why: the token table.

* `columns`: what the columns of a table are.
"""

from agents.credit.columns import COLUMNS, SCHEMA, TOP, WHOLE_COLUMNS

__all__ = ["COLUMNS", "SCHEMA", "TOP", "WHOLE_COLUMNS"]
