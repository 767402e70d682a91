"""A row of a file, its place in it, and the account of rows that can't be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BadRows", "Row"]

_REASONS = 4
"""Different reasons that one message names."""

_PLACES = 5
"""Places that one message names for each reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        fields: its values by column; of plain text, the line under `"text"`.
        file: the file that it is from.
        place: where in it: `"line 3"` of text, `"row 3"` where there are no lines.
    """

    fields: dict[str, Any]
    file: str
    place: str

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.file}, {self.place}"


@dataclass
class BadRows:
    """The rows of a file that can't be used: how many, where the first are, and why.

    A reader adds to it what is wrong and goes on, so that one error names all bad rows.

    Attributes:
        is_skipping: whether the file is to be used without them.
        rows: rows that were read, good and bad.
        count: bad ones among them.
        reasons: what is wrong → (how many rows, the first places), of the first few reasons.
    """

    is_skipping: bool = False
    rows: int = 0
    count: int = 0
    reasons: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, place: str, reason: str) -> None:
        """Note a row that can't be used; `reason` ends without a full stop."""
        self.count += 1
        if reason in self.reasons or len(self.reasons) < _REASONS:
            count, places = self.reasons.get(reason, (0, []))
            self.reasons[reason] = (count + 1, [*places, place][:_PLACES])

    def refuse(self, file: str) -> None:
        """Raise ValueError where there are bad rows that are not to be skipped."""
        if self.count and not self.is_skipping:
            them = "it" if self.count == 1 else "them"
            raise ValueError(
                f"{self.describe(file)} Mend or remove {them}; skip_bad=True (--skip-bad) reads on "
                f"without {them}."
            )

    def describe(self, file: str) -> str:
        """One sentence: how many are bad, what is wrong with them, and where the first are."""
        if self.count == 1:
            ((reason, (_, places)),) = self.reasons.items()
            return f"{file}, {places[0]}: {reason}."
        told = [_told(reason, count, places) for reason, (count, places) in self.reasons.items()]
        others = self.count - sum(count for count, _ in self.reasons.values())
        told += [f"and {others:,} more with other reasons"] * bool(others)
        return f"{file}: {self.count:,} of {self.rows:,} rows can't be used: {'; '.join(told)}."


def _told(reason: str, count: int, places: list[str]) -> str:
    """`line 3: it is null`, or `it is null (8 rows: line 3, line 7, …)`."""
    if count == 1:
        return f"{places[0]}: {reason}"
    more = ", …" if count > len(places) else ""
    return f"{reason} ({count:,} rows: {', '.join(places)}{more})"
