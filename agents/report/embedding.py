"""Data inside of a page: as text that no parser of HTML takes for anything else, and small.

Columns of token tables go in as base64 of little-endian arrays, the values and rewards that the
page computes advantages from as float64, all other numbers as float32.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.credit import WHOLE_COLUMNS, TokenFile

__all__ = ["Texts", "packed_column", "packed_table", "script_json"]

_EXACT = ("reward", "value")
"""What advantages are computed from in the page."""

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">`, where nothing in it ends the element.

    `<`, `>` and `&` are escaped, and so is everything beyond ASCII: U+2028 and U+2029, and marks
    that would reorder the source on a screen.

    Args:
        value: anything of JSON's types, finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


class Texts:
    """Texts that each stand in the page once; everything else has their number.

    Attributes:
        all: in the order of their numbers.
    """

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text, a new one where it is new."""
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]

    def numbers(self, texts: Sequence[str | None]) -> np.ndarray:
        """Those of many; −1 for None."""
        return np.array([-1 if text is None else self.number(text) for text in texts])


def packed_table(table: TokenFile, texts: Texts) -> dict[str, Any]:
    """The token tables of one step, as the page's script unpacks them.

    Args:
        table: of one step.
        texts: of the page; takes up what this step brings.
    """
    header = {name: value for name, value in table.header.items() if name != "columns"}
    names = ("kind", "index", "tokens", "score", "gold_reward", "finish_reason", "bootstrap_value")
    responses = [
        {
            **{name: response[name] for name in (*names, "uniform")},
            "prompt": texts.number(response["prompt"]),
            "response": texts.number(response["response"]),
        }
        for response in table.responses
    ]
    columns = {
        name: packed_column(name, values, texts)
        for name, values in table.arrays.items()
        if name != "response"  # follows from their lengths
    }
    return {"header": header, "responses": responses, "columns": columns}


def packed_column(name: str, values: np.ndarray, texts: Texts) -> dict[str, Any]:
    """A column: its type, what one token has of it, and base64; or the one value it has everywhere.

    Args:
        name: of the column.
        values: (n,) or (n, TOP), as `TokenFile` has it.
        texts: of the page.
    """
    is_text = values.dtype == object
    width = values.shape[1] if name in WHOLE_COLUMNS else 1
    flat = values.ravel()
    if is_text:
        flat = texts.numbers([v if v is None or isinstance(v, str) else str(v) for v in flat])
    if np.issubdtype(flat.dtype, np.integer):
        kind = _smallest(flat)
    else:
        kind = "f8" if name in _EXACT else "f4"
    about = {"is_text": is_text, "width": width}
    if (len(flat) and (flat == flat[0]).all()) or np.isnan(flat).all():
        constant = flat[0].item()
        return {**about, "all": constant if np.isfinite(constant) else None}
    with np.errstate(over="ignore"):
        data = flat.astype(np.dtype(f"<{kind}")).tobytes()
    return {**about, "type": kind, "data": base64.b64encode(data).decode("ascii")}


def _smallest(integers: np.ndarray) -> str:
    """The smallest type that holds whole numbers of at least −1."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    for kind in ("i1", "i2", "i4"):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return kind
    return "f8"  # token ids beyond 2³¹: whole in a float64, too
