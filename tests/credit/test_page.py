"""`docs/token-table.md` has the columns that files have."""

from __future__ import annotations

import re
from pathlib import Path

from agents.credit import COLUMNS, WHOLE_COLUMNS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "token-table.md"


def test_the_page_lists_every_column_with_its_meaning():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: meaning.replace("\\|", "|") for name, meaning in rows}
    assert listed == {**COLUMNS, **WHOLE_COLUMNS}
